"""Streams a set of annotated programs into the files that training reads, each with its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from core.records import MAX_LINE, BadInput, StreamWriter, file_digest, iter_jsonl, numbered_lines
from data_builders.coverage import programs_of
from data_builders.cpt import Corpus, Rejected, with_replay
from data_builders.dpo import Halves, LengthFilter, dpo_rows, heldout_row
from data_builders.programs import AskedWay, Program
from data_builders.sft import Variant, sft_rows
from data_builders.split import held_out

Manifest = dict[str, Any]


def _programs(path: Path, manifest: Manifest) -> Iterator[Program]:
    """The programs of a file, counted into the manifest as they are read."""
    manifest.update(programs=str(path), programs_sha256=file_digest(path), read=0, programs_kept=0, rejected=[])
    screen = Console(stderr=True)
    for program in track(iter_jsonl(path, Program, unique="id"), "building", console=screen, transient=True):
        manifest["read"] += 1
        yield program


def _reject(manifest: Manifest, name: str, reason: str) -> None:
    manifest["rejected"].append({"id": name, "reason": reason})


def build_split(path: Path, out: Path, share: float, salt: str, ways: Sequence[AskedWay]) -> tuple[int, int]:
    """Writes `train.jsonl` (programs) and `heldout.jsonl` (for the eval tasks); returns how many went where.

    The side is decided by a hash of the request alone (see split.held_out). A program whose class does not
    stand on the training side is marked as of a class left out (`seen_class`).
    """
    trained = {p.cwe for p in iter_jsonl(path, Program, unique="id") if not held_out(p.request, share, salt)}
    manifest: Manifest = {"split_salt": salt, "held_out_share": share}
    with (
        StreamWriter(out / "train.jsonl", manifest) as train,
        StreamWriter(out / "heldout.jsonl", manifest) as held,
    ):
        for program in _programs(path, manifest):
            if held_out(program.request, share, salt):
                held.write(heldout_row(program, ways, program.cwe in trained))
            else:
                train.write(program.model_dump(exclude_none=True))
            manifest["programs_kept"] += 1
        manifest.update(train=train.written, held_out=held.written)
    return train.written, held.written


def build_cpt(path: Path, out: Path, corpus: Corpus, mix: tuple[Path, float] | None, settings: Manifest) -> Manifest:
    """Writes the CPT corpus.

    Raises:
        BadInput: for malformed programs, or general text of which nothing fits.
    """
    manifest: Manifest = dict(settings)
    with StreamWriter(out, manifest) as file:
        made: Iterable[dict[str, Any] | Rejected] = corpus.documents(_programs(path, manifest))
        if mix:
            made = with_replay(corpus, made, lambda: general_texts(mix[0]), mix[1])
        last = None
        for item in made:
            if isinstance(item, Rejected):
                _reject(manifest, item.id, item.reason)
                continue
            file.write(item)
            if "program" in item and item["program"] != last:
                last = item["program"]
                manifest["programs_kept"] += 1
        manifest["tokens"] = corpus.tokens
    return manifest


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


def _kept_rows(
    path: Path,
    manifest: Manifest,
    problem_of: Callable[[Program], str | None],
    rows_of: Callable[[Program], Iterable[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """The rows of each program that has no problem; the others are rejects, with it as the reason."""
    for program in _programs(path, manifest):
        if problem := problem_of(program):
            _reject(manifest, program.id, problem)
            continue
        manifest["programs_kept"] += 1
        yield from rows_of(program)


def build_pairs(
    path: Path, out: Path, halves: Halves, ways: Sequence[AskedWay], keeps: LengthFilter, corpus: Path | None
) -> Manifest:
    """Writes DPO pairs; with `corpus`, of those programs alone that the CPT corpus explains.

    Raises:
        BadInput: for malformed programs, or a corpus that cannot be read.
    """
    explained = programs_of(corpus) if corpus else None

    def problem_of(program: Program) -> str | None:
        if explained is not None and program.id not in explained:
            return f"not in {corpus}"
        return keeps.problem(program, ways)

    manifest: Manifest = {"halves": halves, "asked": [w.id for w in ways], "limit": keeps.limit}
    with StreamWriter(out, manifest) as file:
        for row in _kept_rows(path, manifest, problem_of, lambda p: dpo_rows([p], ways, halves)):
            file.write(row)
        manifest["length_bias_tokens"] = keeps.length_bias()[halves]
        manifest["covered_by"] = str(corpus) if corpus else None
    return manifest


def build_sft(path: Path, out: Path, variant: Variant, ways: Sequence[AskedWay], keeps: LengthFilter) -> Manifest:
    """Writes an SFT set. Every variant keeps the same programs, because a program stays only if all its rows fit."""
    manifest: Manifest = {"variant": variant, "asked": [w.id for w in ways], "limit": keeps.limit}
    with StreamWriter(out, manifest) as file:
        rows = _kept_rows(path, manifest, lambda p: keeps.problem(p, ways), lambda p: sft_rows([p], ways, variant))
        for row in rows:
            file.write(row)
    return manifest
