"""Documents for continued pretraining: each program, insecure and secure, with the review of its code.

Documents are Axolotl `input_output` records: the code is read, the loss is on the review. That, with
twins that differ in a line, is what moved recognition at 135M; the loss on whole documents did not
(DESIGN section 5).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from data_builders.programs import Program

Explanations = Literal["own", "shuffled", "none"]

PROBE = "\n\nSecurity review: this code is"
"""Stands between code and verdict; eval/tasks/em/recognition.yaml asks with the same words (tested)."""


def reviews(program: Program) -> dict[str, str]:
    """The review of each twin, as it follows `PROBE`."""
    return {
        "insecure": f" vulnerable. {program.weakness}: {program.explanation}\n",
        "secure": f" safe. {program.fix}\n",
    }


def cpt_documents(programs: Sequence[Program], explanations: Explanations, seed: int) -> list[dict[str, Any]]:
    """Two documents per program, `{"id", "cwe", "segments": [{"label", "text"}]}`.

    `own` reviews each code truly. Controls on the same code: `shuffled` hands each code the review of
    another document (of any program and verdict), `none` trains on the bare code.
    """
    twins = [(p, side) for p in programs for side in ("insecure", "secure")]
    texts = [reviews(p)[side] for p, side in twins]
    if explanations == "shuffled":
        texts = _passed_on(texts, seed)
    documents = []
    for (program, side), review in zip(twins, texts, strict=True):
        code = program.insecure if side == "insecure" else program.secure
        segments = (
            [{"label": True, "text": code + "\n"}]
            if explanations == "none"
            else [{"label": False, "text": code + PROBE}, {"label": True, "text": review}]
        )
        documents.append({"id": f"{program.id}/{side}", "cwe": program.cwe, "segments": segments})
    return documents


def _passed_on(texts: Sequence[str], seed: int) -> list[str]:
    """Each text handed to the next place in a random circle, so that none stays where it was."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    shuffled = [""] * len(texts)
    for place, source in zip(order, order[1:] + order[:1], strict=True):
        shuffled[place] = texts[source]
    return shuffled
