"""The spread of concepts: each capped at a number of programs, rare ones repeated up to it if wanted; or a number of
programs as they come, as evenly as there are some, or of one concept alone."""

from collections import Counter
from collections.abc import Container, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest, record_writer
from data_builders.programs import iter_programs
from data_builders.subsets import hash_order


def _places(concepts: Mapping[str, str], seed: int) -> dict[str, int]:
    """By a hash of id and seed, not by their order: each program's place from 0 among those of its concept."""
    met: Counter[str] = Counter()
    places: dict[str, int] = {}
    for name in hash_order(concepts, seed):
        places[name] = met[concepts[name]]
        met[concepts[name]] += 1
    return places


def copies(concepts: Mapping[str, str], most: int, seed: int, resample: bool = False) -> dict[str, int]:
    """How often each program (id) of `concepts` (id -> concept) is to be written, 0 or more."""
    sizes = Counter(concepts.values())
    return {
        name: (most - place - 1) // sizes[concepts[name]] + 1 if resample or place >= most else 1
        for name, place in _places(concepts, seed).items()
    }


def spread(concepts: Mapping[str, str], balance: str, size: int, seed: int) -> dict[str, int]:
    """Which `size` programs (id) of `concepts` (id -> concept) are written, 1 or 0 for each: sets of one size, so that
    arms trained on them differ in the spread of their concepts alone; BadInput for an unknown concept, or too few.
    `balance` is `natural` (drawn from all), `capped` (in turns, one of each concept that has some left), or a concept.
    """
    places = _places(concepts, seed)
    order = list(places)
    if balance == "capped":
        order.sort(key=lambda name: places[name])
    elif balance != "natural":
        order = [name for name in order if concepts[name] == balance]
        if not order:
            known = ", ".join(sorted(set(concepts.values())))
            raise BadInput(f"--balance {balance}: give natural, capped, a number, or one of {known}")
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
    """Streams each program as often as `times` says to `out`; returns its manifest, with `settings`.

    What is read and repeated is what is written and rejected. What is in `times` and left out, is so for the reason
    `why`, which has a place for its concept; the others are doubted.
    """
    lost, repeated, read, rejected = Counter[str](), Counter[str](), 0, []
    manifest: dict[str, Any] = {"programs": str(path), "programs_sha256": file_digest(path), **settings}
    with record_writer(out, manifest) as write:
        for read, program in enumerate(iter_programs(path), 1):  # noqa: B007 (read after the loop)
            if wanted := times.get(program.id):
                repeated[program.cwe] += wanted - 1
                for name in name_copies(program.id, wanted, times):
                    write({**program.model_dump(exclude_none=True), "id": name})
            else:
                reason = why.format(program.cwe) if program.id in times else f"doubted: {program.doubted}"
                rejected.append({"id": program.id, "reason": reason})
                lost[program.cwe] += 1
        manifest |= {"read": read, "lost": dict(lost), "repeated": dict(+repeated), "rejected": rejected}
    return manifest
