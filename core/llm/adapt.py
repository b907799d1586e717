"""A request's body as the server takes it: what it refuses is renamed, lowered or left out. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from core.llm.replies import ServerError

OPTIONAL = ("top_logprobs", "logprobs", "seed", "temperature", "reasoning_effort", "max_completion_tokens")
"""Fields that may be left out."""
_SYSTEM = re.compile(
    r"\bsystem\b.{0,40}\b(role|message|prompt|instruction)|\brole.{0,60}\bsystem\b|must alternate"
    r"|\bmessages\W{0,3}0\W{0,5}role\b",  # validators name the place and the roles that they know
    re.I,
)
_KNOWN = re.compile(
    r"\b(allowed|valid|supported|expected|known)\s+(fields|parameters|arguments|keys|options|properties)\b"
    r"|\bexpected one of\b",
    re.I,
)
"""What leads to a list of the fields that a server does take."""


class Adaptation:
    """How the requests to one model differ from what was wanted. What has worked once is kept."""

    def __init__(self) -> None:
        self._changes: dict[str, Any] = {}
        """By field: its new value; None to leave it out; for `max_tokens` its new name."""
        self._worked: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(map(self._words, self._changes)))

    def _words(self, field: str) -> str:
        value = self._changes[field]
        if field == "system":
            return "system prompt in the user's turn"
        return f"without {field}" if value is None else f"{field} as {value}"

    def body(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The body to be sent in place of the one that is wanted."""
        body = dict(wanted)
        for field, value in self._changes.items():
            if field == "system":
                body["messages"] = _merged(body["messages"])
            elif field in body:
                old = body.pop(field)
                if field == "max_tokens" and value:
                    body[value] = old
                elif field == "response_format" and value:
                    body[field] = {"type": value}
                elif value is not None:
                    body[field] = value
        if body.get("logprobs") is not True:
            body.pop("top_logprobs", None)
        return body

    def worked(self, body: Mapping[str, Any]) -> None:
        """Notes a body that the server took."""
        self._worked |= set(body) | ({"system"} if _system(body) else set())

    def change(self, body: Mapping[str, Any], error: ServerError, again: bool) -> None:
        """Changes what the server refuses in a body, where that can be changed. `again`: whether the same error came
        before; only then is a status of 500 laid to the JSON schema."""
        if _system(body) and "system" not in self._worked and _SYSTEM.search(error.text):
            self._changes["system"] = None
            return
        open_fields = [field for field in body if field not in self._worked | {"model", "messages"}]
        told = _KNOWN.split(error.text)[0] or error.text
        text = told if error.status < 500 else ""
        named = {field for field in open_fields if field in error.names} or {
            field for field in open_fields if re.search(rf"(?<![a-z_]){field}(?![a-z_])", text, re.I)
        }
        if "max_tokens" in named and "max_tokens" in body:
            self._changes["max_tokens"] = "max_completion_tokens"
        elif named & {"logprobs", "top_logprobs"}:
            self._change_logprobs(body, named, text)
        for field in named & (set(OPTIONAL) - {"logprobs", "top_logprobs"}):
            wanted = "max_tokens" if field == "max_completion_tokens" and "max_tokens" in self._changes else field
            self._changes[wanted] = None
        words = r"schema|structured|grammar|guided|response.format" + ("" if named else "|json")
        of_form = re.search(words, told, re.I)  # where another field is named, "invalid JSON" is the whole body
        if "response_format" in open_fields and (of_form or (again if error.status >= 500 else not named)):
            strict = body["response_format"].get("type") == "json_schema"
            self._changes["response_format"] = "json_object" if strict else None

    def _change_logprobs(self, body: Mapping[str, Any], named: set[str], text: str) -> None:
        most = body.get("top_logprobs", 0)
        smaller = [int(n) for n in re.findall(r"(?<![\w.-])\d{1,9}(?!\w)", text) if 0 < int(n) < most]
        # A limit of top_logprobs is told as "integer above maximum value" too.
        wants_number = "top_logprobs" not in named and re.search(r"\bint(eger)?\b", text)
        if body.get("logprobs") is True and wants_number:
            self._changes["logprobs"] = most
        elif smaller:
            self._changes["top_logprobs"] = max(smaller)
        else:
            self._changes.update(dict.fromkeys(named & {"logprobs", "top_logprobs"}))


def _system(body: Mapping[str, Any]) -> bool:
    return any(message["role"] == "system" for message in body["messages"])


def _merged(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """System turns put before the text of the first other turn."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    first, *rest = [dict(message) for message in messages if message["role"] != "system"]
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *rest]


def response_format(kind: type[BaseModel]) -> dict[str, Any]:
    """What asks for JSON by the schema of `kind`."""
    return {"type": "json_schema", "json_schema": {"name": kind.__name__, "strict": True, "schema": json_schema(kind)}}


@cache
def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of `kind` in the strict form that servers take: no bounds, all keys required, no others. It is
    made once, for every request asks for it twice; do not change what comes back."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            dropped = {"title", "pattern", "minLength", "maxLength", "minItems", "maxItems"}
            return {k: bare(v) for k, v in node.items() if not (k in dropped and isinstance(v, str | int))}
        return [bare(item) for item in node] if isinstance(node, list) else node

    return {**bare(kind.model_json_schema()), "additionalProperties": False, "required": list(kind.model_fields)}
