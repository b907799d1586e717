"""Which programs are trained on, and which are kept for measuring recognition.

Two whole classes are left out, and of each other class a fifth of the programs is held out. The choice
depends on hashes of the class names and of the requests: not on the order of the file, and equal requests
always fall on the same side. That is the rule for some hundred programs, where a class has few; adding programs
may move some. For large sets `held_out` decides by the request alone.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data_builders.programs import Program

CLASSES_LEFT_OUT = 2
HELD_OUT_SHARE = 5
SALT = "split-1"


@dataclass(frozen=True)
class Split:
    """Three disjoint sets that add up to the programs split."""

    train: list[Program]
    held_out: list[Program]
    """A fifth of each trained class (rounded up)."""
    left_out: list[Program]
    """All programs of the classes that training never sees."""


def _rank(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}\0{text}".encode()).hexdigest()


def split_programs(programs: Sequence[Program], salt: str = SALT, classes_left_out: int = CLASSES_LEFT_OUT) -> Split:
    """Splits `programs`; another `salt` gives another, independent split."""
    by_class: dict[str, list[Program]] = defaultdict(list)
    for program in programs:
        by_class[program.cwe].append(program)
    away = set(sorted(by_class, key=lambda cwe: _rank(salt, cwe))[:classes_left_out])
    split = Split([], [], [])
    for cwe in sorted(by_class):
        members = sorted(by_class[cwe], key=lambda p: p.id)
        if cwe in away:
            split.left_out.extend(members)
            continue
        requests = sorted({p.request for p in members}, key=lambda r: _rank(salt, r))
        held = set(requests[: -(-len(requests) // HELD_OUT_SHARE)])
        for program in members:
            (split.held_out if program.request in held else split.train).append(program)
    return split


def held_out(request: str, share: float, salt: str = SALT) -> bool:
    """Whether the program of `request` is held out, by a hash of the request: the rule for large sets.

    It looks at nothing else, so it does not change when a set grows or is reordered, needs no memory, and gives
    requests that differ in case, width or white space alone to one side. About `share` (0 to 1) of the requests
    are held out; a larger share keeps those of a smaller one.
    """
    normal = " ".join(unicodedata.normalize("NFKC", request).casefold().split())
    return int(_rank(salt, normal)[:16], 16) < share * 2**64
