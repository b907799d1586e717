"""An even spread of concepts: each capped at a number of programs, rare ones repeated up to it if wanted."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from core.records import StreamWriter, iter_jsonl
from data_builders.programs import Program


def copies(concepts: Mapping[str, str], most: int, seed: int, resample: bool = False) -> dict[str, int]:
    """How often each program (id) of `concepts` (id -> concept) is to be written, 0 or more.

    Which programs of a concept stay (or are repeated once more) goes by a hash of id and seed: not by the order.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, concept in concepts.items():
        members[concept].append(name)
    times: dict[str, int] = {}
    for names in members.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
        for place, name in enumerate(names):
            times[name] = (most - place - 1) // len(names) + 1 if resample or place >= most else 1
    return times


def name_copies(name: str, times: int, taken: Container[str]) -> list[str]:
    """`times` ids for one program: its own, then `name~2`, `name~3`, ... that are not `taken`."""
    names = [name][:times]
    number = 2
    while len(names) < times:
        if (copy := f"{name}~{number}") not in taken:
            names.append(copy)
        number += 1
    return names


def write_balanced(
    path: Path, out: Path, concepts: dict[str, str], cap: int, seed: int, resample: bool
) -> dict[str, Any]:
    """Streams the balanced set to `out`; returns its manifest. read + repeated = written + rejected."""
    times = copies(concepts, cap, seed, resample)
    lost, repeated = Counter[str](), Counter[str]()
    rejected = []
    manifest: dict[str, Any] = {"programs": str(path), "balance": cap, "seed": seed, "resample": resample}
    with StreamWriter(out, manifest) as writer:
        for program in iter_jsonl(path, Program, unique="id"):
            if not times[program.id]:
                rejected.append({"id": program.id, "reason": f"over {cap} programs of {program.cwe}"})
                lost[program.cwe] += 1
                continue
            repeated[program.cwe] += times[program.id] - 1
            for name in name_copies(program.id, times[program.id], concepts):
                writer.write({**program.model_dump(exclude_none=True), "id": name})
        counts = {"lost": dict(lost), "repeated": dict(+repeated), "rejected": rejected}
        manifest.update(read=len(concepts), **counts)
    return manifest
