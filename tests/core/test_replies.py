"""What servers say, in each form that they say it in, and how a request is changed for it."""

import asyncio
import email.utils
import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import BaseModel

from core.llm.adapt import Adaptation
from core.llm.budget import Money, Prices, prompt_tokens
from core.llm.client import Access, Client, Filtered, Stopped, Unanswered, run_all
from core.llm.journal import Answer, Journal
from core.llm.replies import ServerError, read_completion, retry_after, server_error, without_reasoning
from core.records import BadInput
from tests.personalities import Body, Reply, completion, error, serving

BODY = {"model": "m", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
BODY |= {"max_tokens": 5, "temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": 20, "reasoning_effort": "low"}
BODY["response_format"] = {"type": "json_schema", "json_schema": {}}


SYSTEM = ["system prompt in the user's turn"]
RENAMED = ["max_tokens as max_completion_tokens"]


@pytest.mark.parametrize(
    ("status", "content", "changes"),
    [
        (400, {"statusCode": 400, "error": "Bad Request", "message": ["seed should not exist"]}, ["without seed"]),
        (400, {"error": None, "message": "Unknown parameter: seed"}, ["without seed"]),
        (422, {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Input should be 'user'"}]}, SYSTEM),
        (400, {"error": {"message": "messages.0.role: must be one of user, assistant"}}, SYSTEM),
        (400, {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}, RENAMED),
        (400, {"error": {"message": "Only 1 is supported", "param": "temperature"}}, ["without temperature"]),
        (400, "Unknown name \"seed\": Cannot find field.", ["without seed"]),
        (400, "logprobs are not supported with gpt-5-mini", ["without logprobs"]),
        (400, "top_logprobs must be between 0 and 5", ["top_logprobs as 5"]),
        (400, {"message": "Requested sample logprobs of 20, max allowed: 10", "code": 400}, ["top_logprobs as 10"]),
        (400, {"error": "unknown field reasoning_effort"}, ["without reasoning_effort"]),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, ["without seed"]),
        (422, {"message": {"detail": [{"loc": ["body", name]} for name in ("seed", "logprobs")]}},
         ["without logprobs", "without seed"]),
        (400, "Unknown field seed. Allowed fields: model, temperature, max_tokens", ["without seed"]),
        (400, "System role not supported", SYSTEM),
        (400, "Conversation roles must alternate user/assistant", SYSTEM),
        (400, "messages[0].role: does not support 'system' with this model", SYSTEM),
        (400, "'response_format.type' must be 'text'", ["response_format as json_object"]),
        (500, {"error": {"message": "failed to parse grammar"}}, ["response_format as json_object"]),
        (400, "logprobs: Input should be a valid integer", ["logprobs as 20"]),
        (400, "I do not like it", ["response_format as json_object"]),
        (500, {"error": {"message": "seed of evil"}}, []),
        (400, {"error": {"message": "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 5.",
                         "param": "top_logprobs"}}, ["top_logprobs as 5"]),
        (400, "Logprobs is not enabled for models/gemini-2.5-flash", ["without logprobs"]),
        (400, "Seed is not supported with this model", ["without seed"]),
        (400, "No argument seed. Supported arguments: model, temperature, logprobs, response_format", ["without seed"]),
        (422, "unknown field `seed`, expected one of `model`, `temperature`, `logprobs`, `response_format`",
         ["without seed"]),
        (400, f"top_logprobs must be 5 or less, not {'9' * 5000}", ["top_logprobs as 5"]),
        (400, "The model cannot do that", ["response_format as json_object"]),
        (400, [{"error": {"message": 'Invalid JSON payload. Unknown name "seed"'}}], ["without seed"]),
        (400, {"error": "seed with a json_schema is refused"}, ["response_format as json_object", "without seed"]),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_changed(status, content, changes) -> None:
    adaptation = Adaptation()
    adaptation.change(BODY, server_error(status, content), again=False)
    assert list(adaptation) == changes
    body = adaptation.body(BODY)
    assert ("top_logprobs" in body) <= (body.get("logprobs") is True)
    proved = Adaptation()
    proved.worked(BODY)
    proved.change(BODY, server_error(status, content), again=True)
    assert list(proved) == [], "what has worked is not given up for one refusal"


def test_changes_add_up() -> None:
    adaptation = Adaptation()
    for message in (
        "top_logprobs must be at most 5",
        "top_logprobs: unknown",
        "max_tokens",
        "max_completion_tokens",
        "system role",
    ):
        adaptation.change(adaptation.body(BODY), ServerError(400, message), again=False)
    body = adaptation.body(BODY)
    assert not body.keys() & {"max_tokens", "max_completion_tokens", "top_logprobs"} and body["logprobs"] is True
    assert body["messages"] == [{"role": "user", "content": "S\n\nU"}]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nIs it 5?\n</think>\n\n92", "92"),
        ("Is it 5?</think>92", "92"),
        ("<think>never ends", ""),
        ("<Thinking>x</Thinking> 92", "92"),
        ("[THINK]x[/THINK]92", "92"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>92", "92"),
        ('{"code": "a</think>b"}', '{"code": "a</think>b"}'),
        ("A <think> in the middle", "A <think> in the middle"),
        ("<think></think><think>5?</think>92", "92"),
        ("<seed:think>5?</seed:think>92", "92"),
        ("<analysis>5?</analysis> 92", "92"),
        ("5?[/THINK]92", "92"),
        ("[/THINK]92", "92"),
        ("92\n<reason>It is kind.</reason>", "92\n<reason>It is kind.</reason>"),
    ],
)
def test_reasoning_is_no_part_of_the_answer(text: str, answer: str) -> None:
    assert without_reasoning(text) == answer


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"message": "no credit", "code": 402}}, 402),
        ({"error": {"message": "slow", "code": "429"}, "choices": None}, 429),
        ({"object": "error", "message": "gone", "code": 404}, 404),
        ({"error": "overloaded"}, 500),
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429),
        ({"choices": [{"error": {"message": "no", "code": "content_filter"}}]}, 400),
        ({"error": {"message": "upstream", "code": 502}, "choices": [{"message": {"content": "9"}}]}, 502),
        ({"choices": [{"error": {"message": "upstream", "code": 502}, "message": {"content": "half"}}]}, 502),
        ({"choices": [{"finish_reason": "error", "message": {"content": "half"}}]}, 500),
    ],
)
def test_an_error_of_status_200_is_one(body, status: int) -> None:
    with pytest.raises(ServerError) as caught:
        read_completion(body)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "x", {}, {"choices": []}, {"choices": [{"message": None}]}),
        {"choices": [{"message": {"content": 5}}]},
    ],
)
def test_what_is_no_completion_is_none(body) -> None:
    with pytest.raises(ValueError):
        read_completion(body)


def test_parts_and_logprobs_in_their_forms() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "5?"}]}, {"type": "text", "text": "9"}, "2"]
    assert read_completion(completion(parts)[1]).text == "92"
    thoughts = [{"type": "reasoning", "text": "5?"}, {"text": "7?", "thought": True}, {"type": "text", "text": "92"}]
    assert read_completion(completion(thoughts)[1]).text == "92"
    assert {read_completion(completion("9", end)[1]).finish for end in ("MAX_TOKENS", "model_length")} == {"length"}
    assert read_completion({"choices": [{"finish_reason": "length", "message": None}]}).finish == "length"
    refusal = {"content": None, "refusal": [{"type": "text", "text": "no"}]}
    assert read_completion({"choices": [{"message": refusal}]}).text == "no"
    legacy = {"tokens": ["92"], "token_logprobs": [-0.1], "top_logprobs": [{"92": -0.1, "90": None}]}
    assert read_completion(completion("92", logprobs=legacy)[1]).logprobs == [("92", {"92": -0.1})]
    assert read_completion(completion("92", logprobs={"content": [], **legacy})[1]).logprobs == [("92", {"92": -0.1})]
    twice = [{"token": t, "logprob": p} for t, p in (("92", -0.1), ("92", -7.0), ("90", 0.001))]
    content = {"content": [{"token": "92", "logprob": -0.1, "top_logprobs": twice}]}
    assert read_completion(completion("92", logprobs=content)[1]).logprobs == [("92", {"92": -0.1, "90": 0.0})]
    alone = {"content": [{"token": "92", "logprob": -0.1, "top_logprobs": []}]}
    assert read_completion(completion("92", logprobs=alone)[1]).logprobs == [("92", {})]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 312}, (10, 302)),
        ({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}, (10, 2)),
        ({"completion_tokens": 2, "total_tokens": 312}, (0, 2)),
        ({"prompt_tokens": 10, "completion_tokens": 302}, (10, 302)),
        ({"prompt_tokens": 10**400, "completion_tokens": 2}, (10**9, 2)),
        ({"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -1}, (0, 0)),
        *((usage, (0, 0)) for usage in (None, [1], "many")),
        ({"prompt_tokens": "many", "completion_tokens": "50"}, (0, 50)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf"), "total_tokens": []}, (0, 0)),
    ],
)
def test_tokens_of_thoughts_are_paid_for_wherever_they_are_counted(usage, tokens: tuple[int, int]) -> None:
    found = read_completion({**completion("92")[1], "usage": usage})
    assert (found.tokens_in, found.tokens_out) == tokens


@pytest.mark.parametrize("no_number", [float("-inf"), float("nan"), None])
def test_a_logprob_that_is_no_number_is_left_out_and_the_journal_can_be_read(no_number, tmp_path: Path) -> None:
    top = [{"token": "92", "logprob": -0.1}, {"token": "x", "logprob": no_number}]
    logprobs = {"content": [{"token": "92", "logprob": -0.1, "top_logprobs": top}]}
    found = read_completion(completion("92", logprobs=logprobs)[1])
    assert found.logprobs == [("92", {"92": -0.1})]
    with closing(Journal(tmp_path / "j.jsonl")) as journal:
        asyncio.run(journal.append(Answer(key="k", model="m", **found._asdict())))
    with closing(Journal(tmp_path / "j.jsonl")) as journal:
        assert [answer.logprobs for answer in journal.answers["k"]] == [found.logprobs]


@pytest.mark.parametrize(
    "shape",
    [
        [{"token": "92", "logprob": -0.1, "top_logprobs": []}],
        {"content": [{"token": "92", "top_logprobs": {"92": -0.1}}]},
        {"content": [{"text": "92"}]},
        {"content": [{"token": "92", "top_logprobs": [{"token": "92", "logprob": 10**400}]}]},
        {"tokens": ["92"], "top_logprobs": [{"92": "much"}]},
        "none",
    ],
)
def test_log_probabilities_of_another_shape_are_none_and_the_answer_is_read(shape) -> None:
    found = read_completion(completion("92", logprobs=shape)[1])
    assert found.text == "92" and found.logprobs is None


def test_a_wait_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    assert 85 < (retry_after({"retry-after": date}) or 0) <= 90
    assert retry_after({"retry-after": "inf"}) is None


def ask(reply, folder: Path, number: int = 1, **settings):
    with serving(reply) as server:
        job = lambda client, n=0: client.ask("m", [{"role": "user", "content": str(n)}], **settings)  # noqa: E731
        jobs = [lambda client, n=n: job(client, n) for n in range(number)]
        access = Access("sk-0123456789", server.url, 4)
        return run_all(jobs, access, folder / "j.jsonl", Money({"m": None}), "requests"), server.bodies


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits as they are wanted; each passes at once."""
    now, wanted = [0.0], []

    async def skip(_client: Client, seconds: float) -> None:
        wanted.append(seconds)
        now[0] += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr("core.llm.client.Client._wait", skip)
    monkeypatch.setattr("core.llm.client.time.monotonic", lambda: now[0])
    return wanted


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "60"}, {"retry-after-ms": "60000"}, {"Retry-After": "280"}])
def test_a_window_of_minutes_ends_in_waiting(tmp_path: Path, waits: list[float], headers: dict[str, str]) -> None:
    def reply(body: Body, number: int) -> Reply:
        return (429, {"error": {"message": "Rate limit reached"}}, headers) if number < 6 else completion("x")

    (answer,), bodies = ask(reply, tmp_path)
    assert answer.text == "x" and len(bodies) == 7 and 60 < sum(waits) <= 6 * 280 + 60


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(Stopped, match=r"no answer for 30 minutes .*Too many"):
        ask(lambda body, n: error(429, "Too many"), tmp_path)
    assert 1800 < sum(waits) < 2400


class Kind(BaseModel):
    word: str


def test_a_schema_that_breaks_the_server_is_wanted_otherwise(tmp_path: Path, waits: list[float], capsys) -> None:
    def reply(body: Body, _: int) -> Reply:
        form = body.get("response_format", {}).get("type")
        return error(500, "internal error") if form == "json_schema" else completion('{"word": "x"}')

    answers, bodies = ask(reply, tmp_path, 6, schema=Kind)
    assert len(answers) == 6 and len(bodies) == 8
    assert {answer.changes for answer in answers} == {("response_format as json_object",)}
    assert capsys.readouterr().err.count("response_format as json_object: status 500: internal error") == 1


WAYS = ("SAFETY", "sensitive", "content_filter: PROHIBITED_CONTENT", "content_filtered", "guardrail_intervened")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
        (403, {"code": "permission-denied", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK"}),
        (400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."}),
        (400, {"error": {"code": "InputTextSensitiveContentDetected", "message": "The request failed"}}),
        (200, {"error": {"code": "content_filter", "message": "blocked"}}),
    ],
)
def test_a_filter_is_known_by_its_servers_words(status: int, content) -> None:
    assert server_error(status, content).filtered


@pytest.mark.parametrize(
    ("content", "refuses"),
    [
        ({"error": {"message": "Your account is suspended", "type": "exceeded_current_quota_error"}}, True),
        ({"error": {"message": "Insufficient balance", "code": "1113"}}, True),
        ({"error": {"message": "You exceeded your current quota, please check your plan", "code": 429}}, False),
        ({"error": {"message": "Insufficient capacity now, retry"}}, False),
    ],
)
def test_credit_that_is_gone_is_no_rate_limit(content, refuses: bool) -> None:
    error = server_error(429, content)
    assert error.refuses_all == refuses and error.busy


def test_a_filter_is_told_apart_and_is_no_answer(tmp_path: Path) -> None:
    async def job(client: Client) -> str:
        try:
            return (await client.ask("m", [{"role": "user", "content": "x"}])).text
        except Filtered:
            return "filtered"

    journal = tmp_path / "j.jsonl"
    assert {read_completion(completion("", way)[1]).finish for way in WAYS} == {"content_filter"}
    for reply in (completion(None, "content_filter"), error(400, "x", code="content_filter"), completion("now")):
        with serving(lambda body, n, reply=reply: reply) as server:
            found = run_all([job], Access("none", server.url, 1), journal, Money({"m": None}), "requests")
        assert found == ["now" if reply[0] == 200 and reply[1]["choices"][0]["message"]["content"] else "filtered"]
    assert [json.loads(line)["finish"] for line in journal.open()] == ["content_filter", "stop"]


def test_an_answer_that_cannot_be_used_is_paid_for_and_asked_again(tmp_path: Path) -> None:
    def problem(answer: Answer) -> str:
        return "" if answer.text == "good" else "bad"

    def reply(body: Body, number: int) -> Reply:
        return completion("good" if number % 3 == 2 else "bad")

    answers, bodies = ask(reply, tmp_path, seed=0, problem=problem, attempts=3)
    assert answers[0].text == "good" and [body["seed"] for body in bodies] == [0, 1, 2]
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 3
    with pytest.raises((Unanswered, BadInput), match="bad"):
        ask(lambda body, n: completion("bad"), tmp_path, problem=problem, temperature=1)


@pytest.mark.parametrize("url", ["{}/chat/completions", "{}/", "{}?api-version=2024-10-21"])
def test_addresses_as_they_are_copied(tmp_path: Path, url: str) -> None:
    with serving(lambda body, n: completion("x")) as server:
        job = lambda client: client.ask("m", [{"role": "user", "content": "x"}])  # noqa: E731
        access = Access("none", url.format(server.url), 1)
        assert run_all([job], access, tmp_path / "j.jsonl", Money({"m": None}), "requests")[0].text == "x"


@pytest.mark.parametrize("text", ["x", "[]", '{"model": "y"}', '{"stream": true}', "{'api_key': 'hunter2'}"])
def test_an_extra_body_is_an_object_of_other_fields(text: str) -> None:
    with pytest.raises(BadInput, match="--extra-body") as refused:
        Access.from_environment("NONE", "http://localhost/v1", 1, 1.0, text)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        *(("x" * 400, usage) for usage in (None, {"prompt_tokens": 100}, {"completion_tokens": "many"})),
        ("x", {"completion_tokens": 101}),
    ],
)
def test_a_server_that_does_not_count_tokens_is_paid_by_estimate(tmp_path: Path, text: str, usage) -> None:
    def reply(body: Body, _: int) -> Reply:
        status, content, headers = completion(text)
        return status, {**content, "usage": usage}, headers

    money = Money({"m": Prices(10.0, 10.0)}, 0.007)
    with serving(reply) as server, pytest.raises(Stopped, match="the money is spent"):
        jobs = [lambda client, n=n: client.ask("m", [{"role": "user", "content": f"{n:400}"}]) for n in range(10)]
        run_all(jobs, Access("none", server.url, 4), tmp_path / "j.jsonl", money, "requests")
    assert len(server.bodies) == 3 and 0.006 <= money.usd <= 0.007


def test_a_prompt_in_another_script_is_not_taken_for_a_third_of_its_price() -> None:
    texts = ("word" * 100, "\u6f22" * 400, "\ud800" * 4)
    assert [prompt_tokens({"messages": [{"content": text}]}) for text in texts] == [100, 300, 1]


@pytest.mark.parametrize("url", ["localhost:8000/v1", "https://", "http://[", "ftp://host/v1"])
def test_what_is_no_address_is_told_at_once(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadInput, match="give it as https://host/v1"):
        run_all([], Access("none", url, 1), tmp_path / "j.jsonl", Money({"m": None}), "requests")
