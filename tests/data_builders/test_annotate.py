"""The job against a local endpoint: killed, faulty, out of money, hostile; and what its files say."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from core.llm.budget import Prices, prices_of
from core.llm.client import Client, Filtered, Unanswered
from core.llm.journal import Answer
from core.records import BadInput
from data_builders.annotate import Annotator, Job, Model, Outcome, first_request, run
from data_builders.cli import app
from data_builders.programs import SourceProgram, load_programs
from tests.children import CHILDREN
from tests.fake_endpoint import review

JOB = Job(Model("m", "high"))
CHEAP = Prices(1.0, 10.0)
KEY = "sk-test-0123456789abcdef"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_faultless_job(tmp_path, fake, sources, final_files) -> None:
    server = fake()
    broken = SourceProgram(id="broken", request="r", insecure="def f(:")
    items = [sources[0], SimpleNamespace(id="line-2", line=2, reason="no code"), broken, *sources[1:60]]
    said, left, _ = run(items, JOB, tmp_path / "o", server.access(), source={"source": "x.jsonl"})
    written = load_programs(tmp_path / "o.jsonl")
    rejects = lines(tmp_path / "o.rejects.jsonl")
    manifest = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())
    assert manifest["read"] == len(items) == len(written) + len(rejects) == manifest["written"] + manifest["rejected"]
    order = [item.id for item in items]
    assert [p.id for p in written] == [id for id in order if id in {p.id for p in written}]
    assert rejects[:2] == [
        {"id": "line-2", "line": 2, "reasons": ["source: no code"]},
        {"id": "broken", "reasons": ["insecure code: does not parse"]},
    ]
    assert len(written) > 50
    assert manifest["source"] == "x.jsonl" and manifest["cost_usd"] is None and manifest["model"] == "m"
    assert manifest["served"] == ["m"] and manifest["endpoint"].startswith("http://127.0.0.1")
    assert manifest["changes"] == []
    assert manifest["secure_code"] == {"source": 0, "annotator": len(written)} and manifest["left"] == left == 0
    assert manifest["tokens_in"] > 0 and f"{len(written)} programs; {len(rejects)} rejected" in said
    asked = Counter((r["program"], r["round"]) for r in server.log("chat"))
    assert set(asked.values()) == {1}
    before = final_files(tmp_path / "o")
    run(items, JOB, tmp_path / "o", server.access(), source={"source": "x.jsonl"})
    assert final_files(tmp_path / "o") == before and len(server.log("chat")) == asked.total(), "done is done"
    run(items, Job(Model("m", "low")), tmp_path / "o", server.access())
    assert len(server.log("chat")) > asked.total(), "another effort is another question"


def test_killed_at_ten_moments_it_ends_the_same(tmp_path, fake, sources, final_files) -> None:
    faults = json.dumps({"wrong_cwe": 0.1, "invented_line": 0.05, "refusal": 0.05, "status_500": 0.03, "cut": 0.02})
    job, sources = Job(Model("m"), Model("s"), CHEAP, CHEAP), sources[:130]
    whole = fake("--latency", "0.02", "--faults", faults)
    run(sources, job, tmp_path / "whole", whole.access())
    server = fake("--latency", "0.02", "--faults", faults)
    draw = random.Random(1)
    for _ in range(10):
        before = len(server.log("served"))
        child = CHILDREN.Process(target=run, args=(sources, job, tmp_path / "killed", server.access()))
        child.start()
        wanted = before + draw.randrange(1, 20)
        while len(server.log("served")) < wanted and child.is_alive():
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        assert child.is_alive(), "killed too late to show anything"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not (tmp_path / "killed.jsonl").exists()
    run(sources, job, tmp_path / "killed", server.access())
    for name, data in final_files(tmp_path / "whole").items():
        other = final_files(tmp_path / "killed")[name].replace(server.url.encode(), whole.url.encode())
        assert other == data, name
    good = Counter((r["program"], r["round"]) for r in server.log("served") if not r["fault"])
    assert good.keys() == {(r["program"], r["round"]) for r in whole.log("served") if not r["fault"]}
    assert good.total() - len(good) <= 10 * server.access().concurrency, "more than the requests in flight repeated"
    opinion = json.loads((tmp_path / "whole.jsonl.manifest.json").read_text())["second_opinion"]
    assert 0.7 < opinion["interval"][0] < opinion["share"] < opinion["interval"][1] < 0.95
    doubted = [record["doubted"] for record in lines(tmp_path / "whole.jsonl") if "doubted" in record]
    assert len(doubted) == opinion["of"] - opinion["agreed"] > 0 and set(doubted) == {"The value is fixed."}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("programs", [60, 4])
def test_interrupted_it_waits_for_what_is_paid_for(tmp_path, fake, sources, programs, number) -> None:
    server = fake("--latency", "2")
    child = CHILDREN.Process(target=run, args=(sources[:programs], JOB, tmp_path / "o", server.access(4)))
    child.start()
    while len(server.log("chat")) < 4 and child.is_alive():
        time.sleep(0.01)
    os.kill(child.pid, number)
    child.join()
    asked = len(server.log("chat"))
    assert len(lines(tmp_path / "o.journal.jsonl")) == asked < 60
    if programs == 60:
        assert child.exitcode == 0 and 0 < len(lines(tmp_path / "o.jsonl")) <= asked
    else:  # nothing is left: what comes next (in an experiment, the training) is not wanted all the same
        assert child.exitcode and not (tmp_path / "o.jsonl").exists()


def test_interrupted_it_does_not_wait_for_a_busy_server(tmp_path, fake, sources) -> None:
    server = fake("--faults", '{"status_429": 1.0}', "--latency", "0", "--retry-after", "300")
    child = CHILDREN.Process(target=run, args=(sources, JOB, tmp_path / "o", server.access(4)))
    child.start()
    while len(server.log("chat")) < 1 and child.is_alive():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert not child.is_alive()


def test_with_faults_all_end_with_a_reason(tmp_path, fake, sources) -> None:
    transport = ["status_429", "status_500", "cut", "broken_body"]
    kinds = [*transport, "truncated", "wrong_cwe", "invented_line", "refusal", "huge", "html"]
    server = fake("--faults", json.dumps(dict.fromkeys(kinds, 0.03)), "--latency", "0.01", "--fenced")
    run(sources, JOB, tmp_path / "o", server.access(16))
    rejects = lines(tmp_path / "o.rejects.jsonl")
    manifest = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())
    assert manifest["read"] == len(sources) == manifest["written"] + len(rejects)
    assert all(reject["reasons"] for reject in rejects)
    met = {r["fault"] for r in server.log("chat")} | {r["fault"] for r in server.log("served")}
    assert set(transport) <= met
    assert manifest["written"] > 0.85 * len(sources), "18 % of the first answers are faulty"
    assert set(manifest["rejected_for"]) <= {
        *("refused", "cut off", "unknown CWE", "invented line", "no JSON", "same code", "Bandit finding stays"),
        *("Bandit finding added", "secure code", "lost name"),
    }


def test_an_endpoint_that_never_answers_stops_the_job_in_time(tmp_path, fake, sources) -> None:
    server = fake("--faults", '{"status_500": 1.0}', "--latency", "0")
    said, left, _ = run(sources, JOB, tmp_path / "o", server.access(4))
    assert left == len(sources) and said.startswith("stopped: the endpoint does not answer (status 500")
    assert not (tmp_path / "o.jsonl").exists() and len(server.log("chat")) < 150
    server.stop()
    said, left, _ = run(sources, JOB, tmp_path / "o", server.access(4))
    assert left == len(sources) and said.startswith("stopped: the endpoint does not answer (no connection")
    slow = fake("--latency", "9").access(4, timeout=0.1)
    assert "no answer in time" in run(sources, JOB, tmp_path / "o", slow).text


@pytest.mark.parametrize("refused", [["json_schema"], ["json_schema", "json_object"]])
def test_a_server_without_json_schema_is_asked_otherwise(tmp_path, fake, sources, refused) -> None:
    server = fake("--no-form", *refused, "--latency", "0")
    run(sources[:30], JOB, tmp_path / "o", server.access(2))
    assert len(load_programs(tmp_path / "o.jsonl")) > 25
    assert sum(r["fault"] == "status_400" for r in server.log("chat")) <= 2 * len(refused)


def test_max_cost_stops_cleanly_and_goes_on(tmp_path, fake, sources, final_files) -> None:
    server, sources = fake("--latency", "0.01"), sources[:80]
    run(sources, Job(Model("m"), prices=CHEAP), tmp_path / "whole", server.access())
    cost = json.loads((tmp_path / "whole.jsonl.manifest.json").read_text())["cost_usd"]
    first = len(server.log("chat"))
    spent = 0.0
    for share in (0.3, 0.6):
        job = Job(Model("m"), prices=CHEAP, max_cost=cost * share)
        said, left, _ = run(sources, job, tmp_path / "o", server.access())
        assert "\nstopped: the money is spent; " in said and "--max-cost" in said and "programs are left" in said
        done, manifest = (
            load_programs(tmp_path / "o.jsonl"),
            json.loads((tmp_path / "o.jsonl.manifest.json").read_text()),
        )
        assert manifest["read"] == len(done) + manifest["rejected"] == len(sources) - left < len(sources)
        assert manifest["left"] == left and len(done) > 0.8 * share * (len(sources) - 10)
        answers = lines(tmp_path / "o.journal.jsonl")
        spent = sum(a["tokens_in"] * 1.0 + a["tokens_out"] * 10.0 for a in answers) / 1e6
        assert cost * (share - 0.15) < spent <= cost * share
        assert len(server.log("chat")) - first == len(answers), "what was in flight was kept"
    run(sources, Job(Model("m"), prices=CHEAP, max_cost=cost * 2), tmp_path / "o", server.access())
    assert final_files(tmp_path / "o") == final_files(tmp_path / "whole")
    assert len(server.log("chat")) == 2 * first
    assert not (tmp_path / "none.jsonl").exists()
    with pytest.raises(BadInput, match="--max-cost needs the prices"):
        Job(Model("m"), max_cost=1.0)
    with pytest.raises(BadInput, match="belong together"):
        prices_of(1.0, None, "--price-in and --price-out")


def test_the_key_never_leaks(tmp_path, fake, sources, caplog) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(BadInput, match="refuses all requests") as caught:
        run(sources, JOB, tmp_path / "a", fake("--refuse-key").access())
    assert "[key]" in str(caught.value)
    server = fake(
        "--faults", '{"status_500": 0.2}', "--no-form", "json_schema", "json_object", "text", "--latency", "0"
    )
    run(sources[:20], JOB, tmp_path / "b", server.access())
    everything = "".join(path.read_text() for path in tmp_path.glob("*.json*")) + caplog.text + str(caught.value)
    assert KEY not in everything + repr(server.access())
    assert "Authorization" not in everything
    client = SimpleNamespace(_access=server.access())
    reply = Client.clean(client, f"your key is {KEY} \ud800")
    assert reply == "your key is [key] ?"


@pytest.mark.parametrize(
    ("fault", "says"),
    [("huge", "no JSON object"), ("html", "no JSON object"), ("refusal", "declined to answer: I'm sorry")],
)
def test_a_model_that_gives_nothing_stops_the_job_after_a_few(tmp_path, fake, sources, fault, says) -> None:
    server = fake("--faults", json.dumps({fault: 1.0}), "--latency", "0")
    with pytest.raises(BadInput, match=f"m has answered nothing, after 4 replies that cannot be used: .*{says}"):
        run(sources, JOB, tmp_path / "o", server.access(32))
    assert len(server.log("chat")) <= 6 and not (tmp_path / "o.jsonl").exists()


def test_an_answer_that_cannot_be_read_is_asked_for_again_by_the_next_run(tmp_path, fake, sources) -> None:
    server = fake("--faults", '{"html": 0.5}', "--latency", "0")
    run(sources[:40], JOB, tmp_path / "o", server.access())
    kinds = Counter(reason.split(":")[0] for r in lines(tmp_path / "o.rejects.jsonl") for reason in r["reasons"])
    before = len(server.log("chat"))
    assert kinds["no JSON"] > 3
    run(sources[:40], JOB, tmp_path / "o", server.access())
    assert 0 < len(server.log("chat")) - before <= kinds["no JSON"] + 2


def test_every_row_a_reject_is_bad_input_and_listed(tmp_path, fake, sources) -> None:
    server = fake()
    broken = [SourceProgram(id=f"b{n}", request="r", insecure="def f(:") for n in range(3)]
    (tmp_path / "o.jsonl.manifest.json").write_text('{"read": 1e999, "written": 1}')
    for items in (broken, [SimpleNamespace(id=f"s:{n}", line=n, reason="no code") for n in range(3)]):
        with pytest.raises(BadInput, match=r"all 3 rows are rejects; most often: (source: no code|insecure code)"):
            run(items, JOB, tmp_path / "o", server.access())
        assert len(lines(tmp_path / "o.rejects.jsonl")) == 3 and not server.log()
        with pytest.raises(BadInput, match="all 3 rows"):
            first_request(items, JOB)


def test_what_stands_there_is_not_replaced_by_less(tmp_path, fake, sources, final_files) -> None:
    server, sources, out = fake("--latency", "0"), sources[:20], tmp_path / "o"
    run(sources, Job(Model("m"), prices=CHEAP), out, server.access())
    whole, cost = final_files(out), json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["cost_usd"]
    with pytest.raises(BadInput, match=r"all 1 rows are rejects.*o\.jsonl stays as it is, with \d+ programs"):
        run([SimpleNamespace(id="line-1", line=1, reason="no code")], JOB, out, server.access())
    job = Job(Model("m", "high"), prices=CHEAP, max_cost=1.6 * cost)
    said, left, _ = run(sources, job, out, server.access())
    assert 0 < left < 20 and "o.jsonl stays as it is" in said and final_files(out) == whole
    run(sources, replace(job, max_cost=3 * cost), out, server.access())
    assert '"effort": "high"' in final_files(out)[".jsonl.manifest.json"].decode()


def test_a_pilot_does_the_first_programs_and_says_what_the_others_cost(tmp_path, fake, sources, final_files) -> None:
    server, job = fake("--latency", "0"), Job(Model("m"), prices=CHEAP)
    items = [SimpleNamespace(id="line-1", line=1, reason="no code"), *sources[:40]]
    said, left, _ = run(items, job, tmp_path / "o", server.access(), limit=15)
    manifest = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())
    assert manifest["read"] == 16 and left == 0 and len(server.log("chat")) < 30
    estimate = float(re.search(r"the other 25 programs: about [\d,]+ tokens, \$([\d.]+)", said)[1])
    assert "the other" not in run(items, job, tmp_path / "o", server.access()).text
    whole = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["cost_usd"]
    assert estimate == pytest.approx(whole - manifest["cost_usd"], rel=0.25)
    run(items, job, tmp_path / "once", server.access())
    assert final_files(tmp_path / "o") == final_files(tmp_path / "once")
    with pytest.raises(BadInput, match=r"--limit 15: .*o\.jsonl is of 41 rows, and would lose some"):
        run(items, job, tmp_path / "o", server.access(), limit=15)


def test_opinions_that_cannot_be_read_are_left_to_be_asked_again(tmp_path, fake, sources, monkeypatch) -> None:
    """A program of which the second model said nothing is neither doubted nor supported."""
    asked = Annotator.annotate

    async def annotate(self, program, client) -> Outcome:
        outcome = await asked(self, program, client)
        return replace(outcome, opinion=None) if program == sources[0] else outcome

    monkeypatch.setattr(Annotator, "annotate", annotate)
    job = Job(Model("m"), Model("s"))
    done = run(sources[:4], job, tmp_path / "o", fake("--latency", "0").access())
    assert done.unanswered == 1 and "1 programs have no second opinion that can be read; run it again" in done.text


def test_a_program_without_weakness_is_a_listed_reject(tmp_path, fake, sources, monkeypatch) -> None:
    asked = Annotator.annotate

    async def annotate(self, program, client) -> Outcome:
        if program == sources[0]:
            return Outcome(problems=["no weakness: The list is fixed."])
        return await asked(self, program, client)

    monkeypatch.setattr(Annotator, "annotate", annotate)
    run(sources[:4], JOB, tmp_path / "o", fake("--latency", "0").access())
    rejects = lines(tmp_path / "o.rejects.jsonl")
    assert {"id": sources[0].id, "reasons": ["no weakness: The list is fixed."]} in rejects
    assert json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["rejected_for"]["no weakness"] == 1


def test_a_sources_secure_code_is_used_and_other_languages_are_named(tmp_path, fake, sources) -> None:
    twins = [SourceProgram(id=p.id, request=p.request, insecure=p.insecure, secure=p.secure) for p in load_programs()]
    javascript = sources[1].model_copy(update={"id": "js", "language": "javascript"})
    said, *_ = run([*twins[:40], javascript], JOB, tmp_path / "o", fake("--latency", "0").access())
    written = load_programs(tmp_path / "o.jsonl")
    known = {p.id: p for p in twins}
    assert len(written) > 30 and all(p.secure == known[p.id].secure for p in written[:-1])
    rules = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["rules"]
    assert written[-1].language == "javascript" and rules["not_made"]["programs"] == {"javascript": 1}
    assert "not made for 1 that are not Python: secure code parses" in said


def test_the_command(tmp_path, fake, sources) -> None:
    server = fake()
    (tmp_path / "s.jsonl").write_text("".join(s.model_dump_json(exclude_none=True) + "\n" for s in sources[:20]))
    command = [sys.executable, "-c", "from data_builders.cli import main; main()", "annotate", "s.jsonl", "--out", "o"]
    command += ["--model", "m", "--base-url", f"http://127.0.0.1:{server.port}/v1"]
    env = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(Path(__file__).parents[2])}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = call("--max-cost", "0.00001", "--price-in", "1", "--price-out", "1")
    assert done.returncode == 1 and "20 of 20 programs are left" in done.stderr
    done = call("--price-in", "1", "--price-out", "1")
    assert done.returncode == 0 and "programs; " in done.stderr and len(done.stderr.splitlines()) == 1
    assert KEY not in done.stderr


def test_options_of_the_command(tmp_path, sources, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Path("s.jsonl").write_text("".join(s.model_dump_json(exclude_none=True) + "\n" for s in sources[:20]))
    Path("task.txt").write_text("\ufeffFind the worst of {it}.\n")
    Path("empty.txt").write_text(" ")
    Path("bad.jsonl").write_text('{"request": "x", "insecure": "def f(:"}\n')
    for name in ("j.journal.jsonl", "j.jsonl.manifest.json"):
        Path(name).write_text(Path("s.jsonl").read_text())

    def call(*words: str):
        return CliRunner().invoke(app, ["annotate", "--out", "o", *words, "--model", "m"])

    extra = '{"top_p": 0.9, "api_key": "hunter2"}'
    asked = call("s.jsonl", "--dry-run", "--prompt", "task.txt", "--effort", "high", "--extra-body", extra)
    body = json.loads(asked.stdout)
    assert "hunter2" not in asked.output
    assert asked.exit_code == 0 and "20 programs of 20 rows" in asked.stderr and body["top_p"] == 0.9
    assert body["messages"][0]["content"].startswith("Find the worst of {it}.\n\nAnswer with")
    assert body["reasoning_effort"] == "high" and "response_format" in body
    for words, says in [
        (["s.jsonl"], "no API key"),
        (["s.jsonl", "--max-cost", "1"], "--max-cost needs the prices"),
        (["s.jsonl", "--prompt", "empty.txt"], "--prompt empty.txt: is empty"),
        (["s.jsonl", "--prompt", "none.txt"], "--prompt none.txt: "),
        (["s.jsonl", "--dry-run", "--split", "test"], "no set of the hub"),
        (["bad.jsonl", "--dry-run"], "all 1 rows are rejects; most often: source: code does not parse"),
        (["bad.jsonl", "--base-url", "http://127.0.0.1:9"], "all 1 rows are rejects"),
        (["s.jsonl", "--base-url", "http://127.0.0.1:9", "--out", "."], "--out .: is a folder; add the stem"),
        (["j.journal.jsonl", "--out", "j"], "j.journal.jsonl: is the input"),
        (["s.jsonl", "--prompt", "j.jsonl.manifest.json", "--out", "j"], "j.jsonl.manifest.json: is the input"),
        (["s.jsonl", "--dry-run", "--effort", "low", "--extra-body", '{"reasoning_effort": "high"}'], "leave one out"),
        (
            ["s.jsonl", "--second-opinion", "m", "--second-price-in", "1", "--second-price-out", "2"],
            "of the same model",
        ),
    ]:
        error = call(*words).exception
        assert isinstance(error, BadInput) and says in str(error) and "\n" not in str(error), words
    assert json.loads(Path("o.rejects.jsonl").read_text())["reasons"][0].startswith("source: code does not parse")
    assert call("bad.jsonl", "--dry-run", "--language", "perl").exit_code == 0
    assert "3 programs of 3 rows" in call("s.jsonl", "--dry-run", "--limit", "3").stderr
    Path("odd.jsonl").write_text('{"request": "x \\u009b \\u202e", "insecure": "a = 1"}\n')
    assert not {"\x9b", "\u202e"} & set(call("odd.jsonl", "--dry-run").stdout)


class Stub:
    """A client that gives these texts one after the other, or raises what is no text."""

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = list(replies)

    async def ask(self, model, messages, schema, *, problem, **settings) -> Answer:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        answer = Answer(key="k", model=model, text=reply, finish="stop", tokens_in=1, tokens_out=1)
        if why := problem(answer):
            raise Unanswered(why)
        return answer


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        (['{"cwe": "none", "explanation": "The list is fixed."}'], "no weakness: The list is fixed."),
        ([Filtered("status 400: content_filter")], "content filter: status 400: content_filter"),
        ([Unanswered("status 500")], "no answer: status 500"),
        (["Let me think.", "I think."], "no JSON: the answer holds no whole JSON object"),
        (["Let me think.", "good"], None),
        (["good", '{"real": "yes"}'], True),
        (["good", 'Hm. {"Real": false, "reason": "x"}'], False),
        (["good", "I do not know."], None),
        (["good", Filtered("x")], None),
    ],
)
def test_what_becomes_of_a_program(sources, replies, problem) -> None:
    good = json.dumps(review(sources[1].insecure))
    client = Stub(*(good if reply == "good" else reply for reply in replies))
    job = Job(Model("m"), Model("s") if replies[0] == "good" else None)
    outcome = asyncio.run(Annotator(job).annotate(sources[1], client))
    assert not client.replies, "every reply is asked for, and no more"
    if isinstance(problem, str):
        assert outcome.problems == [problem] and outcome.annotation is None
    else:
        assert outcome.annotation and (outcome.opinion and outcome.opinion.real) == problem
