"""A client of OpenAI-compatible endpoints: journaled answers first, then paid ones, within limits of rate and money.

Nothing that a server says reaches the caller before the key, and what else is secret, has been struck out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

from pydantic import BaseModel
from pydantic_core import from_json

from core.llm.adapt import Adaptation, json_schema, response_format
from core.llm.budget import Money, Spent, prompt_tokens
from core.llm.journal import Answer, Journal
from core.llm.replies import FILTERED, Completion, ServerError, read_completion, retry_after, server_error
from core.records import BadInput, digest, one_line

T = TypeVar("T")
Message = dict[str, str]

OPENAI = "https://api.openai.com/v1"
RETRIES = 7
FEW = 4
"""Refusals or unreadable replies of a model that has answered nothing yet: then the job stops."""
MOST = 6
"""Requests to such a model in all, those for proofs and with settings that it refuses included."""
FILTERS = 3
"""Of them, what a content filter took away: fewer may be the fault of the answers that are judged."""
FAILURES_IN_A_ROW = 5
"""Requests in a row without an answer, each after all its attempts: then the endpoint counts as down."""
SPENT, INTERRUPTED = "the money is spent", "interrupted"
SECRET = "key|token|secret|password|auth|bearer|credential|sig"
"""What the name of a field or parameter has in it that may hold one."""
FIRST_WAIT, LONGEST_WAIT, LONGEST_PAUSE = 0.5, 8.0, 600.0
"""Seconds before the first and the last repetition, and that a busy server is given at most at a time."""
PATIENCE = 1800.0
"""Seconds without any answer after which a busy server is given up."""


class Unanswered(Exception):
    """A request got no answer that could be used; the message says why. The next run sends it again."""


class Unreachable(Unanswered):
    """Every attempt failed."""


class Refused(Unanswered):
    """The server refuses this request; sending it again would be no use."""


class Filtered(Refused):
    """A content filter took the request or the answer away."""


class Stopped(Exception):
    """No request is sent any more; the message says why."""

    results: Sequence[Any] = ()
    """From `run_all`: what each job returned; None for those that are left."""


@dataclass(frozen=True)
class Access:
    """Where and how an endpoint is reached."""

    key: str = field(repr=False)
    base_url: str | None
    concurrency: int
    """Requests in flight at most."""
    timeout: float = 600.0
    """Seconds that one attempt may take."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every request gets; one that is None is left out of it."""

    @classmethod
    def from_environment(
        cls, variable: str, base_url: str | None, concurrency: int, timeout: float, extra_body: str | None = None
    ) -> Access:
        """Takes the key from an environment variable; a server of one's own may need none. BadInput if there is none
        for OpenAI's endpoint, the address is empty, or `extra_body` is no JSON object."""
        if base_url == "":  # an unset variable of a shell must not send one's data to OpenAI
            raise BadInput("--base-url is empty: name a server, or leave it out for OpenAI's")
        key = os.environ.get(variable, "").strip()
        if not key and base_url is None:
            raise BadInput(f"no API key: set the environment variable {variable}, or name a server with --base-url")
        if not key.isascii() or not key.isprintable():
            raise BadInput(f"the API key in {variable} holds characters that no key has; set it again")
        try:
            extra = from_json(extra_body or "{}")
            json.dumps(extra, allow_nan=False)  # 1e400 is Infinity too
        except ValueError:
            extra = None
        if not isinstance(extra, dict) or extra.keys() & {"model", "messages", "stream", "n"}:
            # What was given is not told: it may hold a key.
            raise BadInput("--extra-body: give a JSON object of further fields of the request")
        access = cls(key or "none", base_url, concurrency, timeout, extra_body=extra)
        _ = access.url  # what is none must not be told by the judge, hours after the training that it waited for
        return access

    @cached_property
    def url(self) -> str:
        """The address of chat completions there; BadInput if it is none."""
        from httpx2 import URL, InvalidURL  # openai's transport

        try:
            parts = urlsplit(self.base_url or OPENAI)
            path = parts.path.removesuffix("/").removesuffix("/chat/completions")
            url = urlunsplit(parts._replace(path=f"{path}/chat/completions", fragment=""))
            if URL(url).scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError
        except (ValueError, InvalidURL):
            given = re.sub(r"(?s)^.*@|\?.*", "", self.base_url or "")
            raise BadInput(f"--base-url {one_line(given)}: no address; give it as https://host/v1") from None
        return url

    @cached_property
    def secrets(self) -> list[str]:
        """The key, and what may be one in the address and in `extra_body`, in each form in which a server may repeat
        it; the longest first. Shorter ones than of 8 characters are stand-ins ("none") and may be words of an answer.
        """
        parts = urlsplit(self.url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        asked = [{name: value} for name, value in parse_qsl(parts.query)]
        plain = [self.key, password, *_secrets("", [self.extra_body, asked])]
        plain.append(b64encode(f"{user}:{password}".encode()).decode() if password else "")  # as HTTP sends it
        forms = {form for text in plain for form in (text, quote(text), quote(text, safe=""), quote_plus(text))}
        return sorted((form for form in forms if len(form) >= 8), key=len, reverse=True)

    @cached_property
    def secrets_of_answers(self) -> list[str]:
        """Those that are struck out of answers too: all but words, which an answer may have of its own (`password`)."""
        return [text for text in self.secrets if text == self.key or re.fullmatch(r"(?=\D*\d)\S+", text)]

    @property
    def endpoint(self) -> str:
        """The server's address without what may be secret in it, or changes with each start (the port)."""
        parts = urlsplit(self.base_url or OPENAI)
        return urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))

    def request_key(self, request: Mapping[str, Any], schema: type[BaseModel] | None) -> str:
        """What the journal knows a request by, which `schema` and `extra_body` are a part of."""
        extra = [dict(self.extra_body)] if self.extra_body else []
        return digest(json.dumps([request, schema and json_schema(schema), *extra], sort_keys=True).encode())[:32]

    @property
    def told_body(self) -> dict[str, Any]:
        """`extra_body` without what may be secret in it: some servers take keys there."""
        return {name: _told(name, value, self.key) for name, value in self.extra_body.items()}


def _secrets(name: str, value: Any) -> Iterator[str]:
    """The texts that stand under the name of a secret."""
    if isinstance(value, Mapping):
        for own, part in value.items():
            yield from _secrets(own, part)
    elif isinstance(value, list):
        for part in value:
            yield from _secrets(name, part)
    elif isinstance(value, str) and re.search(SECRET, name, re.I):
        yield value


def _told(name: str, value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {own: _told(own, part, key) for own, part in value.items()}
    if isinstance(value, list):
        return [_told(name, part, key) for part in value]
    secret = isinstance(value, str) and (re.search(SECRET, name, re.I) or (key != "none" and key in value))
    return "[secret]" if secret else value


def not_empty(answer: Answer) -> str:
    """What is wrong with an answer of any kind: nothing but that it is empty."""
    if answer.text.strip():
        return ""
    cut = "; it was cut off while reasoning: allow more tokens with --extra-body" if answer.finish == "length" else ""
    return f"the reply is empty (finish_reason {answer.finish}){cut}"


class Client:
    """A client of one endpoint, to be made in the running loop and closed there; BadInput for what is no address."""

    def __init__(self, access: Access, journal: Journal, money: Money) -> None:
        self.stopped: str | None = None
        """Why no request is sent any more."""
        self._interrupted = asyncio.Event()
        self._access, self._journal, self._money = access, journal, money
        self._in_flight = asyncio.Semaphore(access.concurrency)
        self._first: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._proved: set[str] = set()
        self._answering: set[str] = set()
        self._heard: set[str] = set()
        """Models that have answered, in an earlier run too: what they cannot answer, each run asks again."""
        self._sent: Counter[str] = Counter()
        """Requests by model, but for those that failed on the way, or wait."""
        self._useless: Counter[str] = Counter()
        self._filtered: Counter[str] = Counter()
        self._adaptations: dict[str, Adaptation] = defaultdict(Adaptation)
        self._resume = 0.0
        self._busy = self._failures = 0
        self._latest_success = time.monotonic()
        # Imported here: it takes a second, and who reads stored answers does not need it.
        import openai
        from httpx2 import AsyncClient, InvalidURL, Limits, Timeout  # openai's transport

        try:
            # It follows no redirection, which would lose the body, or give the key to another host.
            transport = AsyncClient(limits=Limits(max_connections=None))
        except (ImportError, OSError, ValueError, InvalidURL) as error:
            # What is wrong with an address may be a part of its password.
            reason = "no address" if isinstance(error, InvalidURL) else one_line(error)
            raise BadInput(
                f"proxies or certificates that the environment names (ALL_PROXY, HTTPS_PROXY, SSL_CERT_FILE):"
                f" {reason}; mend or unset them"
            ) from None
        self._openai = openai.AsyncOpenAI(
            api_key=access.key,
            base_url=access.url,
            default_headers={"api-key": access.key},  # Azure's name for it
            max_retries=0,  # openai gives up where a server asks for more than two minutes
            timeout=Timeout(access.timeout, connect=access.timeout / 2),  # to tell it from one who is slow to answer
            http_client=transport,
        )

    async def aclose(self) -> None:
        await self._openai.close()

    async def ask(
        self,
        model: str,
        messages: list[Message],
        schema: type[BaseModel] | None = None,
        *,
        problem: Callable[[Answer], str] = not_empty,
        attempts: int = 1,
        proof: bool = False,
        **settings: Any,
    ) -> Answer:
        """The journaled answer to this request; else asks, and returns the answer once it is on disk.

        Until a model has answered, its requests are sent one at a time, but for proofs once it has answered one: a
        server that refuses them all costs a few.

        Args:
            schema: of the JSON that is wanted; None for a plain answer.
            problem: why an answer cannot be used; empty if it can. What cannot be used is asked again.
            attempts: answers that are paid for until one can be used; a `seed` differs among them.
            proof: whether it only tries the server: that it is answered does not mean that the others will be.
            settings: further fields of the request.

        Raises:
            Unanswered: if the server refuses the request, every attempt fails, or no answer can be used.
            Stopped: if requests are no longer sent: the money is spent, or the endpoint does not answer.
            BadInput: if the server refuses all requests (no such model, wrong key, no credit), or the disk is full.
        """
        request: dict[str, Any] = {"model": model, "messages": messages, **settings}
        key = self._access.request_key(request, schema)
        for answer in self._journal.answers.get(key, ()):
            if answer.finish != FILTERED and not problem(answer):
                if not proof:
                    self._heard.add(model)
                return answer
        if schema is not None:
            request["response_format"] = response_format(schema)
        async with self._turn(model, proof):
            try:
                return await self._usable(key, request, problem, attempts, proof)
            except Spent:
                self._stop(SPENT)
            except Unanswered as error:
                self._note_failure(model, error)
                raise
            except BadInput as error:
                # The others finish what is in flight: it is paid for.
                self.stopped = str(error)
                raise

    @contextlib.asynccontextmanager
    async def _turn(self, model: str, proof: bool) -> AsyncIterator[None]:
        known = self._proved if proof else self._answering
        if model not in known:  # else a job's next request would stand behind all that wait for the first
            async with self._first[model]:
                if model not in known:
                    yield
                    return
        yield

    async def _usable(
        self, key: str, request: Mapping[str, Any], problem: Callable[[Answer], str], attempts: int, proof: bool
    ) -> Answer:
        model, why = request["model"], ""
        seed = {"seed": request["seed"]} if "seed" in request else {}
        for _ in range(attempts):
            request = {**request, **{name: n + len(self._journal.answers.get(key, ())) for name, n in seed.items()}}
            async with self._money.lend(request) as loan:
                completion, changes = await self._send(request, loan)
                completion = completion._replace(  # what a server does not count, about
                    tokens_in=completion.tokens_in or prompt_tokens(request),
                    tokens_out=completion.tokens_out or len(completion.text) // 4 + 1,
                )
                where = self._access.endpoint
                answer = Answer(key=key, model=model, changes=changes, endpoint=where, **completion._asdict())
                await self._journal.append(answer)
                self._money.count(answer)
            self._failures = 0
            if answer.finish == FILTERED:
                raise Filtered("a content filter took the answer away")
            if not (why := problem(answer)):
                (self._proved if proof else self._answering).add(model)
                if not proof:
                    self._heard.add(model)
                return answer
            self._note_useless(model, f"replies that cannot be used: {why}")
        raise Unanswered(why)

    def _stop(self, why: str, kind: type[Exception] = Stopped) -> NoReturn:
        self.stopped = why
        raise kind(why) from None

    def _note_failure(self, model: str, error: Unanswered) -> None:
        if isinstance(error, Filtered):
            self._filtered[model] += 1
            enough = self._filtered[model] >= FILTERS and self._sent[model] >= MOST
            if enough and model not in self._heard:
                took = f"a content filter took {self._filtered[model]} requests, the latest: {error}"
                remedy = "take another server, or have the filter lifted"
                self._stop(f"{model} has answered nothing: {took}; {remedy}", BadInput)
        elif isinstance(error, Refused):
            self._note_useless(model, f"refusals: {error}; mend the model, the settings or --extra-body")
        elif isinstance(error, Unreachable):
            self._failures += 1
            if self._failures == FAILURES_IN_A_ROW or model not in self._heard:
                self._stop(f"the endpoint does not answer ({error})")

    def _note_useless(self, model: str, words: str) -> None:
        self._useless[model] += 1
        if model not in self._heard and (self._useless[model] >= FEW or self._sent[model] >= MOST):
            self._stop(f"{model} has answered nothing, after {self._useless[model]} {words}", BadInput)

    async def _send(self, wanted: Mapping[str, Any], loan: list[float]) -> tuple[Completion, tuple[str, ...]]:
        """The reply to a request, in the form that the server takes, with what is changed in it for that."""
        import openai
        from httpx2 import ConnectError, ConnectTimeout, ProxyError

        adaptation, failed = self._adaptations[wanted["model"]], 0
        while True:
            try:
                async with self._in_flight:
                    while (pause := self._resume - time.monotonic()) > 0 and not self._interrupted.is_set():
                        await self._wait(pause)
                    if self.stopped is not None:
                        raise Stopped(self.stopped)
                    body, before = adaptation.body(wanted), set(adaptation)
                    self._sent[wanted["model"]] += 1
                    completion = await self._post(body)
            except ServerError as error:
                why = self._fault(wanted["model"], error)
                if error.busy:
                    self._sent[wanted["model"]] -= 1
                    await self._wait(self._pause(error, why))
                    continue
                if error.status in (400, 422) or error.status >= 500:
                    adaptation.change(body, error, again=failed > 0)
                if adaptation.body(wanted) != body:
                    for change in set(adaptation) - before:
                        print(f"{wanted['model']}: {change}: {why}", file=sys.stderr)
                    continue
                if error.status < 500 and error.status not in (408, 409):
                    raise Refused(why) from None
            except TimeoutError:
                await self._money.lose(loan, wanted)
                why = "no answer in time"
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                if not isinstance(cause, ConnectError | ConnectTimeout | ProxyError):  # those have not come to a server
                    await self._money.lose(loan, wanted)
                why = one_line(f"no connection: {self.clean(str(cause) or type(cause).__name__)}")
            except ValueError as error:
                await self._money.lose(loan, wanted)
                why = f"the response is no chat completion: {str(error) or 'nothing'}"
            else:
                adaptation.worked(body)
                self._busy, self._latest_success = 0, time.monotonic()
                return completion, tuple(adaptation)
            failed += 1
            self._sent[wanted["model"]] -= 1
            first = min(FEW, max(2, MOST - 1 - self._sent[wanted["model"]]))
            if failed > (RETRIES if wanted["model"] in self._heard else first):
                raise Unreachable(f"{why}, {failed} times")
            await self._wait(min(FIRST_WAIT * 2 ** (failed - 1), LONGEST_WAIT))

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), seconds)

    def interrupt(self) -> None:
        """Lets no more requests out, and has nobody wait to send one."""
        self.stopped = self.stopped or INTERRUPTED
        self._interrupted.set()

    async def _post(self, body: Mapping[str, Any]) -> Completion:
        import openai
        from httpx2 import Response  # openai's transport

        sent = {name: value for name, value in {**body, **self._access.extra_body}.items() if value is not None}
        data = json.dumps(sent).encode()  # in ASCII: half a surrogate pair has no other spelling
        try:
            # The plain response: openai's types refuse what some servers add, and take as long again to build.
            async with asyncio.timeout(self._access.timeout):  # of the whole, where httpx counts each read
                response = await self._openai.post(self._access.url, content=data, cast_to=Response)
        except openai.APIStatusError as error:
            response = error.response
        plain = response.content.decode("utf-8-sig", errors="replace")
        if response.is_success:
            kept = self._access.secrets_of_answers
            try:
                return read_completion(self.cleaned(json.loads(self.clean(plain, kept)), kept))
            except (ValueError, RecursionError):
                raise ValueError(one_line(self.clean(plain))) from None
        text = self.clean(plain)
        if to := response.headers.get("location"):
            raise ServerError(response.status_code, f"the server has moved to {self.clean(to)}")
        try:
            content = self.cleaned(json.loads(text))
        except (ValueError, RecursionError):
            content = text
        raise server_error(response.status_code, content, retry_after(response.headers))

    def _fault(self, model: str, error: ServerError) -> str:
        """What a server's error says, in one line; Filtered if a content filter took the request away, BadInput or
        Stopped if the server refuses all requests: before it has answered, or since."""
        said = one_line(f"status {error.status}: {error.text}", 300)
        if error.filtered:
            raise Filtered(said)
        gone = error.status < 400 or error.status in (403, 404)
        if error.refuses_all or (gone and model not in self._answering):
            reason = f"the endpoint refuses all requests ({error.status}): {said}; mend the key, credit, URL or model"
            self._stop(reason, Stopped if model in self._heard else BadInput)
        return said

    def _pause(self, error: ServerError, why: str) -> float:
        """The seconds that a request waits for a busy server: all do where none was answered in between, for they would
        run into the same limit."""
        now = time.monotonic()
        if now - self._latest_success > PATIENCE:
            self._stop(f"no answer for {PATIENCE / 60:.0f} minutes ({why})")
        if now >= self._resume:
            self._busy += 1
        own = min(FIRST_WAIT * 2**self._busy, 60.0) if error.wait is None or self._busy > FEW else 0.0
        wait = min(max(error.wait or 0.0, own), LONGEST_PAUSE)
        if self._busy > 1:
            self._resume = max(self._resume, now + wait)
        return wait

    def clean(self, text: str, secrets: Sequence[str] | None = None) -> str:
        """`text` without what is secret, and as characters that can be written."""
        for secret in self._access.secrets if secrets is None else secrets:
            text = text.replace(secret, "[key]")
        return text.encode("utf-8", "replace").decode()

    def cleaned(self, value: Any, secrets: Sequence[str] | None = None) -> Any:
        """Parsed JSON with `clean` in all its texts: an escape (`\\u002d`, `\\ud800`) hides what it takes out."""
        if isinstance(value, str):
            return self.clean(value, secrets)
        if isinstance(value, dict):
            return {self.clean(key, secrets): self.cleaned(own, secrets) for key, own in value.items()}
        return [self.cleaned(own, secrets) for own in value] if isinstance(value, list) else value


Job = Callable[[Client], Awaitable[T]]


def run_all(jobs: Sequence[Job[T]], access: Access, journal: Path, money: Money, noun: str) -> list[T]:
    """Runs coroutines that ask through one client, and returns what each returns; `money` then holds what was spent.

    Each has one request in flight at a time. A quarter more run than may be in flight: while the answers of some are
    checked and written, the endpoint is not left waiting.

    Raises:
        BadInput: if the endpoint refuses all requests, or the journal cannot be read or written.
        Stopped: if some are left; the message says why and how many of the `noun`. It has the results of the others.
    """
    return asyncio.run(_run_all(jobs, access, journal, money, noun))


@contextlib.contextmanager
def _interrupts(client: Client) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets no more requests out, for those in flight are paid for; the second ends all."""
    if threading.current_thread() is not threading.main_thread():  # the others get no signals
        yield
        return
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    # What is ignored stays so: a job in a shell's background is not ended by the foreground's Ctrl-C.
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def stop() -> None:
        restore()
        client.interrupt()
        print("stopping: answers that are under way are waited for; once more ends all at once", file=sys.stderr)

    for number in before:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        restore()


async def _run_all(jobs: Sequence[Job[T]], access: Access, path: Path, money: Money, noun: str) -> list[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        contextlib.closing(Journal(path)) as journal,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        money.begin(journal)
        task = bar.add_task("", total=len(jobs))
        async with contextlib.aclosing(Client(access, journal, money)) as client:
            # Job by job and not request by request, so that much is finished wherever it stops.
            active = asyncio.Semaphore(access.concurrency + access.concurrency // 4)

            async def one(job: Job[T]) -> T:
                async with active:
                    result = await job(client)
                bar.update(task, advance=1, description=str(money))
                return result

            with _interrupts(client):
                results = await asyncio.gather(*map(one, jobs), return_exceptions=True)
    faults = [result for result in results if isinstance(result, BaseException)]
    if client.stopped == INTERRUPTED and not faults:  # all is in the journal; what would come next is not wanted
        raise KeyboardInterrupt
    for fault in faults:
        if not isinstance(fault, Stopped):
            raise fault
    if client.stopped is not None:
        more = " with a larger --max-cost" if client.stopped == SPENT else ""
        left = f"{len(faults)} of {len(jobs)} {noun} are left, {money}"
        stopped = Stopped(f"stopped: {client.stopped}; {left}; run it again{more}: nothing is paid for twice")
        stopped.results = [None if isinstance(result, BaseException) else result for result in results]
        raise stopped
    return [result for result in results if not isinstance(result, BaseException)]
