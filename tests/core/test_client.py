"""The client: journaled answers first, one pause and one limit for all requests, form after form."""

import json
import socket
import socketserver
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from core.llm.budget import FIRST_GUESS, Money, Prices
from core.llm.client import Access, Client, Refused, Stopped, Unanswered, run_all
from core.llm.journal import Answer, Journal
from core.llm.replies import retry_after
from core.records import BadInput
from tests.personalities import completion, serving

KEY = "sk-test-0123456789abcdef"


def requests(number: int) -> list[Callable[[Client], Awaitable[Answer]]]:
    return [lambda client, n=n: client.ask("m", [{"role": "user", "content": str(n)}]) for n in range(number)]


def test_no_more_are_in_flight_than_may_be_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    in_flight: set[int] = set()
    most, four = 0, threading.Event()

    def reply(body: dict, n: int) -> tuple:
        nonlocal most
        in_flight.add(n)
        most = max(most, len(in_flight))
        if most == 4:
            four.set()
        if n:  # the first is alone, then each waits for the others
            four.wait(10)
            time.sleep(0.02)  # when a fifth would come
        in_flight.remove(n)
        return completion("ok")

    with serving(reply) as server:
        access = Access(KEY, server.url, 4)
        first = run_all(requests(30), access, tmp_path / "j.jsonl", Money({"m": None}), "requests")
        assert len({answer.key for answer in first}) == 30 and most == 4
        money = Money({"m": None})
        again = run_all(requests(30), access, tmp_path / "j.jsonl", money, "requests")
        assert again == first and len(server.bodies) == 30
    assert money.tokens_in == sum(answer.tokens_in for answer in first)


def test_the_endpoint_is_asked_on_while_answers_are_written(tmp_path: Path, fake, monkeypatch) -> None:
    server = fake("--latency", "0.02")
    asked: list[int] = []

    def slow(journal: Journal, data: bytes) -> None:
        time.sleep(0.3)
        asked.append(len(server.log("chat")))
        write(journal, data)

    write = Journal._write
    monkeypatch.setattr(Journal, "_write", slow)
    run_all(requests(12), server.access(4), tmp_path / "j.jsonl", Money({"m": None}), "requests")
    # The first is alone; then four are in flight, and the fifth follows them while they are written.
    assert asked[:2] == [1, 6]


def test_a_setting_that_differs_is_another_request(tmp_path: Path, fake) -> None:
    server = fake("--latency", "0")
    jobs = [
        lambda client, seed=seed: client.ask("m", [{"role": "user", "content": "x"}], seed=seed) for seed in (0, 1, 2)
    ]
    answers = run_all(jobs, server.access(1), tmp_path / "j.jsonl", Money({"m": None}), "requests")
    assert len({answer.key for answer in answers}) == len(server.log("chat")) == 3
    assert [entry["seed"] for entry in server.log("chat")] == [0, 1, 2]


def test_a_busy_reply_among_answers_makes_its_own_request_wait_and_one_after_the_other_all(tmp_path: Path) -> None:
    arrivals: list[tuple[str, float]] = []

    def reply(body, n):
        text = body["messages"][0]["content"]
        arrivals.append((text, time.monotonic()))
        busy = text in told and [seen for seen, _ in arrivals].count(text) == 1
        return (429, "{}", {"Retry-After": "2"}) if busy else completion("ok")

    for told, alone in ((["3"], True), (["3", "4"], False)):
        arrivals.clear()
        with serving(reply) as server:
            access = Access(KEY, server.url, 2)
            journal = tmp_path / f"{len(told)}.jsonl"
            run_all(requests(12), access, journal, Money({"m": None}), "requests")
        first = next(at for text, at in arrivals if text == "3")
        within = {text for text, at in arrivals if at < first + 1.8}
        assert (within == {str(n) for n in range(12)}) is alone


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
        ({"retry-after": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, None),
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
    with pytest.raises(BadInput, match="--base-url is empty"):
        Access.from_environment("MY_KEY", "", 1, 1.0)
    monkeypatch.setenv("MY_KEY", "sk-\u00fc")
    with pytest.raises(BadInput, match="characters") as caught:
        Access.from_environment("MY_KEY", None, 1, 1.0)
    assert "sk-" not in str(caught.value)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.llm.client.FIRST_WAIT", 0.005)


def ask(
    url: str, folder: Path, text: str = "0", timeout: float = 5.0, number: int = 1, money: Money | None = None
) -> list[str]:
    jobs = [lambda client, n=n: client.ask("m", [{"role": "user", "content": f"{text}{n}"}]) for n in range(number)]
    access = Access(KEY, url, 2, timeout)
    money = money or Money({"m": None})
    return [answer.text for answer in run_all(jobs, access, folder / "j.jsonl", money, "requests")]


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/v1/chat/completions/#x", "/v1/chat/completions"),
        ("/a%2Fb?api-version=1-preview&a=1&a=2&b=&c&d=x%2By", None),
    ],
)
def test_a_base_url_is_used_to_the_letter(tmp_path: Path, base: str, path: str | None) -> None:
    with serving(lambda body, n: completion("ok")) as server:
        assert ask(server.url.removesuffix("/v1") + base, tmp_path) == ["ok"]
    assert server.paths == [path or base.replace("?", "/chat/completions?")]


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000/v1", "http://h:99999", "http://h:port/v1", "http://[::1", "http://h\0"),
        "http://me:hunter2@h:port/v1?key=hunter2",
        *("http://me:p@hunter2@h:port/v1", "http://me:p/hunter2@h/v1", "me:hunter2@h/v1"),
    ],
)
def test_what_is_no_address_is_said_before_anything_is_sent(tmp_path: Path, url: str) -> None:
    for way in (lambda: ask(url, tmp_path), lambda: Access.from_environment("NONE", url, 1, 1.0)):
        with pytest.raises(BadInput, match="no address; give it as https://host/v1") as refused:
            way()
        assert "hunter2" not in str(refused.value)


SECRET = "a1/b+cdefgh="


@pytest.mark.parametrize(
    ("key", "before", "query", "extra", "form"),
    [
        (SECRET, "", "", {}, SECRET),
        (SECRET, "", "", {}, quote(SECRET)),
        (KEY, f"me:{quote(SECRET, safe='')}@", "", {}, SECRET),
        (KEY, f"me:{quote(SECRET, safe='')}@", "", {}, b64encode(f"me:{SECRET}".encode()).decode()),
        (KEY, "", f"?v=1&api-key={quote(SECRET)}", {}, quote(SECRET)),
        (KEY, "", "", {"data": [{"auth": {"token": SECRET}}]}, SECRET),
    ],
)
@pytest.mark.parametrize("status", [200, 301, 422])
def test_nothing_secret_that_a_server_repeats_is_told_or_kept(
    tmp_path: Path, status: int, key: str, before: str, query: str, extra, form: str
) -> None:
    headers = {"location": f"https://h/?{form}"} if status == 301 else {}
    reply = completion(f"of {form}") if status == 200 else (status, {"detail": f"of {form}"}, headers)
    with serving(lambda body, n: reply) as server:
        access = Access(key, server.url.replace("//", f"//{before}") + query, 1, 5.0, extra)
        try:
            told = run_all(requests(1), access, tmp_path / "j.jsonl", Money({"m": None}), "requests")[0].text
        except (BadInput, Refused, Stopped) as error:
            told = str(error)
    assert "[key]" in told and form not in told + (tmp_path / "j.jsonl").read_text()


def test_a_word_that_is_a_password_stays_in_answers(tmp_path: Path) -> None:
    """Else each `password` of insecure code would be another text, in the journal too."""
    with serving(lambda body, n: completion("password = input()")) as server:
        access = Access(KEY, server.url.replace("//", "//admin:password@"), 1, 5.0, {"prompt_cache_key": "insecure"})
        answers = run_all(requests(1), access, tmp_path / "j.jsonl", Money({"m": None}), "requests")
    assert answers[0].text == "password = input()"


def test_a_secret_in_the_extra_body_is_not_told(monkeypatch) -> None:
    given = '{"api_key": "sk-1", "max_tokens": 9, "data": [{"auth": {"key": "sk-2"}, "top_p": 1}], "seed": null}'
    access = Access.from_environment("NONE", "http://localhost/v1", 1, 1.0, given)
    hidden = {"api_key": "[secret]", "max_tokens": 9, "data": [{"auth": {"key": "[secret]"}, "top_p": 1}], "seed": None}
    assert access.told_body == hidden and access.extra_body == json.loads(given)
    monkeypatch.setenv("MY_KEY", "sk-3")
    access = Access.from_environment("MY_KEY", None, 1, 1.0, '{"user": "of sk-3", "credential": "x", "tag": "y"}')
    assert access.told_body == {"user": "[secret]", "credential": "[secret]", "tag": "y"}
    for number in ("NaN", "Infinity", "-1e400"):
        with pytest.raises(BadInput, match="give a JSON object"):
            Access.from_environment("MY_KEY", None, 1, 1.0, f'{{"temperature": {number}}}')


def test_a_byte_order_mark_before_a_response_is_no_part_of_it(tmp_path: Path) -> None:
    with serving(lambda body, n: (200, "\ufeff" + json.dumps(completion("ok")[1]), {})) as server:
        assert ask(server.url, tmp_path) == ["ok"]


def test_half_a_surrogate_pair_is_sent_as_it_is(tmp_path: Path) -> None:
    with serving(lambda body, n: completion("ok")) as server:
        assert ask(server.url, tmp_path, "a\ud800") == ["ok"]
    assert server.bodies[0]["messages"][0]["content"] == "a\ud8000"


def test_an_escape_hides_neither_the_key_nor_half_a_surrogate_pair(tmp_path: Path) -> None:
    """A journal can hold neither: half a pair would be paid for again by each run, and end it."""
    _, whole, _ = completion(f"you are {KEY} \ud800")
    reply = json.dumps(whole).replace(KEY, KEY.replace("-", "\\u002d"))
    assert KEY not in reply and "\\ud800" in reply
    with serving(lambda body, n: (200, reply, {})) as server:
        assert ask(server.url, tmp_path) == ask(server.url, tmp_path) == ["you are [key] ?"]
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "says", "most"),
    [
        ((302, "", {"Location": f"http://127.0.0.1:9/v1?{KEY}"}), r"moved to http://127.0.0.1:9/v1\?\[key\]", 1),
        ((308, "", {"Location": "/v2/chat/completions"}), "moved to /v2/chat/completions", 1),
        ((404, "<h1>Not Found</h1>", {}), "refuses all requests .*<h1>Not Found</h1>", 1),
        ((401, f"no such key {KEY}", {}), r"no such key \[key\]", 1),
        ((502, "<html>bad gateway</html>", {}), "status 502: <html>bad gateway</html>", 5),
        ((500, "", {}), "status 500", 5),
        ((400, "[" * 100_000, {}), r"status 400: \[\[", 1),
        ((204, "", {}), "no chat completion", 5),
        ((200, "plain text", {"Content-Encoding": "gzip"}), "no connection: .*decompressing", 5),
        ((200, "{}", {"Content-Length": "9"}), "no answer in time", 5),
    ],
)
@pytest.mark.usefixtures("_quick")
def test_a_response_that_is_no_answer_is_told_in_the_servers_words(tmp_path: Path, reply, says, most) -> None:
    with serving(lambda body, n: reply) as server, pytest.raises((BadInput, Stopped, Refused), match=says) as caught:
        ask(server.url, tmp_path, timeout=0.2 if says == "no answer in time" else 5.0)
    assert len(server.bodies) == most and KEY not in str(caught.value)


@pytest.mark.usefixtures("_quick")
def test_one_request_without_an_answer_does_not_end_the_others(tmp_path: Path) -> None:
    """Those in flight may have been lent all that is left: the lost one waits for what they give back."""
    money = Money({"m": Prices(1e4, 0.0)}, limit=3.5)

    def reply(body: dict, n: int) -> tuple:
        time.sleep(0.1)
        status, whole, headers = completion("ok")
        whole["usage"]["prompt_tokens"] = 10 if n else 100  # a dollar, which each is lent then; the others 0.1
        return (204, "", {}) if n == 2 else (status, whole, headers)

    with serving(reply) as server:
        assert ask(server.url, tmp_path, number=4, money=money) == ["ok"] * 4
    assert money.lost == 1 and len(server.bodies) == 5 and money.usd == pytest.approx(2.3)


@pytest.mark.parametrize(
    "reply",
    [
        (204, "", {}),
        (200, "{}", {"Content-Length": "9", "Connection": "close"}),
        (200, "plain text", {"Content-Encoding": "gzip"}),
    ],
)
@pytest.mark.usefixtures("_quick")
def test_what_brings_no_answer_is_taken_as_paid_for(tmp_path: Path, reply) -> None:
    """A server that is too slow, or cut off, has done the work: a limit of cost has to hold there too."""
    money = Money({"m": Prices(0.0, 1e6 / FIRST_GUESS)}, limit=3.0)  # a dollar each
    with serving(lambda body, n: reply) as server, pytest.raises(Stopped, match="the money is spent"):
        ask(server.url, tmp_path, money=money)
    assert len(server.bodies) == 3 and "3 requests without an answer taken as paid for" in str(money)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.usefixtures("_quick")
def test_what_has_not_come_to_a_server_is_free(tmp_path: Path, full: bool) -> None:
    money = Money({"m": Prices(1.0, 1.0)})
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # it takes no other
            if not full:
                server.close()
            with pytest.raises(Stopped, match="no connection"):
                ask(f"http://127.0.0.1:{port}/v1", tmp_path, timeout=0.2, money=money)
    assert money.lost == 0 and money.usd == 0


@pytest.mark.usefixtures("_quick")
def test_a_timeout_is_of_the_whole_response_and_the_connection_is_left(tmp_path: Path) -> None:
    class Drip(socketserver.StreamRequestHandler):
        first = True

        def handle(self) -> None:
            self.request.recv(100_000)
            drips, Drip.first = Drip.first, False
            text = b'{"choices": [{"finish_reason": "stop", "message": {"content": "ok"}}]}'
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text))
            for byte in text if drips else ():
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            self.wfile.write(text)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        start = time.monotonic()
        assert ask(f"http://127.0.0.1:{server.server_address[1]}/v1", tmp_path, timeout=0.4, number=3) == ["ok"] * 3
        assert time.monotonic() - start < 2.5, "the drip takes 3.5 s"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ALL_PROXY"),
        ("HTTP_PROXY", "ftp://me:hunter2@127.0.0.1:9", "ALL_PROXY"),
        ("HTTP_PROXY", "http://me:hunter2@bad:port", "no address; mend or unset them"),
        ("HTTP_PROXY", "http://me:hunter2/@127.0.0.1:9", "no address; mend or unset them"),
        ("SSL_CERT_FILE", "/there/is/none.pem", "SSL_CERT_FILE"),
        ("HTTP_PROXY", "http://127.0.0.1:9", "does not answer .no connection"),
    ],
)
@pytest.mark.usefixtures("_quick")
def test_proxies_of_the_environment_are_used_or_told_in_a_line(tmp_path: Path, monkeypatch, name, value, says) -> None:
    for one in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(one, raising=False)
        monkeypatch.delenv(one.lower(), raising=False)
    monkeypatch.setenv(name, value)
    with serving(lambda body, n: completion("ok")) as server:
        with pytest.raises((BadInput, Stopped), match=says) as caught:
            ask(server.url, tmp_path)
        assert not server.bodies and "\n" not in str(caught.value) and "hunter2" not in str(caught.value)
        if "does not answer" in says:
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            assert ask(server.url, tmp_path) == ["ok"]
