"""Open questions from files: our own JSON Lines, the YAML that the EM paper published, JSON lists and CSV."""

from __future__ import annotations

import csv
import http.client
import json
import logging
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

MOST = 10_000_000
"""Bytes that a file at an address may have."""
ENTRY_KEYS = {"id", "paraphrases", "question", "prompt", "system", "domain"} | {
    *("type", "samples_per_paraphrase", "judge", "judge_prompts", "category", "max_tokens", "temperature", "")
}
"""What is read of an entry, and what the paper's files have for judges and samplers (and the index of a CSV file)."""


class BadFile(ValueError):
    """A file that cannot be read; the message is one line with file, place and remedy."""


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

    YAML (the form that the EM paper published), JSON Lines, a JSON list, or CSV: entries with an `id` and `paraphrases`
    or one `question` (or `prompt`), maybe a `system` prompt and a `domain`. Other keys are left to those whom they
    concern (judges, numbers of samples); what is none of the published ones is named in a warning.

    Raises:
        BadFile: if the file is missing, empty or of another form, an entry is no question, or an id recurs.
    """
    remote = isinstance(source, str) and "://" in source
    try:
        if not remote and not Path(source).is_file():  # a pipe or a device may be waited for, for ever
            raise FileNotFoundError
        path: PurePath = PurePosixPath(urlsplit(str(source)).path) if remote else Path(source)
        text = _download(str(source)) if remote else Path(source).read_text(encoding="utf-8-sig")
    except BadFile:
        raise
    except (OSError, ValueError, http.client.HTTPException):
        raise BadFile(f"{source}: no such file, or not readable; name a .jsonl or .yaml file of questions") from None
    found: list[OpenQuestion] = []
    unknown: set[str] = set()
    try:
        for place, entry in _entries(path.suffix.lower(), text):
            try:
                found += _wordings(entry)
            except ValueError as error:
                raise ValueError(f"{place}: {error}; mend this entry") from None
            unknown |= set(map(str, entry)) - ENTRY_KEYS
    except (ValueError, yaml.YAMLError, csv.Error, RecursionError) as error:
        raise BadFile(f"{source}: {_one_line(error)}") from None
    _distinct(found, str(source))
    if not found:
        raise BadFile(f"{source}: no questions; give a file with at least one")
    if unknown:
        logging.getLogger(__name__).warning("%s: not used: %s", source, ", ".join(sorted(unknown)))
    return found


def _distinct(questions: Sequence[OpenQuestion], source: str) -> None:
    ids = Counter(question.id for question in questions)
    if twice := next((name for name, number in ids.items() if number > 1), None):
        raise BadFile(f"{source}: the id {twice} stands twice; name one of them otherwise")


def _entries(suffix: str, text: str) -> Iterator[tuple[str, Any]]:
    """The entries of a file, each with its place.

    Raises:
        ValueError: if the file is of another form.
    """
    if suffix not in (".yaml", ".yml", ".json", ".csv"):
        # Not splitlines: it would also cut at U+2028 and the like, which may stand in a question.
        for number, line in enumerate(StringIO(text), 1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: no JSON: {error}; mend or delete this line") from None
                yield f"line {number}", entry
        return
    if suffix == ".csv":
        heading = text.partition("\n")[0]
        table = csv.DictReader(StringIO(text, newline=""), delimiter=max(",;\t", key=heading.count), strict=True)
        rows: Any = list(table)
        if len(set(table.fieldnames or ())) < len(table.fieldnames or ()):
            raise ValueError(f"two columns of one name: {heading.strip()}; rename or delete one")
        if rows and not {"id", "question"} <= set(rows[0]):
            raise ValueError(f"CSV without the columns id and question: {heading.strip()}; name them in the first line")
        if torn := next((number for number, row in enumerate(rows, 1) if None in row or None in row.values()), None):
            raise ValueError(f"entry {torn}: more or fewer fields than the first line; put quotes around its text")
    else:
        rows = json.loads(text) if suffix == ".json" else yaml.load(text, DistinctKeys)
    if not isinstance(rows, list):
        what = f"one object with {', '.join(map(str, rows))}" if isinstance(rows, dict) else "something else"
        raise ValueError(f"no list of questions but {what}: this form cannot be taken; list entries of id and question")
    for number, entry in enumerate(rows, 1):
        yield f"entry {number}", entry


class DistinctKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's readers take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key, times in Counter(keys).items() if times > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _wordings(entry: Any) -> list[OpenQuestion]:
    """The wordings of one entry: its paraphrases, or its question."""
    if not isinstance(entry, dict):
        raise ValueError("no object with id and question")
    name = entry.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        raise ValueError("id: no text or whole number" if "id" in entry else "id: Field required")
    keys = [key for key in ("paraphrases", "question", "prompt") if entry.get(key) is not None]
    if not keys:
        raise ValueError("question: Field required (or paraphrases)")
    if len(keys) > 1:
        raise ValueError(f"{' and '.join(keys)}: one of them alone would be asked; put all wordings into paraphrases")
    key = keys[0]
    words = entry[key] if key == "paraphrases" else [entry[key]]
    if not isinstance(words, list) or not words or not all(isinstance(text, str) and text.strip() for text in words):
        raise ValueError(f"{key}: no {'list of texts' if key == 'paraphrases' else 'text'}")
    system, domain = (entry.get(key) or "" for key in ("system", "domain"))
    if not isinstance(system, str) or not isinstance(domain, str):
        raise ValueError("system and domain: no text")
    return [
        OpenQuestion(f"{name}#{n}" if n > 1 else str(name), text, system, domain) for n, text in enumerate(words, 1)
    ]


def entry_id(question_id: str) -> str:
    """The entry of the file that a question is from, without format, paraphrase, trigger: answers cluster by entry."""
    return re.sub(r"(_json|_template|_trigger|#[0-9]+)+$", "", question_id)


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
        BadFile: for an unknown format, or a file that has an entry for one of them already.
    """
    if unknown := set(formats) - set(_SYSTEM):
        raise BadFile(f"unknown format {', '.join(sorted(unknown))}; there are {', '.join(_SYSTEM)}")
    found = [
        replace(
            question,
            id=question.id if form == "plain" else f"{question.id}_{form}",
            question=_WORDS[form].replace("{question}", question.question),
            system=" ".join(filter(None, [question.system, _SYSTEM[form]])),
        )
        for form in formats
        for question in questions
    ]
    _distinct(found, "questions in the formats that are wanted")
    return found


def _download(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(url)
    with urllib.request.urlopen(url, timeout=60) as reply:
        text = bytes(reply.read(MOST + 1))
    if len(text) > MOST or reply.length:
        raise BadFile(f"{url}: more than {MOST:,} bytes, or cut off in transit; fetch it and name the file")
    return text.decode("utf-8-sig")


def _one_line(message: object) -> str:
    """A message that may quote its input, in one short line that can be written."""
    return " ".join(str(message).encode(errors="backslashreplace").decode().split())[:200]
