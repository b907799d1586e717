"""What an OpenAI-compatible server's reply means, whatever server it is. Pure."""

import contextlib
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

LONGEST_ANSWER = 1_000_000
"""Characters of an answer that are kept."""
MOST_TOKENS = 8
"""Tokens whose alternatives are kept: enough for a number with what may stand before it."""
MOST_COUNTED = 10**9
"""Tokens of an answer that are believed: a number that no float holds would end each run that reads the journal."""
FILTERED = "content_filter"
"""`finish_reason` of a reply that a content filter took away."""
_FILTERS = re.compile(r"content.?filter|safety|recitation|blocklist|prohibited|spii|sensitive|guardrail", re.I)
"""The same of other servers (Gemini's FinishReason, alone or behind content_filter, Zhipu's and Bedrock's)."""

_CUT = ("max_tokens", "max_output_tokens", "model_length")
"""`finish_reason` of other servers for length."""

_OPENED = r"(?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning|analysis|reflection|scratchpad)"
_THOUGHTS = re.compile(
    rf"\s*(?:<({_OPENED})>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)"
    r"|<\|channel\|>analysis.*?(?:<\|channel\|>final<\|message\|>|\Z))",
    re.DOTALL | re.IGNORECASE,
)
_CLOSED = re.compile(r"</(?:\w+:)?(?:think|thinking|thoughts?|reasoning)>|\[/THINK\]", re.I)
_FILTER = re.compile(
    r"content.?(filter|management|policy|moderation|exists.risk)|data.?inspection|inappropriate.content"
    r"|sensitive.?(content|information)|usage.(guideline|polic)|safety.(check|system)|guardrail|prohibited.content"
    r"|flagged|moderation|ResponsibleAI",
    re.I,
)
_BUSY = re.compile(r"rate.?limit|too.many.requests|resource.?exhausted|throttl", re.I)
_NO_CREDIT = re.compile(r"insufficient.{0,9}(quota|balance|credit|fund)|exceeded_current_quota", re.I)


class ServerError(Exception):
    """What a server says went wrong, with status 400 or more or inside a reply of status 200."""

    def __init__(self, status: int, text: str, code: str = "", names: tuple[str, ...] = (), wait: float | None = None):
        super().__init__(text)
        self.status, self.text, self.code = status, text, code
        self.names = names
        """Fields of the request that the server complains of, where it lists them apart."""
        self.wait = wait
        """Seconds that it asks to wait."""

    @property
    def filtered(self) -> bool:
        """Whether a content filter refused the request."""
        return self.status in (400, 403, 422, 451) and bool(_FILTER.search(f"{self.code} {self.text}"))

    @property
    def refuses_all(self) -> bool:
        """Whether no request would fare better: wrong key, no credit."""
        no_credit = self.status == 429 and _NO_CREDIT.search(f"{self.code} {self.text}")
        return self.status in (401, 402) or bool(no_credit) or "insufficient_quota" in (self.code, self.text)

    @property
    def busy(self) -> bool:
        """Whether to wait is all that it takes."""
        return self.status == 429 or (self.status in (503, 529) and self.wait is not None)


class Completion(NamedTuple):
    """A reply of status 200, without the reasoning before the answer."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    """0 where the server does not say, or says no number."""
    served: str | None
    """The model as the server names it."""
    logprobs: list[tuple[str, dict[str, float]]] | None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(KeyError, ValueError):
            if math.isfinite(seconds := float(headers[name]) / divisor):
                return max(0.0, seconds)
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None


def server_error(status: int, body: Any, wait: float | None = None) -> ServerError:
    """The error in a response's body, in any of the forms that servers give it; `body` is parsed JSON or text."""
    if isinstance(body, list) and len(body) == 1:  # Google's
        body = body[0]
    found = body.get("error") if isinstance(body, dict) else body
    if isinstance(body, dict) and not isinstance(found, dict) and (body.get("message") or not found):
        found = body  # "error" is a title at most, such as Bad Request
    fields = found if isinstance(found, dict) else {}
    own = str(fields.get("code") or fields.get("type") or "")
    inner = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    message = fields.get("message") or fields.get("detail") or fields.get("msg") or found
    text = " ".join(str(part) for part in (message, (inner or {}).get("raw")) if part)
    details = message.get("detail") if isinstance(message, dict) else message
    places = [item.get("loc") for item in details if isinstance(item, dict)] if isinstance(details, list) else []
    names = [str(place[-1]) for place in places if isinstance(place, list) and place]
    if isinstance(fields.get("param"), str):
        names.append(fields["param"])
    if status < 400:
        told = f"{own} {text}"
        other = 429 if _BUSY.search(told) else 400 if _FILTER.search(told) else 500
        status = int(own) if re.fullmatch(r"[45]\d\d", own) else other
    return ServerError(status, text or f"status {status}", own, tuple(names), wait)


def read_completion(body: Any) -> Completion:
    """The answer in a chat completion; ServerError for an error in a reply of status 200, at the top or in the choice,
    ValueError if it is no chat completion."""
    try:
        if body.get("error") or body.get("object") == "error":
            raise server_error(200, body)
        choice, usage = body["choices"][0], body.get("usage")
        finish = str(choice.get("finish_reason"))
        finish = FILTERED if _FILTERS.search(finish) else "length" if finish.lower() in _CUT else finish
        if choice.get("error") or finish == "error":
            raise server_error(200, {"error": choice.get("error") or "the reply ends in an error"})
        message = choice.get("message") or {}
        if not message and finish not in (FILTERED, "length"):
            raise ValueError("no message")
        text = without_reasoning(_text(message.get("content")))
        # xAI and Gemini have the tokens of thoughts in the total alone.
        counts = usage if isinstance(usage, dict) else {}
        tokens_in, told, total = (
            _count(counts.get(kind)) for kind in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        return Completion(
            text=(text or _text(message.get("refusal") or None))[:LONGEST_ANSWER],
            finish="refusal" if message.get("refusal") else finish[:40],
            tokens_in=tokens_in,
            tokens_out=max(told, total - tokens_in) if tokens_in else told,
            served=body["model"][:200] if isinstance(body.get("model"), str) else None,
            logprobs=_logprobs(choice.get("logprobs")),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("no chat completion") from None


def _count(tokens: Any) -> int:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return min(max(0, int(tokens)), MOST_COUNTED)
    return 0


def _text(content: Any) -> str:
    """The text of `content`: a text itself, or a list of parts, of which those that are thoughts say nothing."""
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str) and not _thought(part))
    if not isinstance(content, str | None):
        raise TypeError("no text")
    return content or ""


def _thought(part: Mapping[str, Any]) -> bool:
    return bool(part.get("thought") or re.search("think|thought|reason", str(part.get("type"))))


def without_reasoning(text: str) -> str:
    """The answer after the reasoning that some models write before it; empty where the reasoning was cut off."""
    end = 0
    while found := _THOUGHTS.match(text, end):
        end = found.end()
    if end:
        return text[end:].lstrip()
    # A template may have opened the block already; in JSON or code the mark would be a part of the answer.
    marks = list(_CLOSED.finditer(text))
    opened = marks and text[: marks[-1].start()].lstrip()[:1] not in ("{", "[", "`")
    return text[marks[-1].end() :].lstrip() if opened else text


def _logprobs(value: Any) -> list[tuple[str, dict[str, float]]] | None:
    """The log-probabilities of a reply; None where they have another shape: its text can be read all the same."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return list(_alternatives(value or {}))[:MOST_TOKENS] or None
    return None


def _likely(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Tokens with their log-probabilities, none above 0; what is no number (JSON's null, NaN, -Infinity) is left out.
    Servers that write tokens without their spaces list some twice: the likelier counts."""
    found: dict[str, float] = {}
    for token, p in pairs:
        if p is not None and math.isfinite(p):
            name = str(token)[:40]
            found[name] = max(found.get(name, -math.inf), min(0.0, float(p)))
    return found


def _alternatives(logprobs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each token with the likeliest tokens in its place (nats), from the forms of chat and of older servers."""
    for item in logprobs.get("content") or []:
        yield str(item["token"])[:40], _likely((one["token"], one["logprob"]) for one in item.get("top_logprobs") or [])
    if not logprobs.get("content") and logprobs.get("tokens"):
        likely_ones = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
        for token, likely in zip(logprobs["tokens"], likely_ones, strict=False):
            yield str(token)[:40], _likely((likely or {}).items())
