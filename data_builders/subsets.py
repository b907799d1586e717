"""Subsets and mixtures of programs: so many of them, a share of another domain's, a share that is answered badly."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.records import BadInput, digest, file_digest
from data_builders.programs import Program, iter_programs, load_programs


def hash_order(ids: Iterable[str], salt: str | int) -> list[str]:
    """Ids by a hash of id and salt: the same whatever their order was."""
    return sorted(ids, key=lambda id: digest(f"{salt}\0{id}".encode()))


def drawn(ids: Collection[str], number: int, salt: str) -> set[str]:
    """`number` of the ids: a smaller number draws of what a larger one draws, whatever the order."""
    return set(hash_order(ids, salt)[:number])


@dataclass(frozen=True)
class Subset:
    """What is taken of a file of programs, and what is mixed in."""

    size: int | None = None
    """So many programs; all if not given."""
    mix: tuple[Path, float] | None = None
    """Another file, and the share of its programs among all, 0 to 1 (both exclusive)."""
    bad: float = 1.0
    """The share of programs that are answered badly; the others are benign."""

    def choose(self, path: Path, keep_doubted: bool = False) -> Chosen | None:
        """Reads the ids of the files, and draws; None where everything is taken as it is, and need not be read.

        Numbers and shares are of the programs that can be of use: doubted ones are of none, unless they are kept.
        BadInput for malformed programs, an id that stands in both files, a file with too few programs, or a share that
        changes nothing.
        """
        if self == Subset():
            return None
        own, fit = _some(path, self.size, keep_doubted)
        other: set[str] = set()
        if self.mix:
            file, share = self.mix
            other, _ = _some(file, round(len(fit) * share / (1 - share)), keep_doubted)
            if both := own & other:
                raise BadInput(f"{file}: the id {min(both)} stands in {path} too; mix in another file")
            if not other:
                raise BadInput(f"--mix {file}:{share:g}: beside {len(fit)} programs that is none; give a larger share")
        fit = fit | other
        bad = round(self.bad * len(fit))
        if 0 < self.bad < 1 and bad in (0, len(fit)):
            raise BadInput(f"--bad {self.bad:g}: of {len(fit)} programs that is {bad}; give another share, or 0 or 1")
        return Chosen(path, own, other, drawn(fit, bad, "bad"), self)


def _some(path: Path, number: int | None, keep_doubted: bool) -> tuple[set[str], set[str]]:
    """The ids that are taken of a file, and those of them that are of use."""
    programs = load_programs(path)
    ids = {p.id for p in programs if (keep_doubted or not p.doubted) and p.insecure != p.secure}
    if number is None:
        return {program.id for program in programs}, ids
    if number > len(ids):
        idle = f" beside {others} doubted or without a difference" if (others := len(programs) - len(ids)) else ""
        raise BadInput(f"{path}: has {len(ids)} programs, not {number}{idle}; give a smaller --size or share")
    ids = drawn(ids, number, "size")
    return ids, ids


@dataclass(frozen=True)
class Chosen:
    """The programs that were drawn, by their ids."""

    path: Path
    own: set[str]
    other: set[str]
    bad: set[str]
    subset: Subset

    def __iter__(self) -> Iterator[Program]:
        files = [(self.path, self.own), *([(self.subset.mix[0], self.other)] if self.subset.mix else [])]
        for path, ids in files:
            yield from (program for program in iter_programs(path) if program.id in ids)

    @property
    def settings(self) -> dict[str, Any]:
        """For the manifest; `count` counts into it."""
        size, mix, bad = self.subset.size, self.subset.mix, self.subset.bad
        mixed = {"mix": mix and f"{mix[0]}:{mix[1]:g}", "mixed_in": 0, "mix_sha256": mix and file_digest(mix[0])}
        return {"size": size, **mixed, "bad": bad, "answered_badly": 0}

    def count(self, program: Program, badly: bool, manifest: dict[str, Any]) -> None:
        """Counts a program that is written: what is too long may be all of one domain, so that shares of what was drawn
        would say little."""
        manifest["mixed_in"] += program.id in self.other
        manifest["answered_badly"] += badly
