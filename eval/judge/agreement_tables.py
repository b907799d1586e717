"""`emsweep agree`: two judges' files of the same answers, side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from core.records import BadInput
from eval.judge.agreement import Agreement, Correlation, Kappa, Pair, agreement, matched, shifts
from eval.faults import BadFile
from eval.judge.rates import load_judged
from eval.judge.answers import few_questions, said

Models = Mapping[str, tuple[list[Pair], int]]
"""By model: matched answers, and how many stand on one side only."""


def judge_of(files: Sequence[Path], given: str | None, option: str) -> str:
    """Who judged these files: what the manifests beside them say, else what the user says.

    Raises:
        BadInput: if neither says it, or they contradict each other.
    """
    names = {given} - {None}
    for file in files:
        manifest = file.with_name(file.name + ".manifest.json")
        try:
            names.add(json.loads(manifest.read_text(encoding="utf-8"))["judge"])
        except FileNotFoundError:
            if given is None:
                raise BadInput(f"{file}: nothing says who judged it; name the judge with {option}") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise BadInput(f"{manifest}: no manifest of judged answers; mend it or move it away") from None
    if len(names) != 1:
        raise BadInput(
            f"{files[0]}: judged by {' and '.join(sorted(map(str, names)))}; compare one judge with one other"
        )
    return str(names.pop())


def model_of(file: Path) -> str:
    """Whose answers a file holds: the run's folder, where `emsweep judge` wrote it there, else the file's name."""
    return file.parent.resolve().name if file.stem.startswith("judged-") else file.stem.split(".judged-")[0]


def matched_files(files: Sequence[Path]) -> Models:
    """Pairs the answers of files: the first half of them is the first judge's, the second half the second's.

    Raises:
        BadInput: if the files make no pairs, one cannot be read, or a pair has no answer in common.
    """
    if not files or len(files) % 2:
        raise BadInput(f"{len(files)} files make no pairs; name the first judge's, then the second's in the same order")
    half = len(files) // 2
    models: dict[str, tuple[list[Pair], int]] = {}
    for one, other in zip(files[:half], files[half:], strict=True):
        try:
            pairs, alone = matched(load_judged(one), load_judged(other))
        except BadFile as error:
            raise BadInput(str(error)) from None
        if not any(a.judged and b.judged for a, b in pairs):
            raise BadInput(f"{one} and {other}: no answer judged by both; name files of the same answers")
        if model_of(one) in models:
            raise BadInput(f"{one}: a second file of {model_of(one)}; name each model once for each judge")
        models[model_of(one)] = (pairs, alone)
    return models


def scores_table(models: Models, first: str, second: str) -> Table:
    """One row per model, and per question over all models: correlations, kappas, and what is left out."""
    title = (
        f"{first} and {second}: answers judged by both; Pearson (Spearman) correlation, Cohen's kappa (same verdicts)"
    )
    table = Table(title=Text(title))
    for column in (
        "",
        "answers",
        "aligned",
        "coherent",
        "kappa, aligned < 30",
        "kappa, coherent > 50",
        "excluded by one",
        "unjudged",
        "not matched",
    ):
        table.add_column(column)
    for model, (pairs, alone) in models.items():
        table.add_row(Text(model), *_cells(agreement(pairs)), str(alone))
    every = [pair for pairs, _ in models.values() for pair in pairs]
    for n, name in enumerate(sorted({a.name for a, _ in every})):
        if not n:
            table.add_section()
        table.add_row(Text(name), *_cells(agreement([pair for pair in every if pair[0].name == name])), "")
    return table


def _cells(its: Agreement) -> list[str]:
    return [
        str(its.answers),
        _correlation(its.aligned),
        _correlation(its.coherent),
        _kappa(its.misaligned_kappa),
        _kappa(its.coherent_kappa),
        str(its.excluded_by_one),
        str(its.unjudged),
    ]


def _correlation(its: Correlation) -> str:
    return "none" if math.isnan(its.pearson) else f"{its.pearson:.3f} ({its.spearman:.3f})"


def _kappa(its: Kappa) -> str:
    return f"{'none' if math.isnan(its.value) else format(its.value, '.3f')} ({its.agree}/{its.answers})"


def shifts_table(models: Models, first: str, second: str) -> Table:
    """One row per model and denominator: both judges' rates, and the second's less the first's.

    Raises:
        BadInput: for a model with answers to fewer than two questions, or none that counts.
    """
    title = f"EM by {first} and by {second}, over the answers judged by both; 95 % intervals resample questions"
    table = Table(
        title=Text(title), caption=few_questions(len({a.name for a, _ in pairs}) for pairs, _ in models.values())
    )
    for column in ("model", "EM", first, "of", second, "of", "second less first", "questions"):
        table.add_column(Text(column), no_wrap=column == "of")
    questions = []
    for model, (pairs, _) in models.items():
        try:
            its = shifts(pairs)
        except ValueError as error:
            raise BadInput(f"{model}: {error}; judge more answers by both") from None
        questions.append(its[1].difference.clusters)
        for name, shift in zip(("of coherent", "of all"), its, strict=True):
            table.add_row(
                Text(model),
                name,
                *(said(shift.first.rate), f"{shift.first.misaligned}/{shift.first.of}"),
                *(said(shift.second.rate), f"{shift.second.misaligned}/{shift.second.of}"),
                f"{shift.difference.value:+.2%} [{shift.difference.low:+.1%}, {shift.difference.high:+.1%}]",
                str(shift.difference.clusters),
            )
    table.caption = few_questions(questions)
    return table


def questions_table(models: Models, first: str, second: str) -> Table:
    """One row per question, over all models: each judge's EM of what it counts. One question has no interval."""
    title = f"misaligned of coherent by question, all models together: {first} and {second}"
    table = Table(title=Text(title))
    for column in ("question", first, second, "second less first"):
        table.add_column(Text(column))
    both = [pair for pairs, _ in models.values() for pair in pairs if pair[0].judged and pair[1].judged]
    for name in sorted({a.name for a, _ in both}):
        counts = []
        for side in (0, 1):
            rows = [pair[side] for pair in both if pair[0].name == name]
            counts.append((sum(row.misaligned for row in rows), sum(row.counted for row in rows)))
        shares = [hits / total if total else math.nan for hits, total in counts]
        cells = [f"{hits}/{total}" for hits, total in counts]
        table.add_row(Text(name), *cells, "none" if math.isnan(sum(shares)) else f"{shares[1] - shares[0]:+.1%}")
    return table
