"""What becomes of a program, given the answers there are: a question, or its outcome. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from data_builders.annotation import (
    PROMPT_VERSION,
    Annotation,
    Message,
    acceptance_problems,
    annotation_messages,
    parse_annotation,
    repair_messages,
)
from core.llm.journal import Answer, Key
from data_builders.opinion import OPINION_VERSION, Opinion, opinion_messages, parse_opinion
from data_builders.programs import SourceProgram
from data_builders.python_code import parsed
from core.records import digest


class Asked(NamedTuple):
    """A model, and how hard it is to think (`reasoning_effort`)."""

    model: str
    effort: str | None = None

    @property
    def label(self) -> str:
        return f"{self.model} effort={self.effort}" if self.effort else self.model


class Question(NamedTuple):
    """The next thing to ask."""

    key: Key
    asked: Asked
    messages: list[Message]
    schema: type[BaseModel] | None
    """Of the JSON that is asked for; None for a plain answer."""
    body: Mapping[str, Any] = MappingProxyType({})
    """Further fields of the request."""


class Pending(Protocol):
    """Something on its way to an outcome, by answers."""

    @property
    def done(self) -> bool: ...

    def advance(self, annotator: Asked, second: Asked | None, answers: Mapping[Key, Answer], /) -> Question | None:
        """Goes as far as the answers allow: returns the question whose answer is missing, or None when done."""

    def give_up(self, reason: str) -> None:
        """No answer can be had."""


@dataclass
class State:
    """A program on its way to being accepted or rejected; `digest` is that of annotation.program_digest."""

    program: SourceProgram
    digest: str
    used: list[Answer] = field(default_factory=list)
    """The answers that the outcome rests on."""
    annotation: Annotation | None = None
    """Set once accepted."""
    opinion: Opinion | None = None
    problems: list[str] = field(default_factory=list)
    """Of the latest answer."""
    done: bool = False

    def advance(self, annotator: Asked, second: Asked | None, answers: Mapping[Key, Answer]) -> Question | None:
        """Goes as far as the answers allow: returns the question whose answer is missing, or None when done."""
        if not self.used and parsed(self.program.insecure) is None:
            # Nothing could be checked against it, so nothing is paid for it.
            self.problems, self.done = ["insecure code: does not parse"], True
        while not self.done:
            question = self._question(annotator, second)
            answer = answers.get(question.key)
            if answer is None:
                return question
            self.used.append(answer)
            if question.key.round == "opinion":
                self.opinion = parse_opinion(answer.text)
            else:
                self._judge(answer)
            self.done = bool(self.problems and question.key.round == "repair") or (
                self.annotation is not None and (second is None or question.key.round == "opinion")
            )
        return None

    def give_up(self, reason: str) -> None:
        """No answer can be had. A missing opinion says nothing about the annotation."""
        self.done = True
        if self.annotation is None:
            self.problems = [f"no answer: {reason}"]

    def _question(self, annotator: Asked, second: Asked | None) -> Question:
        if self.annotation is not None and second is not None:
            about = digest((self.digest + self.annotation.model_dump_json()).encode())[:32]
            messages = opinion_messages(self.program, self.annotation)
            return Question(Key(second.label, OPINION_VERSION, about, "opinion"), second, messages, Opinion)
        key = Key(annotator.label, PROMPT_VERSION, self.digest, "repair" if self.used else "ask")
        if self.used:
            messages = repair_messages(self.program, self.used[0].text, self.problems)
        else:
            messages = annotation_messages(self.program)
        return Question(key, annotator, messages, Annotation)

    def _judge(self, answer: Answer) -> None:
        found = parse_annotation(answer.text)
        if isinstance(found, Annotation):
            self.problems = acceptance_problems(self.program, found)
            self.annotation = None if self.problems else found
        elif answer.finish == "refusal":
            self.problems = ["refused: the model declined to answer"]
        else:
            self.problems = ["cut off: the answer ends early"] if answer.finish == "length" else found
