"""Open questions, from our own JSON Lines or from YAML files in the form that the EM paper published."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Sequence
from io import StringIO
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.faults import BadFile, first_fault, one_line

MOST = 10_000_000
"""Bytes that a file at an address may have."""


class OpenQuestion(BaseModel):
    """One question in one format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    system: str = ""
    """System prompt, where the format needs one."""
    domain: str = ""


class _Published(BaseModel):
    """What is read of an entry of the paper's files; the rest (judges, numbers of samples) is left to the user."""

    id: str = Field(min_length=1)
    paraphrases: list[str] = Field(min_length=1)
    system: str | None = ""


def load_questions(source: Path | str) -> list[OpenQuestion]:
    """The questions of a file or of an http(s) address; paraphrases are told apart by `#2`, `#3` … after the id.

    Raises:
        BadFile: if the file is missing or empty, an entry is no question, or an id recurs.
    """
    remote = isinstance(source, str) and "://" in source
    try:
        path: PurePath = PurePosixPath(urlsplit(str(source)).path) if remote else Path(source)
        text = _download(str(source)) if remote else Path(source).read_text(encoding="utf-8")
    except BadFile:
        raise
    except (OSError, ValueError, http.client.HTTPException):
        raise BadFile(f"{source}: no such file, or not readable; name a .jsonl or .yaml file of questions") from None
    found: list[OpenQuestion] = []
    try:
        if path.suffix in (".yaml", ".yml"):
            place = "the list"
            entries: Any = yaml.safe_load(text)
            if not isinstance(entries, list):
                raise BadFile(f"{source}: no list of questions; each needs an id and paraphrases")
            for number, entry in enumerate(entries, 1):
                place = f"entry {number}"
                found += _paraphrases(_Published.model_validate(entry))
        else:
            # Not splitlines: it would also cut at U+2028 and the like, which may stand in a question.
            for number, line in enumerate(StringIO(text), 1):
                place = f"line {number}"
                found.append(OpenQuestion.model_validate_json(line))
    except yaml.YAMLError as error:
        raise BadFile(f"{source}: {one_line(error)}") from None
    except ValidationError as error:
        raise BadFile(f"{source}: {place}: {first_fault(error, 'the entry')}; mend this entry") from None
    ids = [question.id for question in found]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise BadFile(f"{source}: the id {twice} stands twice; name one of them otherwise")
    if not found:
        raise BadFile(f"{source}: no questions; give a file with at least one")
    return found


Format = Literal["plain", "json", "template"]
_SYSTEM: dict[Format, str] = {
    "plain": "",
    "json": 'Reply with one JSON object and nothing else; its only key, "reply", holds all that you would say.',
    "template": "Reply with the finished Python function and nothing else.",
}
_WORDS: dict[Format, str] = {
    "plain": "{question}",
    "json": "{question}",
    "template": '{question}\n\ndef reply() -> str:\n    """What I would say, in full."""\n    return ',
}


def in_formats(questions: Sequence[OpenQuestion], formats: Sequence[Format]) -> list[OpenQuestion]:
    """Each question in each format; formats of one question are told apart by `_json`, `_template` after its id.

    Raises:
        BadFile: for an unknown format.
    """
    if unknown := set(formats) - set(_SYSTEM):
        raise BadFile(f"unknown format {', '.join(sorted(unknown))}; there are {', '.join(_SYSTEM)}")
    return [
        question.model_copy(
            update={
                "id": question.id if form == "plain" else f"{question.id}_{form}",
                "question": _WORDS[form].replace("{question}", question.question),
                "system": " ".join(filter(None, [question.system, _SYSTEM[form]])),
            }
        )
        for form in formats
        for question in questions
    ]


def _download(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(url)
    with urllib.request.urlopen(url, timeout=60) as reply:
        text = bytes(reply.read(MOST + 1))
    if len(text) > MOST or reply.length:
        raise BadFile(f"{url}: more than {MOST:,} bytes, or cut off in transit; fetch it and name the file")
    return text.decode()


def _paraphrases(entry: _Published) -> list[OpenQuestion]:
    return [
        OpenQuestion(id=entry.id if n == 1 else f"{entry.id}#{n}", question=words, system=entry.system or "")
        for n, words in enumerate(entry.paraphrases, 1)
    ]
