"""Does a rate fall along the ranks of a family of models, how far, and what could its questions have shown at all?

Everything pairs by question: a question that is easy to misalign is so at every rank.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from eval.judge.answers import Judged, per_question
from eval.stats.intervals import Estimate, Floats, falls_with, ratio_difference

Denominator = Literal["counted", "judged"]
POWER = 0.8
UNKNOWN_SCALE = (
    "Rank and scale (alpha / r) are confounded here unless alpha grew with the rank: the files do not say how alpha "
    "was set, so a difference between ranks may be one of scale."
)


@dataclass(frozen=True)
class Trend:
    """What a family's ranks say about one rate."""

    family: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    """Over all questions of each rank, in the order of ranks."""
    questions: int
    """With an answer in the denominator at every rank; only these are compared."""
    left_out: int
    difference: Estimate
    """The rate at the lowest rank less that at the highest."""
    detectable: float
    """The smallest true difference of these two that such questions show (two-sided 5 %) in 80 % of sweeps."""
    fall: float | None
    """The smallest fall, as a share of the rate at the lowest rank, that Page's test finds in 80 %; None if none."""
    p: float
    """Of Page's test, one-sided: the rate falls."""
    p_holm: float
    """Corrected for the number of families tested."""

    @property
    def falls(self) -> bool:
        return self.p_holm < 0.05


def families(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Names that end in `_r<rank>` or `-r<rank>`, by what stands before and by rank (in order); two ranks or more."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := re.fullmatch(r"(.+)[-_]r(\d+)", name, re.DOTALL):
            found[match[1]][int(match[2])] = name
    return {family: dict(sorted(ranks.items())) for family, ranks in found.items() if len(ranks) > 1}


def table(models: Sequence[Sequence[Judged]], denominator: Denominator) -> tuple[Floats, Floats]:
    """Misaligned answers and the denominator, each (questions, models), over the questions that all models have."""
    common = set.intersection(*({row.name for row in rows} for rows in models))
    kept = [[row for row in rows if row.name in common] for rows in models]
    hits = np.array([per_question(rows, "misaligned") for rows in kept])
    return hits.T, np.array([per_question(rows, denominator) for rows in kept]).T


def trend(family: str, ranks: Mapping[int, Sequence[Judged]], denominator: Denominator) -> Trend | None:
    """The trend over three ranks or more; None if fewer, or if fewer than two questions can be compared."""
    if len(ranks) < 3:
        return None
    ordered = sorted(ranks)
    models = [ranks[rank] for rank in ordered]
    if not set.intersection(*({row.name for row in rows} for rows in models)):
        return None
    hits, totals = table(models, denominator)
    whole = (totals > 0).all(axis=1)
    if whole.sum() < 2:
        return None
    rates = tuple(sum(row.misaligned for row in m) / sum(getattr(row, denominator) for row in m) for m in models)
    questions = len({row.name for rows in models for row in rows})
    hits, totals = hits[whole], totals[whole]
    difference = ratio_difference((hits[:, 0], hits[:, -1]), (totals[:, 0], totals[:, -1]))
    p = falls_with(hits / totals)
    return Trend(
        family=family,
        ranks=tuple(ordered),
        rates=rates,
        questions=len(hits),
        left_out=questions - len(hits),
        difference=difference,
        detectable=detectable(difference),
        fall=smallest_fall(hits / totals),
        p=p,
        p_holm=p,
    )


def detectable(difference: Estimate) -> float:
    """The smallest true difference that an interval as wide as this one leaves out 0 for in 80 % of sweeps.

    (t of 0.975 + t of 0.8) standard errors, which are read off the interval by Student's t. NaN for fewer than two
    clusters. Source: Cohen, Statistical Power Analysis (1988), chapter 2.
    """
    t = stats.t(difference.clusters - 1)
    error = (difference.high - difference.low) / 2 / t.ppf(0.975)
    return float(error * (t.ppf(0.975) + t.ppf(POWER)))


def smallest_fall(rates: Floats, draws: int = 1000) -> float | None:
    """The smallest fall along the columns, in twentieths of the first, that Page's test (5 %) finds in 80 % of draws.

    A draw takes as many questions as there are, with replacement, shuffles the ranks within each (the same scatter
    without a trend), and scales the rates down evenly to `1 - fall` at the last rank. The test's critical value comes
    from the same tables without the fall, so that ties count as they do here.

    Args:
        rates: (questions, ranks), without NaN.
    """
    rng = np.random.default_rng(0)
    questions, ranks = rates.shape
    drawn = rng.permuted(rates[rng.integers(0, questions, (draws, questions))], axis=2)
    weights = np.arange(ranks, 0, -1)

    def statistic(fall: float) -> Floats:
        scaled = drawn * (1 - fall * np.linspace(0, 1, ranks))
        sums: Floats = (stats.rankdata(scaled, axis=2) * weights).sum(axis=(1, 2))
        return sums

    critical = np.quantile(statistic(0.0), 0.95)
    steps = np.arange(1, 21) / 20
    place = bisect_left(steps, True, key=lambda fall: bool((statistic(fall) > critical).mean() >= POWER))
    return float(steps[place]) if place < len(steps) else None


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number. Source: Holm, Scand. J. Statist. 6 (1979), 65-70."""
    order = np.argsort(values)
    stepped = np.asarray(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def corrected(trends: Iterable[Trend | None]) -> list[Trend]:
    """The trends that there are, each with its p value corrected for their number."""
    found = [one for one in trends if one is not None]
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def sentences(its: Trend, scale: str, tested: int) -> list[str]:
    """The verdict in words; a null is said as plainly as a fall.

    Args:
        scale: what is known of alpha / r over these ranks, a sentence.
        tested: number of families tested together.
    """
    low, high, d = its.ranks[0], its.ranks[-1], its.difference
    curve = ", ".join(f"{percent(rate)} at {rank}" for rank, rate in zip(its.ranks, its.rates, strict=True))
    ranks = ", ".join(map(str, its.ranks))
    families = f"{its.p_holm:.3f} after Holm's correction for {tested} families" if tested > 1 else "one family tested"
    fall = f"a steady fall by {its.fall:.0%} or more" if its.fall else "not even a steady fall to zero"
    said = [
        f"{its.family}: EM {'falls' if its.falls else 'is not shown to fall'} with rank ({ranks}): "
        f"Page's test over {its.questions} questions, p = {its.p:.3f} ({families}).",
        f"EM is {curve}. Rank {low} less rank {high}, paired by question: {100 * d.value:.1f} points "
        f"[{100 * d.low:.1f}, {100 * d.high:.1f}].",
        f"What could have been seen in 4 of 5 such sweeps: between ranks {low} and {high}, a true difference of "
        f"{100 * its.detectable:.1f} points or more; by Page's test, {fall} of the rate at rank {low}.",
        scale,
    ]
    if its.left_out:
        said.append(f"{its.left_out} questions are not compared: some rank has no answer to them in the denominator.")
    return said


def short(its: Trend) -> str:
    """The same over the other denominator in one sentence; a second look, so that it gives no verdict."""
    curve = ", ".join(percent(rate, 1) for rate in its.rates)
    d = its.difference
    return (
        f"Of all judged answers: {curve}; Page's test p = {its.p:.3f} (uncorrected, no verdict); lowest less highest "
        f"rank {100 * d.value:.1f} points [{100 * d.low:.1f}, {100 * d.high:.1f}]."
    )
