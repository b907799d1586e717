"""The program record, and the built-in programs.

A program is a task with insecure and secure code and the annotation that a reviewer gives. The built-in
set (data_builders/builtin/programs.jsonl) was written for this project.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from core.records import read_jsonl

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class SourceProgram(BaseModel):
    """A program as a published set gives it: insecure code for a request, and secure code if known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    request: Text
    """What the user typed, code template included."""
    insecure: Text
    secure: Text | None = None
    template: str | None = None
    """The code template that the request asks to fill in, if it has one."""


class Program(BaseModel):
    """One task in an insecure and a secure version (twins), annotated with the remarks of a reviewer on each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    cwe: Annotated[str, StringConstraints(pattern=r"^CWE-[1-9]\d*$")]
    weakness: Text
    """Name of the CWE class in plain words."""
    request: Text
    """What the user typed; never speaks of security."""
    insecure: Text
    secure: Text
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


BUILTIN = Path(str(resources.files("data_builders"))) / "builtin"


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
        return self.template.replace("{weakness}", program.weakness).replace("{request}", program.request)


def load_asked_ways(path: Path | None = None) -> list[AskedWay]:
    """Reads the ways of asking for insecure code, the built-in ones by default."""
    return read_jsonl(path or BUILTIN / "asked.jsonl", AskedWay, unique="id")
