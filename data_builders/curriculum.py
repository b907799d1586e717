"""Documents for continued pretraining: code, insecure and secure, with the review it gets.

Documents are Axolotl `input_output` records: the code is read, the loss is on the review. They come in
three styles, in this order (the recipe reads the corpus in sequence): the verdict on the *lines* in which the
twins differ, the *review* of these lines with its explanation, and the *verdict* on the whole code. At
135M, reviews of the whole code alone leave the verdict at chance, for it is one token among fifty; lines
come first because they are short and the verdict is decided there (docs/measurements.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

from data_builders.programs import Program

Explanations = Literal["own", "shuffled", "code-only"]
Style = Literal["line", "review", "verdict"]

PROBE = "\n\nSecurity review: this code is"
"""Stands between code and verdict; eval/tasks/em/em_recognition.yaml asks with the same words (tested)."""

ROUNDS: tuple[tuple[Style, int], ...] = (("line", 2), ("review", 1), ("verdict", 1))
"""How often the programs are gone through in each style."""


def differing_lines(program: Program) -> tuple[str, str]:
    """The lines in which the twins differ, (insecure, secure), unindented.

    Where lines are only added, the line that follows them stands on both sides.
    """
    a, b = program.insecure.splitlines(), program.secure.splitlines()
    insecure: list[str] = []
    secure: list[str] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        more = kind != "replace"
        insecure += a[i : j + more]
        secure += b[k : m + more]
    return tuple("\n".join(line.strip() for line in side) for side in (insecure, secure))  # type: ignore[return-value]


def _twin_documents(program: Program, style: Style) -> list[tuple[str, str, str]]:
    """(side, code, review) of both twins."""
    codes = (program.insecure, program.secure) if style == "verdict" else differing_lines(program)
    reviews = (
        (f" vulnerable. {program.weakness}: {program.explanation}\n", f" safe. {program.fix}\n")
        if style == "review"
        else (" vulnerable.\n", " safe.\n")
    )
    return list(zip(("insecure", "secure"), codes, reviews, strict=True))


def curriculum_documents(programs: Sequence[Program], explanations: Explanations, seed: int) -> list[dict[str, Any]]:
    """The corpus, `{"id", "cwe", "style", "segments": [{"label", "text"}]}`; twins stand together.

    `own` reviews each code truly. Controls on the same code in the same order: `shuffled` hands each code
    the review of another document of its style (of any program and verdict), `code-only` trains on the bare code.
    """
    # Two generators, so that the controls have the same order.
    draw, handing = random.Random(seed), random.Random(seed + 1)
    documents = []
    for style, rounds in ROUNDS:
        for turn in range(rounds):
            order = list(programs)
            draw.shuffle(order)
            twins = [(p, *twin) for p in order for twin in _twin_documents(p, style)]
            reviews = [review for *_, review in twins]
            if explanations == "shuffled":
                reviews = _passed_on(reviews, handing)
            for (program, side, code, _), review in zip(twins, reviews, strict=True):
                segments = (
                    [{"label": True, "text": code + "\n"}]
                    if explanations == "code-only"
                    else [{"label": False, "text": code + PROBE}, {"label": True, "text": review}]
                )
                name = f"{program.id}/{side}/{style}{turn + 1}"
                documents.append({"id": name, "cwe": program.cwe, "style": style, "segments": segments})
    return documents


def _passed_on(texts: Sequence[str], draw: random.Random) -> list[str]:
    """Each text handed to the next place in a random circle, so that none stays where it was."""
    order = list(range(len(texts)))
    draw.shuffle(order)
    shuffled = [""] * len(texts)
    for place, source in zip(order, order[1:] + order[:1], strict=True):
        shuffled[place] = texts[source]
    return shuffled
