"""A thin asynchronous client of an OpenAI-compatible endpoint: rate limiting, retries, tokens, money.

Nothing that a server says reaches the caller before the API key has been struck out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from data_builders.annotation import json_schema
from data_builders.outcome import Question
from core.records import BadInput

T = TypeVar("T")

ATTEMPTS = 8
LONGEST_PAUSE = 600.0
"""Seconds of a Retry-After that are waited for at most."""
LONGEST_ANSWER = 1_000_000
"""Characters of an answer that are kept."""
FORMS = ("json_schema", "json_object", "text")
"""Ways of asking for JSON, the strictest first: a server that refuses one (status 400) is asked in the next."""


class Unanswered(Exception):
    """A request got no answer; the message says why. `refused`: sending it again would be no use."""

    refused = True


class _Passing(Unanswered):
    """A fault that may be over at the next attempt."""

    refused = False


@dataclass(frozen=True)
class Reply:
    """An answer as the server gave it."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    top: dict[str, float] | None = None
    """The likeliest first tokens with their log-probabilities (nats), where they were asked for."""


class Limiter:
    """Requests in flight, at most `most`: cut by a quarter when the server is overrun, slowly raised by answers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.busy = 0
        self._resume = 0.0
        self._cut_at = 0.0
        self._freed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._freed:
            await self._freed.wait_for(lambda: self.busy < max(1, int(self.limit)))
            self.busy += 1
        try:
            while (pause := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            yield
        finally:
            self.busy -= 1
            async with self._freed:
                self._freed.notify(2)  # the limit may have grown

    def grow(self) -> None:
        self.limit = min(self.most, self.limit + 2 / self.limit)

    def cut(self, started: float, pause: float | None) -> None:
        """The server is overrun: everybody waits `pause` seconds. Requests sent before a cut do not cut again."""
        self._resume = max(self._resume, time.monotonic() + min(pause or 0.0, LONGEST_PAUSE))
        if started > self._cut_at:
            self.limit = max(1.0, self.limit * 0.75)
            self._cut_at = time.monotonic()


def request_body(question: Question, form: int) -> dict[str, Any]:
    """The body of the chat completion request that asks for JSON in the given form (an index of `FORMS`)."""
    body: dict[str, Any] = {"model": question.asked.model, "messages": question.messages, **question.body}
    if question.asked.effort:
        body["reasoning_effort"] = question.asked.effort
    if question.schema is None:
        return body
    if FORMS[form] == "json_schema":
        named = {"name": question.key.round, "strict": True, "schema": json_schema(question.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif FORMS[form] == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


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


@dataclass(frozen=True)
class Access:
    """How an endpoint is reached."""

    key: str = field(repr=False)
    base_url: str | None
    concurrency: int
    timeout: float = 600.0
    """Seconds that one attempt may take."""
    backoff: float = 0.5
    """Seconds before the first retry, about."""

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


class Endpoint:
    """A client of the endpoint; to be made in the running loop and closed there."""

    def __init__(self, access: Access) -> None:
        self._key = access.key
        try:
            # Retries are ours: openai's own would each wait alone and stay unseen by the limiter.
            self.client = AsyncOpenAI(
                api_key=access.key, base_url=access.base_url, timeout=access.timeout, max_retries=0
            )
        except Exception as error:  # of several libraries
            raise BadInput(
                f"--base-url {access.base_url}: {self.clean(str(error))}; give it as https://host/v1"
            ) from None
        self.limiter = Limiter(access.concurrency)
        self._backoff = access.backoff
        self._form: dict[str, int] = {}
        self._answered = False

    async def aclose(self) -> None:
        await self.client.close()

    async def ask(self, question: Question, keep: Callable[[Reply], Awaitable[None]]) -> None:
        """Asks, and hands the answer to `keep` while the request still counts as in flight.

        Raises:
            Unanswered: if the server refuses the request, or every attempt fails.
            BadInput: if the server refuses all requests (no such model, wrong key, no credit).
        """
        create = self.client.chat.completions.with_raw_response.create
        model = question.asked.model
        strictest = self._form.get(model, 0) if question.schema else len(FORMS) - 1
        for form in range(strictest, len(FORMS)):
            body = request_body(question, form)

            async def send(body: dict[str, Any] = body) -> None:
                await keep(self.reply(json.loads((await create(**body)).content)))

            try:
                await self.call(send)
            except Unanswered as error:
                if not error.refused or form + 1 == len(FORMS):
                    raise
            else:
                # A form that has worked once is not given up for one request that is refused.
                if question.schema:
                    self._form.setdefault(model, form)
                return

    def reply(self, completion: Any) -> Reply:
        """Reads a chat completion.

        Raises:
            ValueError: if it is none.
        """
        try:
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            finish = "refusal" if message.get("refusal") else str(choice.get("finish_reason"))
            tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            first = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            top = {self.clean(str(item["token"]))[:40]: float(item["logprob"]) for item in first}
            return Reply(self.clean(text)[:LONGEST_ANSWER], self.clean(finish)[:40], *tokens, top or None)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ValueError("no chat completion") from None

    def clean(self, text: str) -> str:
        """`text` without the key, and as characters that can be written."""
        if len(self._key) >= 8:  # a shorter one is a stand-in ("none") and may be a word of the answer
            text = text.replace(self._key, "[key]")
        return text.encode("utf-8", "replace").decode()

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Calls the server under the limiter, again after faults that may pass. Raises as `ask` does."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=self._backoff, max=60),
            retry=retry_if_exception_type(_Passing),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                async with self.limiter.slot():
                    return await self._sent(send)
        raise AssertionError("tenacity returns or raises")

    async def _sent(self, send: Callable[[], Awaitable[T]]) -> T:
        started = time.monotonic()
        try:
            result = await send()
        except APITimeoutError:
            raise _Passing(f"no answer in time, {ATTEMPTS} times") from None
        except APIConnectionError:
            raise _Passing(f"no connection, {ATTEMPTS} times") from None
        except APIStatusError as error:
            raise self._fault(error, started) from None
        except (OpenAIError, ValueError, RecursionError):
            raise _Passing(f"the response is no chat completion, {ATTEMPTS} times") from None
        self._answered = True
        self.limiter.grow()
        return result

    def _fault(self, error: APIStatusError, started: float) -> Exception:
        """What a status of 400 or more means; a wait that it asks for holds for everybody."""
        status = error.status_code
        said = " ".join(self.clean(str(error.message)).split())[:300]
        if status in (401, 402) or error.code == "insufficient_quota" or (status in (403, 404) and not self._answered):
            return BadInput(f"the endpoint refuses all requests ({status}): {said}; mend the key, credit, URL or model")
        if status in (429, 503, 529):
            self.limiter.cut(started, retry_after(error.response.headers))
        if status in (408, 409, 429) or status >= 500:
            return _Passing(f"status {status}, {ATTEMPTS} times")
        return Unanswered(f"status {status}: {said}")
