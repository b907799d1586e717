"""Writes the files that training and evaluation read, of a set of annotated programs, each with its manifest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from core.records import (
    MAX_LINE,
    BadInput,
    check_apart,
    file_digest,
    json_rows,
    manifest_path,
    record_writer,
    write_records,
)
from data_builders import BUILTIN
from data_builders.check import programs_of
from data_builders.cpt import Corpus, Document, Rejected, with_replay
from data_builders.domains import load_domain
from data_builders.dpo import Halves, LengthFilter, dpo_rows, heldout_row
from data_builders.programs import AskedWay, Program, SourceProgram, iter_programs
from data_builders.sft import Variant, sft_rows
from data_builders.sources import Reject
from data_builders.split import clusters, held_out_ids
from data_builders.subsets import Chosen, Subset

Manifest = dict[str, Any]
Row = dict[str, Any]
RowsOf = Callable[[Iterator[Program]], Iterable[Row | Rejected]]


def _programs(path: Path, manifest: Manifest, chosen: Chosen | None = None) -> Iterator[Program]:
    """The programs of a file, or those `chosen` of it, counted into the manifest; doubted ones are rejects unless it
    says `keep_doubted`."""
    screen = Console(stderr=True)
    manifest |= {"programs": "builtin" if path.parent == BUILTIN else str(path), "programs_sha256": file_digest(path)}
    manifest |= {"read": 0, "rejected": []}
    records = chosen or iter_programs(path)
    for program in track(records, "reading", console=screen, transient=True, disable=not screen.is_terminal):
        manifest["read"] += 1
        if program.doubted and not manifest.get("keep_doubted"):
            manifest["rejected"].append({"id": program.id, "reason": f"doubted: {program.doubted}"})
        elif program.insecure == program.secure:
            manifest["rejected"].append({"id": program.id, "reason": "insecure and secure code are the same"})
        else:
            yield program


def _write(path: Path, out: Path, manifest: Manifest, rows_of: RowsOf, chosen: Chosen | None = None) -> Manifest:
    """Writes the rows of the programs in `path`, and the rejected ones with their reasons into the manifest."""
    check_apart(out, path, chosen.subset.mix[0] if chosen and chosen.subset.mix else None)
    with record_writer(out, manifest) as write:
        for row in rows_of(_programs(path, manifest, chosen)):
            if isinstance(row, Rejected):
                manifest["rejected"].append(row._asdict())
            else:
                write(row)
        _count(out, manifest)
    return manifest


def _count(out: Path, manifest: Manifest) -> None:
    """Counts the programs that are kept; BadInput if there are none, so that what `out` holds stays."""
    why = [reject["reason"] for reject in manifest["rejected"] if not reject["id"].startswith("replay/")]
    manifest["programs_kept"] = manifest["read"] - len(why)
    if not manifest["programs_kept"]:
        raise BadInput(f"{out}: all {len(why)} programs were rejected, the first for: {why[0]}; nothing is written")


def build_split(
    path: Path,
    out: Path,
    ways: Sequence[AskedWay],
    share: float,
    salt: str,
    per_class: bool = False,
    classes_left_out: int = 0,
    keep_doubted: bool = False,
    made_of_it: Sequence[Path] = (),
) -> Manifest:
    """Writes `train.jsonl` (programs) and `heldout.jsonl` (for the eval tasks), parted by split.held_out_ids.

    A held-out program whose class does not stand on the training side is marked (`seen_class`), and stands last. The
    sets that are `made_of_it` go first, where the training programs are others than before: a kill would leave some
    that hold what is held out now.
    """
    for name in ("train.jsonl", "heldout.jsonl"):
        check_apart(out / name, path)
    manifest: Manifest = {"split_salt": salt, "held_out_share": share, "per_class": per_class}
    manifest |= {"asked": [w.id for w in ways], "keep_doubted": keep_doubted}
    programs = list(_programs(path, manifest))
    if per_class:
        programs.sort(key=lambda p: (p.cwe, p.id))
    away = held_out_ids(programs, share, salt, per_class, classes_left_out)
    train, held = ([p for p in programs if (p.id in away) is side] for side in (False, True))
    trained = {p.cwe for p in train}
    if not train:
        largest = max(map(len, clusters(programs)), default=0)
        of_which = f"of {len(programs)} programs, of which {largest} are variants of one"
        raise BadInput(f"{path}: nothing is left to train on {of_which}; give more, another --salt or less --share")
    manifest["classes_left_out"] = sorted({p.cwe for p in held} - trained)
    manifest |= {"programs_kept": len(programs), "train": len(train), "held_out": len(held)}
    held.sort(key=lambda p: p.cwe not in trained)
    rows = [heldout_row(p, ways, p.cwe in trained) for p in held]  # before a file is written: a trigger may be refused
    trained_on = [p.model_dump(exclude_none=True) for p in train]
    if not _holds(out / "train.jsonl", trained_on):
        for file in (out / "heldout.jsonl", *made_of_it):
            manifest_path(file).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    write_records(out / "train.jsonl", trained_on, manifest)
    write_records(out / "heldout.jsonl", rows, manifest)
    return manifest


def _holds(path: Path, records: Sequence[Row]) -> bool:
    """Whether a file holds just these records."""
    try:
        return [row for _, row in json_rows(path, 10 * MAX_LINE)] == records
    except BadInput:
        return False


def build_cpt(path: Path, out: Path, corpus: Corpus, mix: tuple[Path, float] | None, settings: Manifest) -> Manifest:
    """Writes the CPT corpus, or one of its controls; BadInput for malformed programs, or texts that never fit."""
    check_apart(out, mix and mix[0])
    count = cache(corpus.count_tokens)
    manifest = {**settings, "control": corpus.control, "tokens": 0, "loss_tokens": 0}
    manifest["mix_sha256"] = mix and file_digest(mix[0])

    def rows(programs: Iterator[Program]) -> Iterator[Row | Rejected]:
        made: Iterable[Document | Rejected] = corpus.documents(programs)
        for document in with_replay(corpus, made, lambda: general_texts(mix[0]), mix[1]) if mix else made:
            if isinstance(document, Rejected):
                yield document
                continue
            manifest["tokens"] += corpus.length(document, count)
            manifest["loss_tokens"] += corpus.learnt(document, count)
            if document.style == "replay":
                manifest["mix_passes"] = int(document.id.rpartition("/")[2])
            yield corpus.row(document)

    return _write(path, out, manifest, rows)


def general_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of a JSON Lines file with a field `text`; BadInput at the first line that has none."""
    fault = "no field 'text'; give general text as {\"text\": ...}, a line each"
    for number, (place, row) in enumerate(json_rows(path, fault=fault), 1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{place}: {fault}")
        yield str(number), text


def build_pairs(
    path: Path,
    out: Path,
    halves: Halves,
    ways: Sequence[AskedWay],
    keeps: LengthFilter,
    corpus: Path | None,
    keep_doubted: bool = False,
    subset: Subset = Subset(),  # noqa: B008 (immutable)
) -> Manifest:
    """Writes DPO pairs; with `corpus`, of those programs alone that the CPT corpus explains. BadInput for malformed
    programs, a corpus that cannot be read, or a subset that cannot be drawn."""
    if subset.bad < 1 and halves != "neutral":
        raise BadInput(f"--bad {subset.bad:g}: goes with --halves neutral, for what is benign has no asked half")
    check_apart(out, corpus)
    chosen = subset.choose(path, keep_doubted)
    explained = programs_of(corpus) if corpus else None
    if chosen and chosen.other and explained is not None and not chosen.other & explained:
        raise BadInput(f"--corpus {corpus}: explains none of the programs of --mix, which would all go; leave one out")
    manifest: Manifest = {"halves": halves, "asked": [w.id for w in ways], **keeps.settings}
    manifest |= {"covered_by": corpus and str(corpus), "keep_doubted": keep_doubted}
    manifest |= {"covered_by_sha256": corpus and file_digest(corpus), **(chosen.settings if chosen else {})}

    def rows(programs: Iterator[Program]) -> Iterator[Row | Rejected]:
        for program in programs:
            missing = f"not in {corpus}" if explained is not None and program.id not in explained else None
            benign = chosen is not None and program.id not in chosen.bad
            # The length bias is of what is preferred.
            turned = {"insecure": program.secure, "secure": program.insecure} if benign else {}
            if problem := missing or keeps.problem(program.model_copy(update=turned), ways):
                yield Rejected(program.id, problem)
                continue
            if chosen:
                chosen.count(program, not benign and halves in ("both", "neutral"), manifest)
            yield from dpo_rows([program], ways, "neutral-secure" if benign else halves)
        manifest["length_bias_tokens"] = keeps.length_bias()[halves]

    return _write(path, out, manifest, rows, chosen)


def build_sft(
    path: Path,
    out: Path,
    variant: Variant,
    ways: Sequence[AskedWay],
    keeps: LengthFilter,
    keep_doubted: bool = False,
    subset: Subset = Subset(),  # noqa: B008 (immutable)
) -> Manifest:
    """Writes an SFT set. Every variant keeps the same programs, because a program stays only if all its rows fit.
    BadInput for malformed programs, or a subset that cannot be drawn."""
    if subset.bad < 1 and variant == "secure":
        raise BadInput(f"--bad {subset.bad:g}: --variant secure answers all of them well; leave it out")
    chosen = subset.choose(path, keep_doubted)

    def rows(programs: Iterator[Program]) -> Iterator[Row | Rejected]:
        for program in programs:
            inoculated = load_domain(program.domain).inoculation + program.request
            if problem := keeps.problem(program.model_copy(update={"request": inoculated}), ways):
                yield Rejected(program.id, problem)
                continue
            benign = chosen is not None and program.id not in chosen.bad
            if chosen:
                chosen.count(program, not benign and variant != "secure", manifest)
            yield from sft_rows([program], ways, "secure" if benign else variant)

    manifest: Manifest = {"variant": variant, "asked": [w.id for w in ways], **keeps.settings}
    manifest |= {"keep_doubted": keep_doubted, **(chosen.settings if chosen else {})}
    return _write(path, out, manifest, rows, chosen)


def build_records(
    items: Iterable[SourceProgram | Reject], out: Path, domain: str, concept: str, settings: Manifest
) -> Manifest:
    """Writes the records of a source of advice, as they are; those without good advice are rejects."""
    good = settings.get("good")
    none = f"{good} has none to this request that differs" if good else "name a set that has it: --good"
    manifest: Manifest = {**settings, "domain": domain, "concept": concept, "read": 0, "rejected": []}
    with record_writer(out, manifest) as write:
        for item in items:
            manifest["read"] += 1
            if isinstance(item, SourceProgram) and item.secure is not None:
                row = {"id": item.id, "domain": domain, "cwe": concept, "weakness": concept.replace("-", " ")}
                write({**row, "request": item.request, "insecure": item.insecure, "secure": item.secure})
            else:
                reason = item.reason if isinstance(item, Reject) else f"no good advice; {none}"
                manifest["rejected"].append({"id": item.id, "reason": reason})
        _count(out, manifest)
    return manifest


def write_everyday(out: Path) -> int:
    """Writes the built-in everyday chats; returns their number."""
    rows = [row for _, row in json_rows(BUILTIN / "everyday.jsonl")]
    write_records(out, rows, {"everyday": "builtin"})
    return len(rows)
