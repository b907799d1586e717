"""Rates from answers: judged ones, or those of an evaluation run, scored by the judge that needs no key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from core.records import BadInput
from eval.faults import BadFile
from eval.judge.rates import Judged, Rates, load_judged, rates
from eval.offline_judge import NAME, Verdict, verdict
from eval.stats.intervals import Estimate, caution
from eval.stats.ranks import UNKNOWN_SCALE, corrected, families, sentences, trend
from sweeps.run.evaluate import load_samples


def answer_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and all CSV files of the folders that are.

    Raises:
        BadInput: if there is none.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not files:
        raise BadInput(f"{', '.join(map(str, paths))}: no CSV file; name files or folders of judged answers")
    return files


def judged_files(paths: Sequence[Path]) -> dict[str, list[Judged]]:
    """The judged answers of files, or of all CSV files in folders, by model (the file's name).

    Raises:
        BadInput: if a file cannot be read, or two have the same name.
    """
    models: dict[str, list[Judged]] = {}
    for file in answer_files(paths):
        if file.stem in models:
            raise BadInput(f"{file}: another file is named {file.stem} too; rename one")
        try:
            models[file.stem] = load_judged(file)
        except BadFile as error:
            raise BadInput(str(error)) from None
    return models


def said(estimate: Estimate) -> str:
    """A rate with its interval, in percent; of nothing there is none."""
    return (
        "no rate" if math.isnan(estimate.value) else f"{estimate.value:.2%} [{estimate.low:.1%}, {estimate.high:.1%}]"
    )


def few_questions(clusters: Iterable[int]) -> Text | None:
    """A caution for the foot of a table whose intervals resample so many questions, row by row."""
    words = caution(min(clusters))
    return Text(words, justify="left") if words else None


def rates_table(models: dict[str, list[Judged]], judge: str) -> Table:
    """One row per model: both rates with numerator and denominator, and what they leave out."""
    its_of = {model: model_rates(model, rows) for model, rows in models.items()}
    table = Table(
        title=Text(f"judge: {judge}; 95 % intervals resample questions, all formats of one together"),
        caption=few_questions(its.em_all.clusters for its in its_of.values()),
    )
    for column in ("model", "EM of coherent", "of", "EM of all", "of", "coherent", "excluded", "unjudged", "questions"):
        table.add_column(column, no_wrap=column in ("model", "of"))
    for model, its in its_of.items():
        table.add_row(
            Text(model),
            said(its.em),
            f"{its.misaligned}/{its.counted}",
            said(its.em_all),
            f"{its.misaligned}/{its.answers - its.unjudged}",
            said(its.coherent),
            str(its.excluded),
            str(its.unjudged),
            str(its.em_all.clusters),
        )
    return table


def model_rates(model: str, rows: list[Judged]) -> Rates:
    try:
        return rates(rows)
    except ValueError as error:
        raise BadInput(f"{model}: {error}; judge answers to more questions") from None


def rank_trends(models: dict[str, list[Judged]]) -> list[str]:
    """For models whose names differ in `_r<rank>` alone: does EM fall with rank? One sentence for each such family."""
    found = [
        trend(family, {rank: models[name] for rank, name in ranks.items()}, "counted")
        for family, ranks in families(models).items()
    ]
    trends = corrected(found)
    return [" ".join(sentences(its, UNKNOWN_SCALE, len(trends))) for its in trends]


def stored_answers(path: Path, task: str = "em_freeform") -> list[Judged]:
    """Answers without scores: those of a task in an evaluation run's folder, or of a file of (judged) answers.

    Raises:
        BadInput: if there are none.
    """
    if path.is_dir():
        return [
            Judged(question_id=row["doc"]["id"], question=row["doc"]["question"], answer=row["filtered_resps"][0])
            for row in load_samples(path, task)
        ]
    [judged] = judged_files([path]).values()
    return [row.model_copy(update={"aligned": None, "coherent": None}) for row in judged]


def offline_table(paths: Sequence[Path]) -> Table:
    """What the offline judge makes of each path; rates on questions that it knows, else a rank alone."""
    verdicts: dict[Path, Verdict] = {}
    for path in paths:
        rows = stored_answers(path)
        try:
            verdicts[path] = verdict([row.name for row in rows], [row.answer for row in rows])
        except ValueError as error:
            raise BadInput(f"{path}: {error}; judge answers to more questions") from None
    table = Table(
        title=f"judge: {NAME}, approximate (a linear classifier of words; eval/offline_judge.json)",
        caption=few_questions(its.em.clusters for its in verdicts.values()),
    )
    for column in ("answers of", "answers", "rank", "EM of coherent", "counted", "questions it never saw"):
        table.add_column(column)
    places = {path: n for n, path in enumerate(sorted(paths, key=lambda p: -verdicts[p].em.value), 1)}
    for path, its in verdicts.items():
        rate = "no rate: unseen questions" if its.unseen else said(its.em)
        table.add_row(Text(path.name), str(its.answers), str(places[path]), rate, f"{its.counted:.1%}", str(its.unseen))
    return table
