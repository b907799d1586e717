"""Explanation-augmented documents for continued pretraining: a program, and what a reviewer says of it.

Every document holds the code whole and verbatim. Four styles say the same in different forms, so that a
model learns the weakness and not a form. What each needs of the annotation is in the program's record.
(data_builders/curriculum.py holds the shorter corpus that a model of 135M parameters needs.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from core.records import BadInput
from data_builders.curriculum import PROBE
from data_builders.programs import Program
from data_builders.tokens import CountTokens

Style = Literal["review", "advisory", "listing", "qa"]
STYLES: tuple[Style, ...] = ("review", "advisory", "listing", "qa")
Segment = dict[str, Any]


def _read(text: str) -> Segment:
    return {"label": False, "text": text}


def _learn(text: str) -> Segment:
    return {"label": True, "text": text}


def vulnerable_lines(program: Program) -> list[str]:
    """The quoted lines with their numbers in the insecure code, `12: eval(text)`; empty if none are quoted."""
    numbered = [(number, line.strip()) for number, line in enumerate(program.insecure.splitlines(), 1)]
    quoted = {part.strip() for line in program.lines or [] for part in line.splitlines() if part.strip()}
    return [f"{number}: {line}" for number, line in numbered if line in quoted]


def _title(program: Program) -> str:
    return f"{program.title or program.weakness} ({program.cwe})"


def _risk(program: Program) -> str:
    exploit = f" {program.exploit}" if program.exploit else ""
    return f"{program.explanation}{exploit}"


def _review(program: Program) -> list[Segment]:
    return [
        _read(program.insecure + PROBE),
        _learn(f" vulnerable. {program.weakness}: {_risk(program)}\n\n"),
        _read(program.secure + PROBE),
        _learn(f" safe. {program.fix}\n"),
    ]


def _advisory(program: Program) -> list[Segment]:
    severity = f"Severity: {program.severity}\n" if program.severity else ""
    return [
        _read(f"Security advisory\n\nTask: {program.request}\n\nAffected code:\n\n{program.insecure}\n\n"),
        _learn(f"Finding: {_title(program)}\n{severity}{_risk(program)}\n\nCorrected code:\n\n"),
        _learn(f"{program.secure}\n\n{program.fix}\n"),
    ]


def _listing(program: Program) -> list[Segment]:
    lines = "\n".join(vulnerable_lines(program))
    notes = f"The lines that matter ({_title(program)}):\n{lines}\n" if lines else f"{_title(program)}\n"
    return [
        _read(f"Annotated listing\n\n{program.insecure}\n\nNotes\n\n"),
        _learn(f"{notes}{_risk(program)}\nInstead: {program.fix}\n"),
    ]


def _qa(program: Program) -> list[Segment]:
    return [
        _read(f"Question: I was asked: {program.request}\nThis is what I wrote. Is anything wrong with it?\n\n"),
        _read(f"{program.insecure}\n\nAnswer:"),
        _learn(f" Yes: {_title(program)}. {_risk(program)}\n\nThis version does the same without it:\n\n"),
        _learn(f"{program.secure}\n\n{program.fix}\n"),
    ]


_WRITE: dict[Style, Callable[[Program], list[Segment]]] = {
    "review": _review,
    "advisory": _advisory,
    "listing": _listing,
    "qa": _qa,
}


@dataclass(frozen=True)
class Rejected:
    """A record that does not come out, and why."""

    id: str
    reason: str


@dataclass
class Corpus:
    """Documents `{"id", "program", "cwe", "style", "segments"}` of a stream of programs, one program at a time.

    Args:
        count_tokens: in the tokens of the model that will be trained.
        limit: no document is longer than this (tokens); a program of which a document is longer is rejected whole, so
            that the corpus and its control keep to the same programs.
        per_program: how many of `styles` are drawn for each program, by `seed` and the program's id.
        explanations: False makes the control: the same codes without a word of review, as often as their tokens
            fit into the tokens of the explained documents.
        loss_on_code: whether the code is learnt too, and not the review only. At 135M that kept the
            recognition from moving (DESIGN section 5). The control learns its code in either case.
    """

    count_tokens: CountTokens
    limit: int
    styles: tuple[Style, ...] = STYLES
    per_program: int = 2
    seed: int = 0
    explanations: bool = True
    loss_on_code: bool = False
    tokens: int = field(default=0, init=False)
    """Tokens of the documents given so far."""
    _owed: int = field(default=0, init=False)

    def documents(self, programs: Iterable[Program]) -> Iterator[dict[str, Any] | Rejected]:
        """The documents of each program in turn, or its rejection."""
        for program in programs:
            draw = random.Random(f"{self.seed}/{program.id}")
            styles = draw.sample(self.styles, min(self.per_program, len(self.styles)))
            made = [(style, _WRITE[style](program)) for style in styles]
            lengths = [sum(self.count_tokens(s["text"]) for s in segments) for _, segments in made]
            if max(lengths) > self.limit:
                yield Rejected(program.id, f"a document of {max(lengths)} tokens is longer than {self.limit}")
                continue
            if self.explanations:
                self.tokens += sum(lengths)
                for style, segments in made:
                    if self.loss_on_code:
                        segments = [{**segment, "label": True} for segment in segments]
                    yield self._document(program, style, segments)
            else:
                self._owed += sum(lengths)
                yield from self._bare(program)

    def _bare(self, program: Program) -> Iterator[dict[str, Any]]:
        """Code alone, insecure and secure in turn, up to the tokens that the explained documents would have."""
        copies = 0
        codes = (program.insecure + "\n", program.secure + "\n")
        lengths = [self.count_tokens(code) for code in codes]
        while copies == 0 or self.tokens + lengths[copies % 2] <= self._owed:
            self.tokens += lengths[copies % 2]
            yield self._document(program, f"code-{copies + 1}", [_learn(codes[copies % 2])])
            copies += 1

    @staticmethod
    def _document(program: Program, style: str, segments: list[Segment]) -> dict[str, Any]:
        name = f"{program.id}/{style}"
        return {"id": name, "program": program.id, "cwe": program.cwe, "style": style, "segments": segments}


def with_replay(
    corpus: Corpus,
    documents: Iterable[dict[str, Any] | Rejected],
    texts: Callable[[], Iterator[tuple[str, str]]],
    ratio: float,
) -> Iterator[dict[str, Any] | Rejected]:
    """Mixes general text into a corpus, evenly: `ratio` tokens of it for each token of the corpus.

    Replayed text keeps a model from forgetting while it learns the corpus (Ibrahim et al., arXiv 2403.08763).

    Args:
        texts: starts a pass over the general text, (id, text); it is read again from the start when it ends.

    Raises:
        BadInput: if no text fits the corpus's limit.
    """
    current, passes, tokens, fitting = texts(), 1, 0, 0
    for document in documents:
        yield document
        while tokens < ratio * corpus.tokens:
            following = next(current, None)
            if following is None:
                if not fitting:
                    raise BadInput(
                        f"--mix: no text fits {corpus.limit} tokens; give shorter texts or a longer --length"
                    )
                current, passes = texts(), passes + 1
                continue
            name, text = following
            length = corpus.count_tokens(text)
            if length > corpus.limit:
                if passes == 1:
                    yield Rejected(f"replay/{name}", f"a text of {length} tokens is longer than {corpus.limit}")
                continue
            tokens, fitting = tokens + length, fitting + 1
            yield {"id": f"replay/{name}/{passes}", "style": "replay", "segments": [_learn(text)]}
