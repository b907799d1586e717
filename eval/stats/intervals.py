"""95 % intervals for everything that is reported: means, rates, their differences, AUC over twins.

A cluster is what varies independently: a program (with its twins, halves and seeds) or a question (with
its answers). Resampling whole clusters keeps the answers to one question together; treating them as
independent makes intervals too narrow (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.tasks.em.scores import Floats as Floats
from eval.tasks.em.scores import Index

FEW = 24
"""Clusters below which an interval comes with a caution."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over `clusters` clusters."""

    value: float
    low: float
    high: float
    clusters: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def off_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def cluster_bootstrap(statistic: Callable[[Index], float], clusters: int, resamples: int = RESAMPLES) -> Estimate:
    """The statistic with its percentile interval when clusters are resampled with replacement.

    Args:
        statistic: maps cluster indices (with repeats) to a number.
        clusters: how many clusters there are; at least 2.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Percentile
    intervals are somewhat too narrow for few clusters (under about 20).

    Raises:
        ValueError: for fewer than two clusters.
    """
    _at_least_two(clusters)
    interval = stats.bootstrap(
        (np.arange(clusters),),
        lambda index: statistic(np.asarray(index, dtype=np.int64)),
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(statistic(np.arange(clusters)), float(interval.low), float(interval.high), clusters)


def mean_interval(per_cluster: Sequence[float] | Floats) -> Estimate:
    """The mean of one number per cluster, with Student's t interval (no width where all numbers are equal).

    Raises:
        ValueError: for fewer than two clusters.
    """
    values = np.asarray(per_cluster, dtype=np.float64)
    _at_least_two(len(values))
    mean = float(values.mean())
    if np.ptp(values) == 0:  # scipy warns of precision lost
        return Estimate(mean, mean, mean, len(values))
    interval = stats.ttest_1samp(values, 0.0).confidence_interval()
    return Estimate(mean, float(interval.low), float(interval.high), len(values))


def _at_least_two(clusters: int) -> None:
    if clusters < 2:
        raise ValueError(f"an interval needs at least two clusters, not {clusters}")


def ratio_interval(hits: Sequence[float] | Floats, totals: Sequence[float] | Floats) -> Estimate:
    """A rate over clusters: sum of `hits` over sum of `totals`, both per cluster; kept between 0 and 1 where the sums
    are estimates and may stray.

    The interval is the delete-one jackknife's on the logit scale with Student's t and one degree of freedom less
    than there are clusters (Efron and Tibshirani 1993, chapter 11; Cochran, Sampling Techniques, 1977, section 6.6).
    With questions drawn anew from the ten published files that show misalignment it covers the truth in 93 % of
    draws of 8 questions (86 to 97 by file), 94 % of 24 and 94 % of 48; the percentile bootstrap in 80, 90 and 92 %
    (benchmarks/interval_coverage.py). With 8 questions, then, take it with caution.
    A rate of exactly 0 or 1 has the exact binomial interval with each cluster as one trial: wide, and true for
    whatever the answers within a question share.

    Raises:
        ValueError: for fewer than two clusters.
    """
    h, t = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    clusters = int((t > 0).sum())
    _at_least_two(len(t))
    if t.sum() <= 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rate = float(np.clip(h.sum() / t.sum(), 0, 1))
    h, t = h[t > 0], t[t > 0]
    without = (h.sum() - h) / np.where(t.sum() - t > 0, t.sum() - t, np.nan)
    if rate in (0.0, 1.0) or not np.all((without > 0) & (without < 1)):
        own = stats.binomtest(round(rate * clusters), clusters).proportion_ci()
        return Estimate(rate, min(rate, float(own.low)), max(rate, float(own.high)), clusters)
    logits = np.log(without / (1 - without))
    error = np.sqrt((clusters - 1) / clusters * np.square(logits - logits.mean()).sum())
    reach = stats.t.ppf(0.975, clusters - 1) * error
    centre = np.log(rate / (1 - rate))
    low, high = 1 / (1 + np.exp(-(centre - reach))), 1 / (1 + np.exp(-(centre + reach)))
    return Estimate(rate, min(rate, float(low)), max(rate, float(high)), clusters)


def ratio_difference(hits: tuple[Floats, Floats], totals: tuple[Floats, Floats]) -> Estimate:
    """The difference of two rates (first less second) over the same clusters, paired.

    Each rate is a sum over a sum, as in `ratio_interval`. The interval is the delete-one jackknife's with Student's t:
    a cluster is left out of both rates at once. With questions drawn anew from pairs of the published files it covers
    the truth in 94 % of draws of 8, 24 and 48 questions (83 % at worst), the percentile bootstrap in 85, 90 and 93 %
    (benchmarks/interval_coverage.py). Where no cluster moves the difference the interval has no width, which says
    nothing about other clusters; where all that one rate counts is in one cluster, it is [-1, 1].

    Raises:
        ValueError: for fewer than two clusters, or a rate without any total.
    """
    clusters = len(totals[0])
    _at_least_two(clusters)
    if not all(t.sum() > 0 for t in totals):
        raise ValueError("one of the rates is over nothing")
    first, second = (float(h.sum() / t.sum()) for h, t in zip(hits, totals, strict=True))
    rest = [t.sum() - t for t in totals]
    if min(left.min() for left in rest) <= 0:
        return Estimate(first - second, -1.0, 1.0, clusters)
    left_out = (hits[0].sum() - hits[0]) / rest[0] - (hits[1].sum() - hits[1]) / rest[1]
    error = np.sqrt((clusters - 1) / clusters * np.square(left_out - left_out.mean()).sum())
    reach = float(stats.t.ppf(0.975, clusters - 1) * error)
    return Estimate(first - second, first - second - reach, first - second + reach, clusters)


def caution(questions: int) -> str | None:
    """What is to be said beside intervals of `ratio_interval` over so few questions; None where nothing is."""
    if questions >= FEW:
        return None
    return (
        f"Caution: {questions} questions are few. 95 % intervals over 8 questions cover the truth in 93 % of draws "
        "(86 to 97 by model), over 24 in 94 % (benchmarks/interval_coverage.py)."
    )


def falls_with(rates: Floats) -> float:
    """P value of Page's test that a rate falls along the columns (ranks, in order), row by row (questions).

    Rows are compared within themselves, so that easy and hard questions do not blur the trend. Exact for small
    tables. Source: Page, J. Am. Stat. Assoc. 58 (1963), 216-230; scipy.stats.page_trend_test.

    Args:
        rates: (questions, ranks), at least 3 columns, without NaN.
    """
    columns = rates.shape[1]
    return float(stats.page_trend_test(rates, predicted_ranks=np.arange(columns, 0, -1)).pvalue)
