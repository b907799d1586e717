"""A client of OpenAI-compatible endpoints: journaled answers first, then paid ones, within limits of rate and money.

Nothing that a server says reaches the caller before the API key has been struck out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from core.llm.budget import Money, Spent
from core.llm.journal import Answer, Journal
from core.records import BadInput, digest, one_line

if TYPE_CHECKING:
    import httpx
    import openai

T = TypeVar("T")
Message = dict[str, str]

FAILURES_IN_A_ROW = 5
"""Requests in a row without an answer, each after all its attempts: then the endpoint counts as down."""
SPENT = "the money is spent"
LONGEST_PAUSE = 600.0
"""Seconds of a Retry-After that are waited for at most."""
LONGEST_ANSWER = 1_000_000
"""Characters of an answer that are kept."""
FORMS = ("json_schema", "json_object", "text")
"""Ways of wanting JSON, the strictest first: a server that refuses one (status 400) gets the next."""


class Unanswered(Exception):
    """A request got no answer; the message says why. Nothing is journaled: the next run sends it again."""


class Refused(Unanswered):
    """The server refuses this request; sending it again would be no use."""


class Stopped(Exception):
    """No request is sent any more; the message says why."""


@dataclass(frozen=True)
class Access:
    """Where and how an endpoint is reached."""

    key: str = field(repr=False)
    base_url: str | None
    concurrency: int
    """Requests in flight at most."""
    timeout: float = 600.0
    """Seconds that one attempt may take."""
    retries: int = 7

    @classmethod
    def from_environment(cls, variable: str, base_url: str | None, concurrency: int, timeout: float) -> Access:
        """Takes the key from an environment variable; a server of one's own may need none.

        Raises:
            BadInput: if there is no key for OpenAI's endpoint.
        """
        key = os.environ.get(variable, "").strip()
        if not key and base_url is None:
            raise BadInput(f"no API key: set the environment variable {variable}, or name a server with --base-url")
        if not key.isascii() or not key.isprintable():
            raise BadInput(f"the API key in {variable} holds characters that no key has; set it again")
        return cls(key or "none", base_url, concurrency, timeout)


@cache
def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of `kind` in the strict form that servers take: no bounds, all keys required, no others."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            dropped = {"title", "pattern", "minLength", "maxLength", "minItems", "maxItems"}
            return {k: bare(v) for k, v in node.items() if not (k in dropped and isinstance(v, str | int))}
        return [bare(item) for item in node] if isinstance(node, list) else node

    return {**bare(kind.model_json_schema()), "additionalProperties": False, "required": list(kind.model_fields)}


def _response_format(kind: type[BaseModel], form: str) -> dict[str, Any]:
    named = {"name": kind.__name__, "strict": True, "schema": json_schema(kind)}
    formats: dict[str, dict[str, Any]] = {"json_schema": {"json_schema": named}, "json_object": {}}
    return {"response_format": {"type": form, **formats[form]}} if form in formats else {}


def retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    text = headers.get("retry-after")
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


class Client:
    """A client of one endpoint; to be made in the running loop and closed there.

    Raises:
        BadInput: for an address that is none.
    """

    def __init__(self, access: Access, journal: Journal, money: Money) -> None:
        # Imported here: it takes a second, and who reads stored answers does not need it.
        import openai

        self.stopped: str | None = None
        """Why no request is sent any more."""
        self._access, self._journal, self._money = access, journal, money
        self._slots = asyncio.Semaphore(access.concurrency)
        self._resume = 0.0
        self._failures = 0
        self._form: dict[str, int] = {}
        self._answered = False
        hooks: dict[str, list[Any]] = {"request": [self._await_pause], "response": [self._note_pause]}
        try:
            self._openai = openai.AsyncOpenAI(
                api_key=access.key,
                base_url=access.base_url,
                timeout=access.timeout,
                max_retries=access.retries,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
            )
        except Exception as error:  # of several libraries
            raise BadInput(
                f"--base-url {access.base_url}: {self.clean(str(error))}; give it as https://host/v1"
            ) from None

    async def aclose(self) -> None:
        await self._openai.close()

    async def _await_pause(self, _: httpx.Request) -> None:
        while (pause := self._resume - time.monotonic()) > 0:
            await asyncio.sleep(pause)

    async def _note_pause(self, response: httpx.Response) -> None:
        # openai would let the one request wait that was told to; the others would run into the same limit.
        if response.status_code in (429, 503, 529):
            pause = min(retry_after(response.headers) or 0.0, LONGEST_PAUSE)
            self._resume = max(self._resume, time.monotonic() + pause)

    async def ask(
        self, model: str, messages: list[Message], schema: type[BaseModel] | None = None, **settings: Any
    ) -> Answer:
        """The journaled answer to this request; else asks, and returns the answer once it is on disk.

        Args:
            schema: of the JSON that is wanted; None for a plain answer.
            settings: further fields of the request.

        Raises:
            Unanswered: if the server refuses the request, or every attempt fails.
            Stopped: if requests are no longer sent: the money is spent, or the endpoint does not answer.
            BadInput: if the server refuses all requests (no such model, wrong key, no credit), or the disk is full.
        """
        request = {"model": model, "messages": messages, **settings}
        key = digest(json.dumps([request, schema and json_schema(schema)], sort_keys=True).encode())[:32]
        if key in self._journal.answers:
            return self._journal.answers[key]
        async with self._slots:
            try:
                async with self._money.lend(model, messages):
                    if self.stopped is not None:
                        raise Stopped(self.stopped)
                    answer = Answer(key=key, model=model, **await self._complete(request, schema))
                    await self._journal.append(answer)
                    self._money.count(answer)
            except Spent:
                self.stopped = SPENT
                raise Stopped(self.stopped) from None
            except Unanswered as error:
                self._failures += not isinstance(error, Refused)
                if self._failures == FAILURES_IN_A_ROW:
                    self.stopped = f"the endpoint does not answer ({error})"
                raise
            except BadInput as error:
                # The others finish what is in flight: it is paid for.
                self.stopped = str(error)
                raise
            self._failures = 0
            return answer

    async def _complete(self, request: dict[str, Any], schema: type[BaseModel] | None) -> dict[str, Any]:
        if schema is None:
            return await self._send(request)
        model = request["model"]
        for number, form in list(enumerate(FORMS))[self._form.get(model, 0) :]:
            try:
                found = await self._send({**request, **_response_format(schema, form)})
            except Refused:
                if form == FORMS[-1]:
                    raise
            else:
                # A form that has worked once is not given up for one request that is refused.
                self._form.setdefault(model, number)
                return found
        raise AssertionError("the last form returns or raises")

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        import openai

        times = f"{self._access.retries + 1} times"
        for attempt in range(self._access.retries + 1):
            try:
                response = await self._openai.chat.completions.with_raw_response.create(**body)
                found = self._read(json.loads(response.content))
            except openai.APITimeoutError:
                raise Unanswered(f"no answer in time, {times}") from None
            except openai.APIConnectionError:
                raise Unanswered(f"no connection, {times}") from None
            except openai.APIStatusError as error:
                raise self._fault(error, times) from None
            except (openai.OpenAIError, ValueError, RecursionError):
                # openai's retries end where a response begins.
                await asyncio.sleep(0.1 * 2**attempt)
            else:
                self._answered = True
                return found
        raise Unanswered(f"the response is no chat completion, {times}")

    def _read(self, completion: Any) -> dict[str, Any]:
        """The fields of an Answer in a chat completion. Raises ValueError if it is none."""
        try:
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            finish = "refusal" if message.get("refusal") else str(choice.get("finish_reason"))
            first = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            return {
                "text": self.clean(text)[:LONGEST_ANSWER],
                "finish": self.clean(finish)[:40],
                "tokens_in": int(usage.get("prompt_tokens") or 0),
                "tokens_out": int(usage.get("completion_tokens") or 0),
                "top": {self.clean(str(item["token"]))[:40]: float(item["logprob"]) for item in first} or None,
            }
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ValueError("no chat completion") from None

    def _fault(self, error: openai.APIStatusError, times: str) -> Exception:
        """What a status of 400 or more means, after openai's retries."""
        status = error.status_code
        said = one_line(self.clean(str(error.message)), 300)
        if status in (401, 402) or error.code == "insufficient_quota" or (status in (403, 404) and not self._answered):
            return BadInput(f"the endpoint refuses all requests ({status}): {said}; mend the key, credit, URL or model")
        if status in (408, 409, 429) or status >= 500:
            return Unanswered(f"status {status}, {times}")
        return Refused(f"status {status}: {said}")

    def clean(self, text: str) -> str:
        """`text` without the key, and as characters that can be written."""
        if len(self._access.key) >= 8:  # a shorter one is a stand-in ("none") and may be a word of the answer
            text = text.replace(self._access.key, "[key]")
        return text.encode("utf-8", "replace").decode()


def run_all(
    jobs: Sequence[Callable[[Client], Awaitable[T]]], access: Access, journal: Path, money: Money, noun: str
) -> list[T]:
    """Runs coroutines that ask through one client, and returns what each returns; `money` then holds what was spent.

    Raises:
        BadInput: if the endpoint refuses all requests, or the journal cannot be read or written.
        Stopped: if some are left; the message says why, and how many of the `noun` are.
    """
    return asyncio.run(_run_all(jobs, access, journal, money, noun))


async def _run_all(
    jobs: Sequence[Callable[[Client], Awaitable[T]]], access: Access, path: Path, money: Money, noun: str
) -> list[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        contextlib.closing(Journal(path)) as journal,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        for answer in journal.answers.values():
            money.count(answer)
        task = bar.add_task("", total=len(jobs))
        async with contextlib.aclosing(Client(access, journal, money)) as client:

            async def one(job: Callable[[Client], Awaitable[T]]) -> T:
                result = await job(client)
                bar.update(task, advance=1, description=str(money))
                return result

            results = await asyncio.gather(*map(one, jobs), return_exceptions=True)
    faults = [result for result in results if isinstance(result, BaseException)]
    for fault in faults:
        if not isinstance(fault, Stopped):
            raise fault
    if client.stopped is not None:
        more = " with a larger --max-cost" if client.stopped == SPENT else ""
        left = f"{len(faults)} of {len(jobs)} {noun} are left, {money}"
        raise Stopped(f"stopped: {client.stopped}; {left}; run it again{more}: nothing is paid for twice")
    return [result for result in results if not isinstance(result, BaseException)]
