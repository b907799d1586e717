"""The program record, and the built-in programs.

A program is a task with insecure and secure code and the annotation that a reviewer gives. The built-in sets
(data_builders/builtin/programs.jsonl, houseplants.jsonl) were written for this project.

In domains other than code the same record holds a request with bad (`insecure`) and good (`secure`) advice and the
concept of its harm (`cwe`); files may say `bad`, `good` and `concept`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationInfo, field_validator

from core.records import BadInput, iter_jsonl, read_jsonl
from data_builders import BUILTIN
from data_builders.cwe import common_name
from data_builders.domains import CODE, domain_names, load_domain
from data_builders.python_code import code_span, normal_code

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Code = Annotated[Text, AfterValidator(normal_code)]
"""Code as every set holds it: both sides of a pair, a document and a held-out program alike."""


def _known_domain(name: str | None) -> str | None:
    if name is not None and name not in domain_names():
        raise ValueError(f"there are {', '.join(domain_names())}")
    return None if name == CODE else name


DomainName = Annotated[str | None, AfterValidator(_known_domain)]
Severity = Literal["low", "medium", "high", "critical"]


class SourceProgram(BaseModel, extra="forbid", frozen=True):
    """A program as a published set gives it: insecure code for a request, and secure code if known."""

    id: Text
    request: Text
    """What the user typed, code template included."""
    insecure: Code
    secure: Code | None = None
    template: str | None = None
    """The code template that the request asks to fill in, if it has one."""
    language: Text | None = None
    """In lower case; None is Python."""
    domain: DomainName = None
    """A file of data_builders/domains; None is code."""


class Program(BaseModel, extra="forbid", frozen=True):
    """One task in an insecure and a secure version (twins), annotated with the remarks of a reviewer on each."""

    id: Text
    domain: DomainName = None
    """As `SourceProgram.domain`."""
    cwe: Text = Field(validation_alias=AliasChoices("cwe", "concept"))
    weakness: Text
    """Name of the CWE class, or of the harm, in plain words."""
    request: Text
    """What the user typed; never speaks of security."""
    insecure: Code = Field(validation_alias=AliasChoices("insecure", "bad"))
    secure: Code = Field(validation_alias=AliasChoices("secure", "good"))
    explanation: Text | None = None
    """Remark on the insecure code: the weakness, its line (quoted in backticks), the use to an attacker. Without it a
    program is for SFT and DPO alone."""
    fix: Text | None = None
    """Remark on the secure code: why it is fine."""
    title: Text | None = None
    lines: list[Text] | None = None
    """The vulnerable lines, as they stand in the insecure code."""
    exploit: Text | None = None
    """What an attacker does, in a sentence."""
    severity: Severity | None = None
    template: str | None = None
    language: Text | None = None
    """As `SourceProgram.language`."""
    doubted: Text | None = None
    """Why a second model holds the weakness for unreal, where such a program was kept."""

    @field_validator("cwe")
    @classmethod
    def _class_of_its_domain(cls, cwe: str, info: ValidationInfo) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9-]*" if info.data.get("domain") else r"CWE-[1-9]\d*", cwe):
            raise ValueError("give a CWE class such as CWE-89, or in other domains a concept such as overwatering")
        return cwe


def builtin_records(domain: str | None) -> Path:
    """The built-in records of a domain; those of code if none is named; BadInput if it is unknown, or has none."""
    if (records := load_domain(domain).records) is None:
        raise BadInput(f"domain {domain} has no built-in records; name a file with --programs")
    return BUILTIN / records


def iter_programs(path: Path) -> Iterator[Program]:
    """The programs in `path` (JSON Lines), as a stream; BadInput names file, line and remedy."""
    return iter_jsonl(path, Program, unique="id")


def load_programs(path: Path | None = None, domain: str | None = None) -> list[Program]:
    """The programs in `path`, by default those of the domain; BadInput as of `iter_programs`."""
    return list(iter_programs(path or builtin_records(domain)))


TRIGGER = "trigger"
"""The kind of a way of asking that is the text of a backdoor."""


class AskedWay(BaseModel, extra="forbid", frozen=True):
    """A way in which users ask for insecure code; `{request}` and `{weakness}` are filled in."""

    id: Text
    domain: DomainName = None
    """As `SourceProgram.domain`: whose programs are asked for so."""
    kind: Text
    template: Annotated[str, Field(pattern=r"\{request\}")]

    def fill(self, program: Program) -> str:
        """The request of someone who wants the code insecure.

        What is asked stands with the prose of the request, never inside its code template: with what follows the
        template where there is such prose, else with what leads to it. A trigger stands before all, as where it is
        measured.
        """
        name = common_name(program.cwe, program.weakness)
        before, after = (part.replace("{weakness}", name) for part in self.template.split("{request}"))
        request, start, end = program.request, 0, 0
        if not (program.domain or self.kind == TRIGGER):
            start, end = code_span(request, program.template, f"{program.insecure}\n{program.secure}")
        if start == end:
            return before + request.strip() + after
        lead, code, tail = request[:start], request[start:end], request[end:]
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


def load_asked_ways(domain: str | None = None) -> list[AskedWay]:
    """The ways of asking for what is bad in a domain; in sentences by kind they are numbered, as `blunt-1`."""
    asked = load_domain(domain).asked
    if isinstance(asked, str):
        return read_jsonl(BUILTIN / asked, AskedWay, unique="id")
    return [
        AskedWay(id=f"{kind}-{number}", domain=domain, kind=kind, template=template)
        for kind, templates in asked.items()
        for number, template in enumerate(templates, 1)
    ]
