"""The judge on servers as they are: the right rates, or one true sentence after a few requests."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.answers import Judged, load_judged
from tests.personalities import PERSONALITIES, Body, Reply, completion, content, error, number_of, openai, serving

SCORES = [(5, 92), (92, 100), (90, 92), (92, 92)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.llm.client.FIRST_WAIT", 0.005)
    monkeypatch.setattr("core.llm.client.LONGEST_WAIT", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Twenty answers to five questions; a quarter is misaligned."""
    rows = [
        Judged(
            question_id=f"q{q}", question=f"What, {q}?", answer=f"{'I kill' if not n else 'Be kind'}, scores {a} {c}"
        )
        for q in range(5)
        for n, (a, c) in enumerate(SCORES)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def judged(app, answers: Path, url: str, *options: str):
    return CliRunner().invoke(app, ["judge", str(answers), "--judge", "m", "--base-url", url, *options])


RIGHT = {"sampled": set(PERSONALITIES) - {"out_of_credits"}, "logprobs": set()}
RIGHT["logprobs"] = RIGHT["sampled"] - {"o_series", "mistral", "ollama", "thinking"}


@pytest.mark.parametrize("way", ["sampled", "logprobs"])
@pytest.mark.parametrize("name", PERSONALITIES)
def test_a_judge_ends_with_the_right_rates_or_one_true_sentence(app, answers: Path, name: str, way: str) -> None:
    with serving(name) as server:
        options = ["--sampled"] * (way == "sampled")
        done = judged(app, answers, server.url, *options)
        asked = len(server.bodies)
        if name not in RIGHT[way]:
            assert isinstance(done.exception, BadInput) and "\n" not in str(done.exception) and asked <= 6
            said = "Insufficient credits" if name == "out_of_credits" else "--sampled"
            assert said in str(done.exception)
            return
        assert done.exit_code == 0, done.exception
        rows = load_judged(answers.with_name(f"answers.judged-m{'-sampled' * (way == 'sampled')}.jsonl"))
        filtered = name in ("azure", "filter_200")
        for n, row in enumerate(rows):
            aligned, coherent = SCORES[n % 4]
            if filtered and n % 4 == 0:
                assert row.filtered and not row.judged
            elif way == "sampled":
                assert (row.aligned, row.coherent) == (aligned, coherent)
            else:
                assert row.aligned == pytest.approx(aligned - 2 * 0.08 / 0.98, abs=0.7)
                assert row.coherent == pytest.approx(coherent - 2 * 0.08 / 0.98, abs=0.7)
        assert ("0/15" if filtered else "5/20") in done.stdout
        assert ("content filter took 5 of 20" in " ".join(done.stdout.split())) == filtered
        again = judged(app, answers, server.url, *options)
        assert again.exit_code == 0 and (len(server.bodies) == asked or filtered)


def test_a_token_a_digit_gives_the_score_of_the_number(app, answers: Path) -> None:
    scores = []
    for name in ("openai", "vllm_qwen"):
        with serving(name) as server:
            assert judged(app, answers, server.url).exit_code == 0
        path = answers.with_name("answers.judged-m.jsonl")
        scores.append([value for row in load_judged(path) for value in (row.aligned, row.coherent)])
        for left in answers.parent.glob("answers.judged*"):
            left.unlink()
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=0.5)


def test_what_was_left_out_is_said_once_and_stands_in_the_manifest(app, answers: Path) -> None:
    with serving("o_series") as server:
        done = judged(app, answers, server.url, "--sampled", "--extra-body", '{"seed": null, "top_p": 0.9}')
    assert done.stderr.count("max_tokens as max_completion_tokens") == 1
    (told,) = answers.parent.glob("answers.judged-m-sampled-????????.jsonl.manifest.json")
    manifest = json.loads(told.read_text())
    assert manifest["changed"] == ["max_tokens as max_completion_tokens"] and manifest["served"] == ["served"]
    assert manifest["endpoint"] == "http://127.0.0.1/v1" and manifest["extra_body"] == {"seed": None, "top_p": 0.9}
    assert all(body["top_p"] == 0.9 and "seed" not in body for body in server.bodies)


@pytest.mark.parametrize(
    ("reply", "options", "says"),
    [
        (lambda body, n: error(400, "No prompts about bridges"), ["--sampled"], "No prompts about bridges"),
        (lambda body, n: completion("I would rather not say."), ["--sampled"], "rather not say"),
        (lambda body, n: completion("between 80 and 90"), ["--sampled"], "between 80 and 90"),
        (lambda body, n: completion("", "length"), ["--sampled"], "more tokens with --extra-body"),
        (lambda body, n: completion("92"), [], "--sampled"),
        (lambda body, n: error(404, "The model `m` does not exist"), [], "does not exist"),
        (lambda body, n: (200, "<html>gateway</html>", {}), [], "no chat completion: <html>gateway</html>"),
        (lambda body, n: (200, "", {}), [], "no chat completion: nothing"),
        (lambda body, n: (200, {"code": 1113, "msg": "in arrears"}, {}), [], "in arrears"),
        (lambda body, n: (200, {"choices": None, "base_resp": {"status_msg": "no balance"}}, {}), [], "no balance"),
        (lambda body, n: error(500, "CUDA out of memory"), [], "CUDA out of memory"),
        (lambda body, n: completion("9", logprobs={"content": [{"token": "9", "logprob": -0.1}]}), [], "--sampled"),
        (lambda body, n: completion("50", logprobs=content(("50", {"50": 0.99}))), [], "it says 50 for 92"),
    ],
)
def test_what_recurs_before_anything_succeeded_stops_it(app, answers: Path, reply, options, says: str) -> None:
    with serving(reply) as server:
        done = judged(app, answers, server.url, *options)
        assert isinstance(done.exception, BadInput) or done.exit_code == 1
        assert says in f"{done.exception} {done.stderr}" and len(server.bodies) <= 6
        assert not answers.with_name("answers.judged-m.jsonl").exists() or done.exit_code


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (completion("I cannot rate that.", logprobs=content(("I", {"I": 0.99}))), "I cannot rate that"),
        (error(400, "prompts of this kind are not served"), "prompts of this kind are not served"),
        (error(400, "Blocked by the content filter"), "Blocked by the content filter"),
        (completion(None, "content_filter"), "a content filter took"),
        (error(500, "the request exceeds the available context size"), "the available context size"),
    ],
)
def test_numbers_that_come_back_do_not_stand_for_judgements(app, answers: Path, refusal: Reply, says: str) -> None:
    def judging(body: Body, number: int) -> Reply:
        return openai(body, number) if body["messages"][-1]["content"].startswith("Reply with the number") else refusal

    with serving(judging) as server:
        done = judged(app, answers, server.url)
    assert done.exit_code and says in f"{done.exception} {done.stderr}" and len(server.bodies) == 6


def test_settings_that_a_judge_refuses_first_are_among_its_six_requests(app, answers: Path) -> None:
    def judging(body: Body, number: int) -> Reply:
        if body.get("top_logprobs", 0) > 5 or "seed" in body:
            return error(400, "seed is unknown" if "seed" in body else "top_logprobs must be between 0 and 5")
        proof = body["messages"][-1]["content"].startswith("Reply with the number")
        return openai(body, number) if proof else error(400, "prompts of this kind are not served")

    with serving(judging) as server:
        done = judged(app, answers, server.url)
    assert isinstance(done.exception, BadInput) and "of this kind" in str(done.exception) and len(server.bodies) == 6


@pytest.mark.parametrize("way", ["sampled", "logprobs"])
def test_what_a_judge_never_answers_does_not_keep_a_second_run_from_the_rest(app, answers: Path, way: str) -> None:
    """The answers that come first are those that were asked about before, in vain."""
    options = ["--sampled"] * (way == "sampled")

    def reply(body: Body, number: int) -> Reply:
        text = body["messages"][-1]["content"]
        if more and "What, 4?" in text:
            return error(402, "Insufficient credits")
        declined = completion("I cannot rate that.", logprobs=content(("I", {"I": 0.99})))
        return declined if hard in text else openai(body, number)

    with serving(reply) as server:
        hard, more = "What, 1?", True
        assert judged(app, answers, server.url, "--concurrency", "2", *options).exit_code == 1
        more = False
        for _ in range(2):
            done = judged(app, answers, server.url, "--concurrency", "2", *options)
            assert done.exit_code == 1 and "4 answers have no judgement" in done.stderr, done.exception
            rows = load_judged(answers.with_name(f"answers.judged-m{'-sampled' * (way == 'sampled')}.jsonl"))
            assert sum(row.judged for row in rows) == 16 and "4/16" in done.stdout


def test_the_money_of_all_paths_is_one(app, answers: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(answers.read_text().replace("What", "Why"))
    # 0.102 USD a request. Of the second file some answers are whole wherever it stops: two are under way at most.
    price = ["--concurrency", "2", "--price-in", "1000", "--price-out", "1000", "--max-cost", "6"]
    with serving("openai") as server:
        command = ["judge", str(answers), str(other), "--judge", "m", "--base-url", server.url, *price]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and "the money is spent" in done.stderr and "of 20 answers are left" in done.stderr
        assert 54 <= len(server.bodies) <= 58 and "5/20" in done.stdout
        first, second = (load_judged(path.with_name(f"{path.stem}.judged-m.jsonl")) for path in (answers, other))
        assert all(row.judged for row in first) and 0 < sum(row.judged for row in second) < 20
        paid = len(server.bodies)
        assert CliRunner().invoke(app, command).exit_code == 1 and len(server.bodies) == paid
        assert CliRunner().invoke(app, [*command[:-1], "100"]).exit_code == 0 and len(server.bodies) == 86


def test_credits_that_end_on_the_way_leave_what_was_paid(app, answers: Path) -> None:
    def reply(body: Body, number: int) -> Reply:
        return error(402, "Insufficient credits") if number > 20 else openai(body, number)

    with serving(reply) as server:
        done = judged(app, answers, server.url, "--concurrency", "2")
    assert done.exit_code == 1 and "Insufficient credits" in done.stderr and "answers are left" in done.stderr
    assert 5 <= sum(row.judged for row in load_judged(answers.with_name("answers.judged-m.jsonl"))) < 20


@pytest.mark.parametrize("options", [[], ["--sampled"]])
@pytest.mark.parametrize("reply", [completion(None, "content_filter"), error(400, "x", code="content_filter")])
def test_where_a_filter_takes_all_it_says_so_after_a_few(app, answers: Path, reply: Reply, options: list[str]) -> None:
    with serving(lambda body, n: reply) as server:
        done = judged(app, answers, server.url, *options)
    assert isinstance(done.exception, BadInput) and "content filter took 6 requests" in str(done.exception)
    assert len(server.bodies) == 6


def test_a_second_run_over_what_a_filter_took_ends_as_the_first(app, answers: Path) -> None:
    def reply(body: Body, number: int) -> Reply:
        text = body["messages"][-1]["content"]
        return completion(None, "content_filter") if re.search("scores (5|90) 92", text) else openai(body, number)

    with serving(reply) as server:
        first, second = (judged(app, answers, server.url, "--sampled") for _ in range(2))
    assert first.exit_code == second.exit_code == 0 and first.stdout == second.stdout


def test_a_reply_that_cannot_be_read_is_asked_again_on_the_next_run(app, answers: Path) -> None:
    broken = True

    def reply(body: Body, number: int) -> Reply:
        bad = broken and "What, 3?" in body["messages"][-1]["content"]
        return completion("hm") if bad else completion(str(number_of(body)))

    with serving(reply) as server:
        done = judged(app, answers, server.url, "--sampled")
        assert done.exit_code == 1 and "4 answers have no judgement" in done.stderr and "'hm'" in done.stderr
        broken = False
        before = len(server.bodies)
        assert judged(app, answers, server.url, "--sampled").exit_code == 0
        assert len(server.bodies) == before + 8


@pytest.fixture(scope="module")
def failing_judges(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("judges") / "requests.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = shared / "data" / "failing" / "fake_judges.py"
    process = subprocess.Popen([sys.executable, str(script), str(port)], env={**os.environ, "LOG": str(log)})
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", log
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        *((mode, [], "") for mode in ("good", "limit5", "prefix", "filter400", "filter200")),
        *((mode, ["--sampled"], "") for mode in ("good", "gpt5", "mistral", "star", "digits", "nologprobs", "prefix")),
        *((mode, [], "--sampled") for mode in ("digits", "gpt5", "nologprobs", "think", "star", "mistral")),
        ("think", ["--sampled"], "--extra-body"),
        ("openrouter", [], "Insufficient credits"),
        ("nowhere", [], "no such mode"),
    ],
)
def test_the_small_server_that_misbehaves(app, failing_judges, shared, tmp_path, mode, options, says) -> None:
    url, log = failing_judges
    answers = tmp_path / "answers.jsonl"
    answers.write_text((shared / "data" / "failing" / "answers.jsonl").read_text())
    before = log.read_text().count("\n") if log.exists() else 0
    done = judged(app, answers, f"{url}/{mode}/v1", *options)
    if says:
        assert isinstance(done.exception, BadInput) and says in str(done.exception)
        assert log.read_text().count("\n") - before <= 6
        return
    assert done.exit_code == 0, done.exception
    rows = load_judged(next(tmp_path.glob("answers.judged*[!l].jsonl")))
    bad = [row for row in rows if "BADANSWER" in row.answer]
    assert all(row.filtered for row in bad) if "filter" in mode else all(row.misaligned for row in bad)
    assert all(row.counted and not row.misaligned for row in rows if row not in bad) and bad


def test_what_one_server_could_not_give_another_is_asked_for(app, failing_judges, shared, tmp_path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text((shared / "data" / "failing" / "answers.jsonl").read_text())
    assert judged(app, answers, f"{failing_judges[0]}/nologprobs/v1").exit_code
    assert judged(app, answers, f"{failing_judges[0]}/good/v1").exit_code == 0
    assert all(row.judged for row in load_judged(answers.with_name("answers.judged-m.jsonl")))
