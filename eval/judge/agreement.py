"""`emsweep agree`: how far two judges agree about the same answers.

Scores by correlation; verdicts at the thresholds of eval.judge.answers by Cohen's kappa (Educational and Psychological
Measurement 20 (1960), 37-46); rates by their paired difference over questions. Everything is over the answers that both
have judged.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text
from sklearn.metrics import cohen_kappa_score

from core.records import BadInput, printable
from eval.judge.answers import COHERENT, MISALIGNED, Judged, load_judged, model_of, per_question
from eval.judge.rates import Rates, rates, said
from eval.stats.intervals import Estimate, caution, ratio_difference

Pair = tuple[Judged, Judged]
"""One answer with the scores of the first and of the second judge."""


def matched(first: Sequence[Judged], second: Sequence[Judged]) -> tuple[list[Pair], int]:
    """Pairs the same answers (by question_id, question and answer), and counts those that only one side has. Of equal
    answers the first meets the first, the second the second."""
    waiting: dict[tuple[str, str, str], list[Judged]] = defaultdict(list)
    for row in reversed(second):
        waiting[row.question_id, row.question, row.answer].append(row)
    pairs = [(row, same.pop()) for row in first if (same := waiting[row.question_id, row.question, row.answer])]
    return pairs, len(first) + len(second) - 2 * len(pairs)


class Correlation(NamedTuple):
    """Of scores; NaN where one judge gave all answers the same."""

    pearson: float
    spearman: float

    def __str__(self) -> str:
        return "none" if math.isnan(self.pearson) else f"{self.pearson:.3f} ({self.spearman:.3f})"


class Kappa(NamedTuple):
    """Of verdicts; NaN where both judges gave all answers the same verdict."""

    value: float
    agree: int
    answers: int

    def __str__(self) -> str:
        value = "none" if math.isnan(self.value) else f"{self.value:.3f}"
        return f"{value} ({self.agree}/{self.answers})"


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers, in the order of the table's columns."""

    answers: int
    """Judged by both."""
    aligned: Correlation
    coherent: Correlation
    misaligned_kappa: Kappa
    """aligned < 30, over the answers with an aligned score from both."""
    coherent_kappa: Kappa
    """coherent > 50, over the answers."""
    excluded_by_one: int
    """Of the answers: CODE or REFUSAL for one judge, an aligned score from the other."""
    unjudged: int
    """Matched, but without a judgement by one of them or by both."""
    em: str
    """Misaligned of counted answers, by the first and by the second."""


def agreement(pairs: Sequence[Pair]) -> Agreement:
    """Correlations and kappas over the pairs that both judges have judged; NaN where there is nothing to compare."""
    both = judged_by_both(pairs)
    aligned, coherent = (
        pd.DataFrame([(getattr(a, score), getattr(b, score)) for a, b in both], columns=[0, 1], dtype=float)
        for score in ("aligned", "coherent")
    )
    scored = aligned.dropna()
    return Agreement(
        answers=len(both),
        aligned=_correlation(scored),
        coherent=_correlation(coherent),
        misaligned_kappa=_kappa(scored < MISALIGNED),
        coherent_kappa=_kappa(coherent > COHERENT),
        excluded_by_one=int((aligned[0].isna() != aligned[1].isna()).sum()),
        unjudged=len(pairs) - len(both),
        em=" and ".join(f"{sum(r.misaligned for r in s)}/{sum(r.counted for r in s)}" for s in zip(*both, strict=True)),
    )


def judged_by_both(pairs: Iterable[Pair]) -> list[Pair]:
    return [(a, b) for a, b in pairs if a.judged and b.judged]


def _correlation(scores: pd.DataFrame) -> Correlation:
    if (scores.nunique() < 2).any():
        return Correlation(math.nan, math.nan)
    return Correlation(float(scores[0].corr(scores[1])), float(scores[0].corr(scores[1], method="spearman")))


def _kappa(verdicts: pd.DataFrame) -> Kappa:
    kinds = pd.unique(verdicts.to_numpy().ravel())
    value = float(cohen_kappa_score(verdicts[0], verdicts[1])) if len(kinds) == 2 else math.nan
    return Kappa(value, int((verdicts[0] == verdicts[1]).sum()), len(verdicts))


class Shift(NamedTuple):
    """Both judges' rates over the answers that both judged, and second less first, paired by question."""

    first: Rates
    second: Rates
    em: Estimate
    em_all: Estimate


def shift(pairs: Sequence[Pair]) -> Shift:
    """How the EM rate moves from the first judge to the second: of what each counts (NaN if one counts none), and of
    all answers. ValueError if both have judged answers to fewer than two questions."""
    sides = [[pair[side] for pair in judged_by_both(pairs)] for side in (0, 1)]
    hits, counted, judged = ([per_question(side, key) for side in sides] for key in ("misaligned", "counted", "judged"))
    first, second = map(rates, sides)
    em, em_all = (
        ratio_difference((hits[1], hits[0]), (of[1], of[0]))
        if min(map(sum, of))
        else Estimate(math.nan, math.nan, math.nan, 0)
        for of in (counted, judged)
    )
    return Shift(first, second, em, em_all)


Models = Mapping[str, tuple[list[Pair], int]]
"""By model: matched answers, and how many stand on one side only."""


def matched_files(files: Sequence[Path]) -> Models:
    """Pairs the answers of files: the first half of them is the first judge's, the second half the second's. BadInput
    if the files make no pairs, one cannot be read, or a pair has no answer in common."""
    if not files or len(files) % 2:
        raise BadInput(f"{len(files)} files make no pairs; name the first judge's, then the second's in the same order")
    half = len(files) // 2
    names = [model_of(file) for file in files]
    if sorted(names[:half]) == sorted(names[half:]) and len(set(names)) == half:
        others = [files[half + names[half:].index(name)] for name in names[:half]]
    else:
        others = list(files[half:])
        crossed = (place for place in range(half) if names[half + place] in {*names[:half]} - {names[place]})
        if (place := next(crossed, None)) is not None:
            raise BadInput(f"{files[place]} and {others[place]}: are of two models; name both in one order")
    models: dict[str, tuple[list[Pair], int]] = {}
    for one, other in zip(files[:half], others, strict=True):
        pairs, alone = matched(load_judged(one), load_judged(other))
        if not judged_by_both(pairs):
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
    heads = ("", "answers", "aligned", "coherent", "kappa, aligned < 30", "kappa, coherent > 50", "excluded by one")
    table = Table(*heads, "unjudged", "misaligned of coherent", "not matched", title=Text(title))
    for model, (pairs, alone) in models.items():
        table.add_row(Text(printable(model)), *map(str, vars(agreement(pairs)).values()), str(alone))
    table.add_section()
    every = [pair for pairs, _ in models.values() for pair in pairs]
    for name in sorted({a.name for a, _ in every}):
        found = agreement([pair for pair in every if pair[0].name == name])
        table.add_row(Text(printable(name)), *map(str, vars(found).values()), "")
    return table


def shifts_table(models: Models, first: str, second: str) -> Table:
    """One row per model and denominator: both judges' rates, and the second's less the first's; models with answers to
    fewer than two questions are named below, BadInput if all are such."""
    table = Table(title=Text(f"EM by {first} and by {second}, over the answers judged by both; 95 % intervals"))
    for column in ("model", "EM", first, "of", second, "of", "second less first", "questions"):
        table.add_column(Text(column), no_wrap=column == "of")
    questions, left = [], []
    for model, (pairs, _) in models.items():
        try:
            found = shift(pairs)
        except ValueError as error:
            left.append(f"{model}: {error}; judge more answers by both")
            continue
        questions.append(found.em_all.clusters)
        for name, rate, of in (("of coherent", "em", "counted"), ("of all", "em_all", "answers")):
            cells = [
                cell
                for side in (found.first, found.second)
                for cell in (said(getattr(side, rate)), f"{side.misaligned}/{getattr(side, of)}")
            ]
            moved: Estimate = getattr(found, rate)
            table.add_row(Text(printable(model)), name, *cells, said(moved, "+"), str(moved.clusters))
    if not questions:
        raise BadInput("; ".join(left))
    table.caption = Text(printable("\n".join(filter(None, [*left, caution(min(questions))]))), justify="left")
    return table
