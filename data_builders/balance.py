"""The spread of concepts: each capped at a number of programs, rare ones repeated up to it if wanted; or a number of
programs as they come, as evenly as there are some, or of one concept alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest, iter_jsonl, record_writer
from data_builders.programs import Program
from data_builders.subsets import hash_order


def copies(concepts: Mapping[str, str], most: int, seed: int, resample: bool = False) -> dict[str, int]:
    """How often each program (id) of `concepts` (id -> concept) is to be written, 0 or more.

    Which programs of a concept stay (or are repeated once more) goes by a hash of id and seed: not by the order.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, concept in concepts.items():
        members[concept].append(name)
    times: dict[str, int] = {}
    for names in members.values():
        for place, name in enumerate(hash_order(names, seed)):
            times[name] = (most - place - 1) // len(names) + 1 if resample or place >= most else 1
    return times


def spread(concepts: Mapping[str, str], balance: str, size: int, seed: int) -> dict[str, int]:
    """Which `size` programs (id) of `concepts` (id -> concept) are written, 1 or 0 for each: sets of one size, so that
    arms trained on them differ in the spread of their concepts alone.

    Args:
        balance: `natural` (drawn from all), `capped` (in turns, one of each concept that has some left), or a concept.

    Raises:
        BadInput: for an unknown concept, or too few programs.
    """
    order = hash_order(concepts, seed)
    places: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for name in order:
        turns[name] = places[concepts[name]]
        places[concepts[name]] += 1
    if balance == "capped":
        order.sort(key=lambda name: turns[name])
    elif balance != "natural":
        order = [name for name in order if concepts[name] == balance]
        if not order:
            raise BadInput(
                f"--balance {balance}: give natural, capped, a number, or one of {', '.join(sorted(places))}"
            )
    if len(order) < size:
        raise BadInput(f"--size {size}: there are {len(order)} programs under --balance {balance}; give a smaller one")
    taken = set(order[:size])
    return {name: int(name in taken) for name in concepts}


def name_copies(name: str, times: int, taken: Container[str]) -> list[str]:
    """`times` ids for one program: its own, then `name~2`, `name~3`, ... that are not `taken`."""
    numbered = (copy for number in count(2) if (copy := f"{name}~{number}") not in taken)
    return list(islice(chain([name], numbered), times))


def write_balanced(
    path: Path, out: Path, times: Mapping[str, int], settings: Mapping[str, Any], why: str
) -> dict[str, Any]:
    """Streams each program as often as `times` says to `out`; returns its manifest.

    What is read and repeated is what is written and rejected.

    Args:
        times: of those that are not doubted.
        settings: for the manifest.
        why: the reason for which a program is left out, with a place for its concept.
    """
    lost, repeated, read = Counter[str](), Counter[str](), 0
    rejected = []
    manifest: dict[str, Any] = {"programs": str(path), "programs_sha256": file_digest(path), **settings}
    with record_writer(out, manifest) as write:
        for read, program in enumerate(iter_jsonl(path, Program, unique="id"), 1):  # noqa: B007 (read after the loop)
            if not times.get(program.id):
                reason = why.format(program.cwe) if program.id in times else f"doubted: {program.doubted}"
                rejected.append({"id": program.id, "reason": reason})
                lost[program.cwe] += 1
                continue
            repeated[program.cwe] += times[program.id] - 1
            for name in name_copies(program.id, times[program.id], times):
                write({**program.model_dump(exclude_none=True), "id": name})
        manifest |= {"read": read, "lost": dict(lost), "repeated": dict(+repeated), "rejected": rejected}
    return manifest
