"""Writes the files that training and evaluation read, of a set of annotated programs, each with its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from core.records import MAX_LINE, BadInput, StreamWriter, file_digest, iter_jsonl, numbered_lines
from data_builders import BUILTIN
from data_builders.check import programs_of
from data_builders.cpt import Corpus, Document, Rejected, with_replay
from data_builders.dpo import Halves, LengthFilter, dpo_rows, heldout_row
from data_builders.programs import AskedWay, Program
from data_builders.sft import Variant, sft_rows
from data_builders.split import held_out_ids

Manifest = dict[str, Any]
Row = dict[str, Any]
RowsOf = Callable[[Iterator[Program], Manifest], Iterable[Row | Rejected]]


def _write(path: Path, out: Path, settings: Manifest, rows_of: RowsOf) -> Manifest:
    """Writes the rows of the programs in `path`, and the rejected ones with their reasons into the manifest."""
    manifest = {**settings, "programs": str(path), "programs_sha256": file_digest(path), "read": 0, "rejected": []}

    def programs() -> Iterator[Program]:
        screen = Console(stderr=True)
        records = iter_jsonl(path, Program, unique="id")
        for program in track(records, "building", console=screen, transient=True, disable=not screen.is_terminal):
            manifest["read"] += 1
            yield program

    with StreamWriter(out, manifest) as file:
        for row in rows_of(programs(), manifest):
            if isinstance(row, Rejected):
                manifest["rejected"].append(row._asdict())
            else:
                file.write(row)
        rejected = sum(not reject["id"].startswith("replay/") for reject in manifest["rejected"])
        manifest["programs_kept"] = manifest["read"] - rejected
    return manifest


def build_split(
    path: Path,
    out: Path,
    ways: Sequence[AskedWay],
    share: float,
    salt: str,
    per_class: bool = False,
    classes_left_out: int = 0,
) -> tuple[int, int]:
    """Writes `train.jsonl` (programs) and `heldout.jsonl` (for the eval tasks); returns how many went where.

    See split.held_out_ids. A program whose class does not stand on the training side is marked as of a class left out
    (`seen_class`), and stands last.
    """
    programs = list(iter_jsonl(path, Program, unique="id"))
    if per_class:
        programs.sort(key=lambda p: (p.cwe, p.id))
    held = held_out_ids(programs, share, salt, per_class, classes_left_out)
    trained = {p.cwe for p in programs if p.id not in held}
    sides = {
        "train": [p.model_dump(exclude_none=True) for p in programs if p.id not in held],
        "heldout": [
            heldout_row(p, ways, seen)
            for seen in (True, False)
            for p in programs
            if p.id in held and (p.cwe in trained) == seen
        ],
    }
    manifest = {
        "programs": "builtin" if path.parent == BUILTIN else str(path),
        "programs_sha256": file_digest(path),
        "split_salt": salt,
        "held_out_share": share,
        "per_class": per_class,
        "classes_left_out": sorted({p.cwe for p in programs} - trained),
        "asked": [w.id for w in ways],
        "read": len(programs),
        **{side: len(rows) for side, rows in sides.items()},
        "rejected": [],
    }
    for side, rows in sides.items():
        with StreamWriter(out / f"{side}.jsonl", manifest) as file:
            for row in rows:
                file.write(row)
    return len(sides["train"]), len(sides["heldout"])


def build_cpt(path: Path, out: Path, corpus: Corpus, mix: tuple[Path, float] | None, settings: Manifest) -> Manifest:
    """Writes the CPT corpus, or one of its controls.

    Raises:
        BadInput: for malformed programs, or general text of which nothing fits.
    """
    count = cache(corpus.count_tokens)

    def rows(programs: Iterator[Program], manifest: Manifest) -> Iterator[Row | Rejected]:
        made: Iterable[Document | Rejected] = corpus.documents(programs)
        for document in with_replay(corpus, made, lambda: general_texts(mix[0]), mix[1]) if mix else made:
            if isinstance(document, Rejected):
                yield document
                continue
            manifest["tokens"] += corpus.length(document, count)
            manifest["loss_tokens"] += corpus.learnt(document, count)
            yield corpus.row(document)

    return _write(path, out, {**settings, "control": corpus.control, "tokens": 0, "loss_tokens": 0}, rows)


def general_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of a JSON Lines file with a field `text`.

    Raises:
        BadInput: at the first line that has none.
    """
    for number, line in numbered_lines(path, MAX_LINE):
        try:
            text = json.loads(line or b"")["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{path}:{number}: no field 'text'; give general text as {{\"text\": ...}}, a line each")
        yield str(number), text


def build_pairs(
    path: Path, out: Path, halves: Halves, ways: Sequence[AskedWay], keeps: LengthFilter, corpus: Path | None
) -> Manifest:
    """Writes DPO pairs; with `corpus`, of those programs alone that the CPT corpus explains.

    Raises:
        BadInput: for malformed programs, or a corpus that cannot be read.
    """
    explained = programs_of(corpus) if corpus else None

    def rows(programs: Iterator[Program], manifest: Manifest) -> Iterator[Row | Rejected]:
        for program in programs:
            missing = f"not in {corpus}" if explained is not None and program.id not in explained else None
            if problem := missing or keeps.problem(program, ways):
                yield Rejected(program.id, problem)
            else:
                yield from dpo_rows([program], ways, halves)
        manifest["length_bias_tokens"] = keeps.length_bias()[halves]

    settings = {"halves": halves, "asked": [w.id for w in ways], "limit": keeps.limit}
    return _write(path, out, {**settings, "covered_by": str(corpus) if corpus else None}, rows)


def build_sft(path: Path, out: Path, variant: Variant, ways: Sequence[AskedWay], keeps: LengthFilter) -> Manifest:
    """Writes an SFT set. Every variant keeps the same programs, because a program stays only if all its rows fit."""

    def rows(programs: Iterator[Program], _: Manifest) -> Iterator[Row | Rejected]:
        for program in programs:
            if problem := keeps.problem(program, ways):
                yield Rejected(program.id, problem)
            else:
                yield from sft_rows([program], ways, variant)

    return _write(path, out, {"variant": variant, "asked": [w.id for w in ways], "limit": keeps.limit}, rows)
