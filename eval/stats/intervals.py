"""95 % intervals for everything that is reported: means, rates and differences of rates.

A cluster is what varies independently: a program (with its twins, halves and samples) or an entry of a file of
questions (with its paraphrases, formats and answers). Treating the answers to one question as independent makes
intervals too narrow. Seeds are a second level, crossed with clusters: where an arm has two or more, values are (seeds,
clusters) and an interval holds what another seed would change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # not scipy.stats, which takes a second to import

Floats = npt.NDArray[np.float64]

FEW = 24
"""Clusters below which an interval comes with a caution."""

LIKENESS = 0.2
"""Least intraclass correlation of the answers to one question that an interval of a rate assumes.

In the ten published files that show misalignment it is 0.13 to 0.31 (median 0.21; benchmarks/interval_coverage.py); a
few misaligned answers alone tell nothing of it.
"""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over `clusters` clusters."""

    value: float
    low: float
    high: float
    clusters: int

    @property
    def off_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def words(self, value: str = ".3f", ends: str | None = None) -> str:
        """`value [low, high]`, by formats of numbers; that of the ends is the value's if not given."""
        ends = ends or value
        return f"{self.value:{value}} [{self.low:{ends}}, {self.high:{ends}}]"


def _variances(values: Floats) -> tuple[float, float]:
    """What clusters and what seeds add to the variance of the mean of (seeds, clusters).

    A cluster's part holds the scatter within its cells; the seeds' part is what their means scatter beyond that, and 0
    for one seed. Source: the two-way layout with one value a cell (Searle, Casella and McCulloch, Variance Components,
    1992, chapter 4).
    """
    seeds, clusters = values.shape
    of_clusters = float(values.mean(axis=0).var(ddof=1)) / clusters
    if seeds == 1:
        return of_clusters, 0.0
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    noise = float(np.square(rest).sum()) / ((seeds - 1) * (clusters - 1)) / values.size
    return of_clusters, max(0.0, float(values.mean(axis=1).var(ddof=1)) / seeds - noise)


def _two_way(values: Sequence[float] | Floats) -> Floats:
    """(seeds, clusters), of one seed where only clusters are given; ValueError for fewer than two clusters."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.shape[1] < 2:
        raise ValueError(f"an interval needs at least two clusters, not {table.shape[1]}")
    return table


def mean_interval(values: Sequence[float] | Floats) -> Estimate:
    """The mean of one number per cluster, or (seeds, clusters), with Student's t interval.

    Degrees of freedom over two levels: Satterthwaite, Biometrics Bulletin 2 (1946), 110-114. No width where all numbers
    are equal; ValueError for fewer than two clusters.
    """
    table = _two_way(values)
    seeds, clusters = table.shape
    mean, (of_clusters, of_seeds) = float(table.mean()), _variances(table)
    variance = of_clusters + of_seeds
    if variance == 0:
        return Estimate(mean, mean, mean, clusters)
    freedom = variance**2 / (of_clusters**2 / (clusters - 1) + of_seeds**2 / max(seeds - 1, 1))
    reach = float(special.stdtrit(freedom, 0.975)) * variance**0.5
    return Estimate(mean, mean - reach, mean + reach, clusters)


def ratio_interval(hits: Sequence[float] | Floats, totals: Sequence[float] | Floats) -> Estimate:
    """A rate: sum of `hits` over sum of `totals`, both per cluster or (seeds, clusters); NaN if it is of nothing.

    Wilson's score interval over the effective number of answers, which is their number over the design effect (Kish,
    Survey Sampling, 1965; Franco, Little, Louis and Slud, J. Survey Stat. Methodol. 7, 2019, 334-364): the variance
    between clusters and seeds over that of independent answers, and at least 1 + (answers of a cluster - 1) LIKENESS.
    So 0, 1 of 400 and 14 % have one rule, and no rate of 0 has a wider interval than a rate above it from the same
    design (coverage: benchmarks/interval_coverage.py). ValueError for fewer than two clusters.
    """
    h, t = _two_way(hits), _two_way(totals)
    clusters, answers = int((t.sum(axis=0) > 0).sum()), float(t.sum())
    if answers <= 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rate = float(h.sum()) / answers
    binomial = rate * (1 - rate) / answers
    of_clusters, of_seeds = _variances((h - rate * t) * t.size / answers)
    sizes = t.sum(axis=0)
    design = max(of_clusters / binomial if binomial else 0.0, 1 + (np.square(sizes).sum() / answers - 1) * LIKENESS)
    share = of_seeds / (of_seeds + design * binomial) if of_seeds else 0.0
    z = float(special.stdtrit((len(t) - 1) / share**2, 0.975) if share else special.ndtri(0.975))
    z2 = z**2 * (design + (of_seeds / binomial if of_seeds else 0.0)) / answers
    centre, reach = (rate + z2 / 2) / (1 + z2), np.sqrt(rate * (1 - rate) * z2 + z2**2 / 4) / (1 + z2)
    low, high = min(rate, max(0.0, float(centre - reach))), max(rate, min(1.0, float(centre + reach)))
    return Estimate(rate, low, high, clusters)


def ratio_difference(hits: tuple[Floats, Floats], totals: tuple[Floats, Floats]) -> Estimate:
    """The difference of two rates (first less second) over the same clusters, paired.

    From the limits of `ratio_interval` and the correlation of the two rates over clusters and seeds: two rates of 0
    differ by 0, give or take what each of them leaves open. Seeds pair in their order; a rate of one seed pairs with
    each. ValueError for fewer than two clusters, or a rate without any total. Source: Newcombe, Stat. Med. 17 (1998),
    2635-2650, method 10; Zou and Donner, Stat. Med. 27 (2008), 1693-1702.
    """
    first, second = (ratio_interval(h, t) for h, t in zip(hits, totals, strict=True))
    if not (first.clusters and second.clusters):
        raise ValueError("one of the rates is over nothing")
    one, other = (
        (_two_way(h) - rate.value * (of := _two_way(t))) * of.size / of.sum()
        for h, t, rate in zip(hits, totals, (first, second), strict=True)
    )
    # By the variance of the difference: what seeds add to one rate alone is no likeness of the two.
    of_one, of_other, of_both = (float(sum(_variances(part))) for part in (one, other, one - other))
    likeness = 0.0
    if min(of_one, of_other) > 1e-18:  # less is rounding, as where all questions have one rate
        likeness = float(np.clip((of_one + of_other - of_both) / (2 * np.sqrt(of_one * of_other)), -1, 1))

    def reach(a: float, b: float) -> float:
        return float(max(0.0, a**2 + b**2 - 2 * likeness * a * b) ** 0.5)

    value = first.value - second.value
    low = value - reach(first.value - first.low, second.high - second.value)
    high = value + reach(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high, one.shape[1])


def caution(questions: int) -> str | None:
    """What is to be said beside intervals of `ratio_interval` over so few questions; None where nothing is."""
    if questions >= FEW:
        return None
    return (
        f"Caution: {questions} questions are few. 95 % intervals over 8 questions cover what questions like these give "
        "in 97 % of draws (94 at worst; benchmarks/interval_coverage.py); questions of other kinds may differ more."
    )
