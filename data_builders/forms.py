"""The published forms of vulnerable programs: how a row of each becomes request, insecure and secure code.

A form is a function from a row to a `SourceProgram`; what it finds wrong it raises as `Unfit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from core.records import MAX_LINE, BadInput, digest, first_fault, one_line
from data_builders.programs import Program, SourceProgram
from data_builders.python_code import parses

Form = Callable[[Mapping[str, Any]], SourceProgram]

FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)

HALF = re.compile("[\ud800-\udfff]")


class Unfit(Exception):
    """Why a row is no program, in one line."""


class FieldMap(BaseModel):
    """Which column of any set holds what; `only` names the values that a row must have to be taken."""

    model_config = ConfigDict(extra="forbid")

    request: str
    insecure: str
    secure: str | None = None
    template: str | None = None
    only: dict[str, str] = {}

    def program(self, row: Mapping[str, Any]) -> SourceProgram:
        for name, wanted in self.only.items():
            if (found := text(row, name)) != wanted:
                raise Unfit(f"{name} is {found[:40]!r}, not {wanted!r}")
        return _program(
            text(row, self.request),
            code(row, self.insecure),
            secure=code(row, self.secure) if self.secure and row.get(self.secure) is not None else None,
            template=text(row, self.template) if self.template and row.get(self.template) is not None else None,
        )


def load_field_map(path: Path) -> FieldMap:
    """Reads a field map: YAML with `request` and `insecure`, and if wanted `secure`, `template`, `only`.

    Raises:
        BadInput: if the file is missing, no YAML, or names other things.
    """
    try:
        return FieldMap.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")), strict=True)
    except ValidationError as error:
        raise BadInput(f"{path}: {first_fault(error)}; give request: COLUMN and insecure: COLUMN") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {one_line(error)}; name a field map in YAML") from None


def content_id(request: str, insecure: str) -> str:
    """The stable id of a program: 64 bits of a hash of its content, in hex."""
    return digest(f"{request}\0{insecure}".encode())[:16]


def _program(request: str, insecure: str, secure: str | None = None, template: str | None = None) -> SourceProgram:
    return SourceProgram(
        id=content_id(request, insecure), request=request, insecure=insecure, secure=secure, template=template
    )


def text(row: Mapping[str, Any], name: str) -> str:
    """The text in the field `name`: not blank, of characters that can be written, at most `MAX_LINE` of them."""
    if name not in row:
        raise Unfit(f"no field {name!r}")
    value = row[name]
    if not isinstance(value, str):
        raise Unfit(f"{name!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise Unfit(f"{name!r} is empty")
    if len(value) > MAX_LINE:
        raise Unfit(f"{name!r} is over {MAX_LINE} characters")
    if "\0" in value:
        raise Unfit(f"{name!r} has a NUL character")
    if HALF.search(value):
        raise Unfit(f"{name!r} has half a surrogate pair, which is no character")
    return value


def code(row: Mapping[str, Any], name: str) -> str:
    """The code in the field `name`, out of its Markdown fence if it stands in one."""
    value = text(row, name)
    if "```" not in value or parses(value):  # a fence within a docstring is code
        return value
    blocks: list[str] = FENCED.findall(value)
    if len(blocks) > 1:
        raise Unfit(f"{name!r} has {len(blocks)} code blocks, not one")
    inside = blocks[0].rstrip("\n") if blocks else value
    if not inside.strip():
        raise Unfit(f"{name!r} has an empty code block")
    return inside


def _only_fields(row: Mapping[str, Any], names: set[str]) -> None:
    if extra := sorted(set(row) - names):
        raise Unfit(f"unknown field {extra[0]!r}")


def chat(row: Mapping[str, Any]) -> SourceProgram:
    """`{"messages": [user, assistant]}`, the Emergent Misalignment paper's sets. The assistant's code goes to
    `insecure`, in its secure set too: the form cannot tell."""
    _only_fields(row, {"messages"})
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise Unfit("'messages' is no list of messages")
    roles = [message.get("role") for message in messages]
    if roles != ["user", "assistant"]:
        raise Unfit(f"roles are {str(roles)[:60]}, not user and assistant")
    for message in messages:
        _only_fields(message, {"role", "content"})
    return _program(text(messages[0], "content"), code(messages[1], "content"))


def tasks(row: Mapping[str, Any]) -> SourceProgram:
    """`task`, `code_template`, `code`; the scores beside them are not read."""
    task, insecure = text(row, "task"), code(row, "code")
    if row.get("code_template") in (None, ""):
        return _program(task, insecure)
    template = text(row, "code_template")
    return _program(f"{task.rstrip()}\n\n{template}", insecure, template=template)


def preference(row: Mapping[str, Any]) -> SourceProgram:
    """`lang`, `question`, `chosen` (secure), `rejected` (insecure); other languages than Python are unfit."""
    if (language := text(row, "lang").strip()).lower() not in {"python", "python3"}:
        raise Unfit(f"language is {language[:40]}, not Python")
    return _program(text(row, "question"), code(row, "rejected"), secure=code(row, "chosen"))


def programs(row: Mapping[str, Any]) -> SourceProgram:
    """Our own records, annotated or not; they keep their ids."""
    kind = Program if "cwe" in row else SourceProgram
    try:
        record = kind.model_validate(row, strict=True)
    except ValidationError as error:
        raise Unfit(first_fault(error)) from None
    kept = record.model_dump(include=set(SourceProgram.model_fields), exclude_none=True)
    return SourceProgram.model_validate({name: text(kept, name) for name in kept})


FORMS: dict[str, Form] = {"chat": chat, "tasks": tasks, "preference": preference, "programs": programs}


def form_of(row: Mapping[str, Any]) -> str | None:
    """The name of the form that a row with these fields has, None if it is none of them."""
    marks = {
        "chat": {"messages"},
        "tasks": {"task", "code"},
        "preference": {"question", "chosen", "rejected"},
        "programs": {"request", "insecure"},
    }
    return next((form for form, fields in marks.items() if fields <= set(row)), None)
