"""The client: journaled answers first, one pause and one limit for all requests, form after form."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core.llm.budget import Money
from core.llm.client import Access, Client, Refused, Unanswered, run_all
from core.llm.journal import Answer
from core.llm.replies import retry_after
from core.records import BadInput


def requests(number: int) -> list[Callable[[Client], Awaitable[Answer]]]:
    return [lambda client, n=n: client.ask("m", [{"role": "user", "content": str(n)}]) for n in range(number)]


def test_no_more_are_in_flight_than_may_be_and_nothing_is_asked_twice(tmp_path: Path, fake) -> None:
    server = fake("--latency", "0.02")
    first = run_all(requests(30), server.access(3), tmp_path / "j.jsonl", Money({"m": None}), "requests")
    assert len({answer.key for answer in first}) == 30
    in_flight, most = 0, 0
    for entry in server.log():
        in_flight += 1 if entry["kind"] == "chat" else -1
        most = max(most, in_flight)
    assert most == 3
    money = Money({"m": None})
    again = run_all(requests(30), server.access(3), tmp_path / "j.jsonl", money, "requests")
    assert again == first and len(server.log("chat")) == 30
    assert money.tokens_in == sum(answer.tokens_in for answer in first)


def test_a_setting_that_differs_is_another_request(tmp_path: Path, fake) -> None:
    server = fake("--latency", "0")
    jobs = [
        lambda client, seed=seed: client.ask("m", [{"role": "user", "content": "x"}], seed=seed) for seed in (0, 1, 2)
    ]
    answers = run_all(jobs, server.access(1), tmp_path / "j.jsonl", Money({"m": None}), "requests")
    assert len({answer.key for answer in answers}) == len(server.log("chat")) == 3
    assert [entry["seed"] for entry in server.log("chat")] == [0, 1, 2]


def test_a_wait_that_one_request_is_told_holds_for_all(tmp_path: Path, fake) -> None:
    server = fake("--faults", '{"status_429": 0.4}', "--retry-after", "0.6", "--latency", "0")
    run_all(requests(16), server.access(4), tmp_path / "j.jsonl", Money({"m": None}), "requests")
    told = [entry["time"] for entry in server.log("chat") if entry["fault"]]
    assert len(told) > 3
    # Those that were under way arrive at once; all others wait.
    arrivals = [entry["time"] for entry in server.log("chat")]
    assert not [time for time in arrivals if any(start + 0.3 < time < start + 0.55 for start in told)]


def test_a_request_that_is_refused_stops_nobody(tmp_path: Path, fake) -> None:
    server = fake("--latency", "0")
    reasons: list[Unanswered] = []

    async def refused(client: Client) -> None:
        try:
            await client.ask("m", [{"role": "user", "content": "refuse this"}])
        except Unanswered as error:
            reasons.append(error)

    jobs = [*requests(1), *[refused] * 12]
    assert run_all(jobs, server.access(2), tmp_path / "j.jsonl", Money({"m": None}), "requests")[1:] == [None] * 12
    assert all(isinstance(reason, Refused) and "status 400" in str(reason) for reason in reasons) and len(reasons) == 12
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5", "retry-after-ms": "200"}, 0.2),
        ({"retry-after": "Fri, 01 Jan 2021 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_every_form(headers, seconds) -> None:
    assert retry_after(headers) == seconds


def test_a_key_is_only_needed_for_openai(monkeypatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(BadInput, match="MY_KEY"):
        Access.from_environment("MY_KEY", None, 1, 1.0)
    assert Access.from_environment("MY_KEY", "http://localhost/v1", 1, 1.0).key == "none"
    monkeypatch.setenv("MY_KEY", "sk-\u00fc")
    with pytest.raises(BadInput, match="characters") as caught:
        Access.from_environment("MY_KEY", None, 1, 1.0)
    assert "sk-" not in str(caught.value)
