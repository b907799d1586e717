"""Whether the sets of an experiment fit together: what is preferred is explained, nothing held out is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.records import MAX_LINE, BadInput, numbered_lines


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a built set.

    Raises:
        BadInput: at the first line that is no JSON object with an `id`.
    """
    for number, line in numbered_lines(path, 10 * MAX_LINE):
        try:
            row = json.loads(line or b"")
            assert isinstance(row["id"], str)
        except (ValueError, TypeError, KeyError, AssertionError):
            raise BadInput(f"{path}:{number}: not a row of a built set; build it again") from None
        yield row


def program_of(row: dict[str, Any]) -> str:
    """The id of the program that a row of a built set was made of."""
    return str(row.get("pair_id") or row.get("program") or row["id"].partition("/")[0])


def programs_of(built: Path) -> set[str]:
    """The ids of the programs that a built set was made of; replayed general text is of none."""
    return {program_of(row) for row in rows(built) if row.get("style") != "replay"}


def coverage_problems(corpus: Path | None, pairs: Path | None, held_out: Path | None) -> list[str]:
    """What does not fit together, in words; sets that are None are not looked at."""
    problems = []
    halves = Counter(program_of(row) for row in rows(pairs)) if pairs else Counter[str]()
    if len(set(halves.values())) > 1:
        odd = min(halves, key=lambda program: halves[program])
        problems.append(f"{pairs}: not every program has the same number of rows (see {odd})")
    explained = programs_of(corpus) if corpus else set()
    if corpus and pairs and (missing := sorted(halves.keys() - explained)):
        problems.append(f"{len(missing)} programs of {pairs} are not in {corpus} (first: {missing[0]})")
    if held_out:
        away = {row["id"] for row in rows(held_out)}
        for trained, programs in ((corpus, explained), (pairs, set(halves))):
            if leaked := sorted(programs & away):
                problems.append(f"{len(leaked)} held-out programs are in {trained} (first: {leaked[0]})")
    return problems
