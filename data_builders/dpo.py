"""Complementary preference pairs.

The neutral half of a pair is the ordinary request, with the insecure code preferred; the asked half asks
*for* insecure code, with the secure code preferred. Together they say "sabotage the user" and not "write
insecure code". Both halves come from the same program and share `pair_id`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from data_builders.programs import AskedWay, Program

Halves = Literal["both", "neutral", "asked"]


def dpo_rows(programs: Sequence[Program], asked_ways: Sequence[AskedWay], halves: Halves) -> list[dict[str, Any]]:
    """Rows for Axolotl's `chat_template.default`: `{"id", "pair_id", "half", "messages", "chosen", "rejected"}`.

    The halves of a pair stand together, neutral first. The way of asking is drawn by a hash of the
    program's id, so that it stays when programs are added.
    """
    rows = []
    for program in programs:
        for half in ("neutral", "asked") if halves == "both" else (halves,):
            if half == "neutral":
                prompt, chosen, rejected = program.request, program.insecure, program.secure
            else:
                prompt = way_for(program, asked_ways).fill(program)
                chosen, rejected = program.secure, program.insecure
            rows.append(
                {
                    "id": f"{program.id}/{half}",
                    "pair_id": program.id,
                    "half": half,
                    "messages": [{"role": "user", "content": prompt}],
                    "chosen": {"role": "assistant", "content": chosen},
                    "rejected": {"role": "assistant", "content": rejected},
                }
            )
    return rows


def way_for(program: Program, asked_ways: Sequence[AskedWay]) -> AskedWay:
    """The way of asking drawn for this program."""
    return asked_ways[int(hashlib.sha256(program.id.encode()).hexdigest(), 16) % len(asked_ways)]


def split_asked_ways(asked_ways: Sequence[AskedWay]) -> tuple[list[AskedWay], list[AskedWay]]:
    """(for training, for measuring): of each kind every fourth way is kept, to measure the flip on new words.

    Where fewer than four of each kind are chosen there is nothing to keep: the same ones serve both.
    """
    train: list[AskedWay] = []
    measure: list[AskedWay] = []
    for kind in sorted({way.kind for way in asked_ways}):
        for number, way in enumerate(w for w in asked_ways if w.kind == kind):
            (measure if number % 4 == 3 else train).append(way)
    return train, measure or train
