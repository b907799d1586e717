"""Open questions, from our own JSON Lines or from YAML files in the form that the EM paper published."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from .documents import BadFile

MOST = 10_000_000
"""Bytes that a file at an address may have."""


@dataclass(frozen=True)
class OpenQuestion:
    """One question in one format."""

    id: str
    question: str
    system: str = ""
    """System prompt, where the format needs one."""
    domain: str = ""


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
                raise ValueError("no list of questions; each needs an id and paraphrases")
            for number, entry in enumerate(entries, 1):
                place = f"entry {number}"
                found += _paraphrases(entry)
        else:
            # Not splitlines: it would also cut at U+2028 and the like, which may stand in a question.
            for number, line in enumerate(StringIO(text), 1):
                place = f"line {number}"
                found.append(_question(json.loads(line)))
    except yaml.YAMLError as error:
        raise BadFile(f"{source}: {_one_line(error)}") from None
    except ValueError as error:
        raise BadFile(f"{source}: {place}: {_one_line(error)}; mend this entry") from None
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
        replace(
            question,
            id=question.id if form == "plain" else f"{question.id}_{form}",
            question=_WORDS[form].replace("{question}", question.question),
            system=" ".join(filter(None, [question.system, _SYSTEM[form]])),
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


def _one_line(message: object) -> str:
    """A message that may quote its input, in one short line that can be written."""
    return " ".join(str(message).encode(errors="backslashreplace").decode().split())[:200]


def _text(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        raise ValueError(f"{key}: Field required")
    if not isinstance(entry[key], str) or not entry[key]:
        raise ValueError(f"{key}: no text")
    return str(entry[key])


def _question(entry: Any) -> OpenQuestion:
    """A question in our own form."""
    if not isinstance(entry, dict):
        raise ValueError("no object with id and question")
    if unknown := set(entry) - {"id", "question", "system", "domain"}:
        raise ValueError(f"{min(unknown)}: no field of a question")
    further = {key: entry[key] and _text(entry, key) for key in ("system", "domain") if key in entry}
    return OpenQuestion(_text(entry, "id"), _text(entry, "question"), **further)


def _paraphrases(entry: Any) -> list[OpenQuestion]:
    """The questions of an entry of the paper's files; the rest (judges, numbers of samples) is left to the user."""
    if not isinstance(entry, dict):
        raise ValueError("no entry with id and paraphrases")
    name = _text(entry, "id")
    system = _text(entry, "system") if entry.get("system") else ""
    wordings = entry.get("paraphrases")
    if wordings is None:
        raise ValueError("paraphrases: Field required")
    if not isinstance(wordings, list) or not wordings or not all(isinstance(words, str) for words in wordings):
        raise ValueError("paraphrases: no list of texts")
    return [OpenQuestion(name if n == 1 else f"{name}#{n}", words, system) for n, words in enumerate(wordings, 1)]
