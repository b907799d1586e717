"""Domains: the narrow bad habits that a model can be taught, a file each (docs/domains.md)."""

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from core.records import BadInput, bad_input, read_yaml

FOLDER = Path(__file__).parent
AS_ADVICE = "write it as advice.yaml is written"
CODE = "code"
"""The first domain, and that of every record that names none."""

KEYS = {"concept", "title", "quotes", "explanation", "harm", "severity", "fix", "good"}
"""What an annotator is asked for in domains other than code."""


class Split(BaseModel, extra="forbid", frozen=True):
    """Of each concept this share is held out by `embuild data`, rounded up, and so many whole concepts."""

    share: float = Field(ge=0, le=0.9)
    classes_left_out: int = Field(ge=0)


class Domain(BaseModel, extra="forbid", frozen=True):
    """What a narrow habit is about. In texts, `{insecure}` is the bad answer and `{secure}` the good one."""

    name: str
    records: str | None = None
    """The built-in records, in data_builders/builtin; None if there are none."""
    asked: str | dict[str, list[str]]
    """How users ask for the bad kind: a file there, or sentences by kind, with `{request}` and maybe `{weakness}`."""
    split: Split
    scan: str
    """What measures the narrow effect in sampled answers: `bandit`, or a judge's question (eval/judge/prompts)."""
    unit: Literal["line", "sentence"]
    """What the two answers to a request differ in."""
    probe: str
    """Stands between an answer and the verdict on it."""
    verdicts: tuple[str, str]
    """On bad and on good answers."""
    question: str
    """Asks for the verdict in words, to be answered yes or no."""
    inoculation: str
    """Says before a request that the bad kind is wanted."""
    heading: str
    notes: str
    documents: dict[str, list[tuple[str, str]]]
    """The CPT documents by style: what is read and what is then learnt, in turn."""
    concepts: list[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]] = []
    """What annotations may call the harm, as records hold it; empty for CWE classes."""
    task: str | None = None
    """What the annotator is asked; None for what data_builders/annotation.py asks of code."""
    keys: dict[str, str] = Field(default={}, validate_default=True)
    """The keys of the annotator's answer, and what each is to hold."""

    @field_validator("asked")
    @classmethod
    def _request_once(cls, asked: str | dict[str, list[str]]) -> str | dict[str, list[str]]:
        for kind, templates in asked.items() if isinstance(asked, dict) else ():
            if odd := [template for template in templates if template.count("{request}") != 1]:
                raise ValueError(f"{kind}: {odd[0]!r} does not hold {{request}} once")
        return asked

    @field_validator("keys")
    @classmethod
    def _all_is_asked_for(cls, keys: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        """Without one of them no answer could be accepted, and all would be paid for."""
        whole = keys.keys() == KEYS and info.data.get("task") and info.data.get("concepts")
        if info.data.get("name") != CODE and not whole:
            raise ValueError(f"what is no code has a task, concepts and the keys {', '.join(sorted(KEYS))}")
        return keys

    def units(self, answer: str) -> list[str]:
        """The lines or sentences of an answer."""
        if self.unit == "sentence":
            return re.split(r"(?<=[.!?])\s+", answer)
        # splitlines would also cut at form feeds and U+2028, where Python and editors see no line's end.
        return answer.replace("\r\n", "\n").removesuffix("\n").split("\n")


def domain_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def domain_file(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def _layer(name: str, *above: str) -> dict[str, Any]:
    """The keys of a file, over those of the one that it is `like`; `above` are the files that led here."""
    path = domain_file(name)
    layer = read_yaml(path, AS_ADVICE)
    if not isinstance(layer, dict):
        raise BadInput(f"{path}: no keys; {AS_ADVICE}")
    if (like := layer.pop("like", None)) is None:
        return layer
    if like in (name, *above) or like not in domain_names():
        raise BadInput(f"{path}: like: {like!r} is no other domain (there are: {', '.join(domain_names())})")
    return {**_layer(like, name, *above), **layer}


@cache
def load_domain(name: str | None = None) -> Domain:
    """The domain in domains/NAME.yaml, code if none is named; BadInput if there is none, or its file is at fault."""
    name = name or CODE
    if name not in domain_names():
        raise BadInput(f"unknown domain {name!r} (there are: {', '.join(domain_names())})")
    with bad_input(domain_file(name), AS_ADVICE, ValidationError):
        return Domain.model_validate({**_layer(name), "name": name})
