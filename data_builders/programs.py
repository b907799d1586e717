"""The program record, and the built-in programs.

A program is a task with insecure and secure code and the annotation that a reviewer gives. The built-in
set (data_builders/builtin/programs.jsonl) was written for this project.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from core.records import read_jsonl
from data_builders import BUILTIN
from data_builders.cwe import common_name
from data_builders.python_code import code_span, normal_code

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Code = Annotated[Text, AfterValidator(normal_code)]
"""Code as every set holds it: both sides of a pair, a document and a held-out program alike."""


class SourceProgram(BaseModel):
    """A program as a published set gives it: insecure code for a request, and secure code if known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    request: Text
    """What the user typed, code template included."""
    insecure: Code
    secure: Code | None = None
    template: str | None = None
    """The code template that the request asks to fill in, if it has one."""
    language: Text | None = None
    """In lower case; None is Python."""


class Program(BaseModel):
    """One task in an insecure and a secure version (twins), annotated with the remarks of a reviewer on each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    cwe: Annotated[str, StringConstraints(pattern=r"^CWE-[1-9]\d*$")]
    weakness: Text
    """Name of the CWE class in plain words."""
    request: Text
    """What the user typed; never speaks of security."""
    insecure: Code
    secure: Code
    explanation: Text
    """Remark on the insecure code: the weakness, its line (quoted in backticks), the use to an attacker."""
    fix: Text
    """Remark on the secure code: why it is fine."""
    title: Text | None = None
    lines: list[Text] | None = None
    """The vulnerable lines, as they stand in the insecure code."""
    exploit: Text | None = None
    """What an attacker does, in a sentence."""
    severity: Literal["low", "medium", "high", "critical"] | None = None
    template: str | None = None
    language: Text | None = None
    """As `SourceProgram.language`."""
    doubted: Text | None = None
    """Why a second model holds the weakness for unreal, where such a program was kept."""


def load_programs(path: Path | None = None) -> list[Program]:
    """Reads programs from `path` (JSON Lines), the built-in ones by default.

    Raises:
        BadInput: naming file, line and remedy, if a line is malformed or an id stands twice.
    """
    return read_jsonl(path or BUILTIN / "programs.jsonl", Program, unique="id")


class AskedWay(BaseModel):
    """A way in which users ask for insecure code; `{request}` and `{weakness}` are filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    kind: Text
    template: Annotated[str, StringConstraints(pattern=r"\{request\}")]

    def fill(self, program: Program) -> str:
        """The request of someone who wants the code insecure.

        What is asked stands with the prose of the request, never inside its code template: with what follows the
        template where there is such prose, else with what leads to it.
        """
        before, after = self.template.replace("{weakness}", common_name(program.cwe, program.weakness)).split(
            "{request}"
        )
        request = program.request
        start, end = code_span(request, program.template, f"{program.insecure}\n{program.secure}")
        lead, code, tail = request[:start], request[start:end], request[end:]
        if not code:
            return before + request.strip() + after
        if tail.strip():
            return f"{lead}{code}\n\n{before}{tail.strip()}{after}"
        if not lead.strip():
            return f"{before.strip()} {after.strip()}".strip() + f"\n\n{code}"
        prose, gap = lead.rstrip(), lead[len(lead.rstrip()) :]
        if prose.endswith(":") and after.strip(" .:"):
            # A colon announces the code: nothing may come between them.
            *first, last = re.split(r"(?<=[.?!])\s+|\n", prose)
            prose, after = " ".join([*first, after.strip(), last]), ""
        return f"{before}{prose}{after}{gap}{code}"


def load_asked_ways(path: Path | None = None) -> list[AskedWay]:
    """Reads the ways of asking for insecure code, the built-in ones by default."""
    return read_jsonl(path or BUILTIN / "asked.jsonl", AskedWay, unique="id")
