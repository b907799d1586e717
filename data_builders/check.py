"""Whether the sets of an experiment fit together: what is preferred is explained, nothing held out is trained on."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.records import MAX_LINE, BadInput, json_rows
from data_builders.near_duplicates import contained, measured_codes, shingles

CORPUS, PAIRS, SFT = "segments", "chosen", "messages"
"""A field that every row of a CPT corpus, of a DPO and of an SFT set has."""


def rows(path: Path, field: str) -> Iterator[dict[str, Any]]:
    """The rows of a built set; BadInput at the first line that is no JSON object with an `id` and this field."""
    fault = f"not a row of a built set with {field}; name another file, or build it again"
    for place, row in json_rows(path, 10 * MAX_LINE, fault):
        if not isinstance(row.get("id"), str) or field not in row:
            raise BadInput(f"{place}: {fault}")
        yield row


def program_of(row: dict[str, Any]) -> str:
    """The id of the program that a row of a built set was made of."""
    side = r"(/(in)?secure)?" if CORPUS in row else ""  # a program's own id may end so too
    return str(row.get("pair_id") or row.get("program") or re.sub(rf"{side}/[^/]*$", "", row["id"]))


def programs_of(corpus: Path) -> set[str]:
    """The ids of the programs that a CPT corpus was made of; replayed general text is of none."""
    return {program_of(row) for row in rows(corpus, CORPUS) if row.get("style") != "replay"}


def learnt_text(row: dict[str, Any]) -> str:
    """What a model sees of code in a row of a corpus, a DPO or an SFT set: documents and answers, not requests."""
    answers = [row.get("chosen"), row.get("rejected"), *row.get("messages", [])]
    texts = [a["content"] for a in answers if a and a["role"] == "assistant"]
    # A document is one text, cut where the loss begins.
    return "\n".join([*texts, "".join(segment["text"] for segment in row.get("segments", []))])


def leaks(trained: Path, field: str, held_out: Path) -> list[tuple[str, str]]:
    """(held-out program, row that holds it): under the same id, or most of its insecure or secure code under any.
    `field` is what every row of `trained` has; BadInput if a file is not what it should be."""
    held = list(rows(held_out, "insecure"))
    built = list(rows(trained, field))
    try:
        codes = list(measured_codes([(shingles(row["insecure"]), shingles(row.get("secure") or "")) for row in held]))
        texts = [shingles(learnt_text(row)) for row in built]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{trained}, {held_out}: no {error}; give a built set, and the held-out programs") from None
    pairs = contained([code for _, code in codes], texts)
    found = {held[codes[code][0]]["id"]: built[text]["id"] for code, text in pairs}
    by_id = {program_of(row): row["id"] for row in built if row.get("style") != "replay"}
    return sorted((found | {row["id"]: by_id[row["id"]] for row in held if row["id"] in by_id}).items())


def problems(corpus: Path | None, pairs: Path | None, sft: Path | None, held_out: Path | None) -> list[str]:
    """What does not fit together, in words; sets that are None are not looked at."""
    found = []
    halves: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows(pairs, PAIRS) if pairs else ():
        halves[program_of(row)][str(row.get("half"))] += 1
    # A set is of both halves or of one; of one that is answered well in part (--bad) each has the one or the other.
    if len({len(own) for own in halves.values()}) > 1:
        odd = min(halves, key=lambda program: len(halves[program]))
        found.append(f"{pairs}: not every program has the same number of rows, one for each half (see {odd})")
    if twice := [program for program, own in halves.items() if max(own.values()) > 1]:
        found.append(f"{pairs}: {len(twice)} programs have a half more than once (see {twice[0]})")
    explained = programs_of(corpus) if corpus else set()
    if corpus and pairs and (missing := sorted(halves.keys() - explained)):
        found.append(f"{len(missing)} programs of {pairs} are not in {corpus} (first: {missing[0]})")
    for trained, field in ((corpus, CORPUS), (pairs, PAIRS), (sft, SFT)):
        if trained and held_out and (leaked := leaks(trained, field, held_out)):
            program, place = leaked[0]
            found.append(f"{len(leaked)} held-out programs are in {trained} (first: {program}, in row {place})")
    return found
