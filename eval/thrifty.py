"""Thrifty judging: the offline judge reads all answers, a better judge a planned random sample of them. Pure.

Combined by prediction-powered inference with power tuning (Angelopoulos et al., Science 382 (2023), 669-674;
Angelopoulos, Duchi and Zrnic, PPI++, arXiv 2311.01453). Where the sample is part of the answers that is survey
sampling's difference estimator with a fitted slope (Cochran, Sampling Techniques, 1977, sections 7.3 and 7.10):
lambda times the prediction, summed over all answers, and the verdict less lambda times the prediction, summed over
the sample and blown up. It holds whatever the predictions are worth: lambda falls to 0 with their worth.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.judged import Judged
from eval.statistics import Estimate, Floats, Index, ratio_interval

LEAST = 2
"""Answers of each stratum that are asked about, where there are so many: one alone has no variance."""
LEAST_FREEDOM = 10
"""Degrees of freedom (answers drawn less strata) below which the predictions get no weight."""
SUMMED = ("misaligned", "counted", "coherent_answer")


def plan(rows: Sequence[Judged], share: float, seed: int = 0) -> list[int]:
    """The places of the answers to ask about: the same share of each question in each format, at least `LEAST`.

    An answer's lot is a digest of what it says: a rerun asks about the same ones, a larger share about these and
    more. Equal answers draw a lot each: drawn together they would be no simple random sample.
    """
    copies: Counter[tuple[str, str, str]] = Counter()
    strata: dict[str, list[tuple[bytes, int]]] = {}
    for place, row in enumerate(rows):
        what = (row.question_id, row.question, row.answer)
        copies[what] += 1
        lot = hashlib.sha256(repr((seed, copies[what], *what)).encode()).digest()
        strata.setdefault(row.question_id, []).append((lot, place))
    drawn = (sorted(lots)[: max(LEAST, round(share * len(lots)))] for lots in strata.values())
    return sorted(place for lots in drawn for _, place in lots)


@dataclass(frozen=True)
class Within:
    """A rate of these very answers, with the 95 % interval of what the judge would say if it read them all."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Combined:
    """What a model's answers come to, from verdicts on a sample and predictions of all."""

    answers: int
    planned: int
    judged: int
    """Answers of the sample that got a judgement."""
    left_out: int
    """Answers to a question in a format of which none got a judgement; in no rate."""
    misaligned: float
    """Estimated number among all answers, as the next."""
    counted: float
    weights: tuple[float, float, float]
    """Lambda of each of `SUMMED`. 0: the predictions are worth nothing; 1: they are taken at their word."""
    em: Estimate
    """Misaligned of counted. The interval resamples questions; the error of the sample is in it."""
    em_all: Estimate
    """Misaligned of all answers."""
    coherent: Estimate
    em_within: Within
    em_all_within: Within


def combine(rows: Sequence[Judged], sample: Sequence[int], verdicts: Sequence[Judged], p: Floats) -> Combined:
    """The rates of all answers, from the verdicts on a planned sample of them.

    An answer of the sample without a judgement counts as missing by chance within its stratum (a question in a format).

    The interval over questions needs nothing but the estimated sums of each question: they vary by what differs between
    questions and by the luck of the draw together (Cochran 1977, section 11.8).

    Args:
        rows: all answers of one model; their scores are not read.
        sample: places in `rows`, from `plan`.
        verdicts: the judge's, one for each place of the sample.
        p: (answers, 2), as from OfflineJudge.probabilities; any predictor will do.

    Raises:
        ValueError: if fewer than two questions have a judgement.
    """
    places = np.array([place for place, row in zip(sample, verdicts, strict=True) if row.judged], dtype=np.int64)
    y = np.array([[getattr(row, what) for what in SUMMED] for row in verdicts if row.judged], dtype=np.float64)
    y = y.reshape(len(places), len(SUMMED))
    _, stratum = np.unique([row.question_id for row in rows], return_inverse=True)
    _, question = np.unique([row.name for row in rows], return_inverse=True)
    draw = _Draw(np.bincount(stratum), stratum[places])
    inside = (draw.drawn > 0)[stratum]
    predicted = np.stack([p[:, 0] * p[:, 1], p[:, 0], p[:, 0]], axis=1) * inside[:, None]

    y_deviation, p_deviation = draw.deviation(y), draw.deviation(predicted[places])
    shared, alone = draw.variance(y_deviation, p_deviation), draw.variance(p_deviation, p_deviation)
    # Where little is left after the fit, a fitted weight would explain anything. Equal predictions vary by rounding.
    fitted = int(draw.freedom >= LEAST_FREEDOM)
    weights = np.divide(shared, alone, out=np.zeros_like(alone), where=fitted * alone > 1e-9)
    parts = weights * predicted
    parts[places] += draw.blow_up * (y - parts[places])
    sums = [np.bincount(question, column).astype(np.float64) for column in (*parts.T, inside)]
    misaligned, counted, coherent, whole = (column[sums[-1] > 0] for column in sums)
    em, em_all = ratio_interval(misaligned, counted), ratio_interval(misaligned, whole)

    rest = y_deviation - weights * p_deviation

    def within(its: Estimate, deviation: Floats, total: float, drawn: float) -> Within:
        if len(places) == inside.sum():
            return Within(its.value, its.value, its.value)
        variance = float(draw.variance(deviation, deviation)) / total**2
        return _korn_graubard(its.value, variance, drawn, max(1, draw.freedom - fitted))

    return Combined(
        answers=len(rows),
        planned=len(sample),
        judged=len(places),
        left_out=int((~inside).sum()),
        misaligned=float(misaligned.sum()),
        counted=float(counted.sum()),
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        em=em,
        em_all=em_all,
        coherent=ratio_interval(coherent, whole),
        em_within=within(em, rest[:, 0] - em.value * rest[:, 1], counted.sum(), y[:, 1].sum()),
        em_all_within=within(em_all, rest[:, 0], whole.sum(), len(y)),
    )


@dataclass(frozen=True)
class _Draw:
    """A random sample from strata."""

    size: Index
    """(strata,) answers in each."""
    own: Index
    """(answers drawn,) the stratum of each."""

    @property
    def drawn(self) -> Index:
        """(strata,)"""
        return np.bincount(self.own, minlength=len(self.size))

    @property
    def freedom(self) -> int:
        return len(self.own) - int((self.drawn > 0).sum())

    @property
    def blow_up(self) -> Floats:
        """(answers drawn, 1): for how many answers each of them stands."""
        return (self.size[self.own] / self.drawn[self.own])[:, None]

    def deviation(self, values: Floats) -> Floats:
        """(answers drawn, columns): less the mean of those drawn from the same stratum."""
        sums = np.stack([np.bincount(self.own, column, len(self.size)) for column in values.T], axis=1)
        result: Floats = values - (sums / np.maximum(self.drawn, 1)[:, None])[self.own]
        return result

    def variance(self, one: Floats, other: Floats) -> Floats:
        """(columns,): covariance of two blown-up sums, from the deviations drawn (Cochran 1977, theorem 5.3)."""
        drawn = self.drawn[self.own]
        spread = self.blow_up[:, 0] * (self.blow_up[:, 0] - 1) * drawn / np.maximum(drawn - 1, 1)
        result: Floats = spread @ (one * other)
        return result


def _korn_graubard(rate: float, variance: float, drawn: float, freedom: int) -> Within:
    """The exact binomial interval of as many independent answers as have this variance.

    It stays a rate, and is wide enough where few answers of the sample are misaligned. Source: Korn and Graubard,
    Survey Methodology 24 (1998), 193-201. Without any variance (but rounding) there are as many as were drawn.
    """
    if np.isnan(rate):
        return Within(rate, rate, rate)
    effective = rate * (1 - rate) / variance if variance > 1e-12 and 0 < rate < 1 else drawn
    effective *= (stats.t.ppf(0.975, max(1, drawn - 1)) / stats.t.ppf(0.975, freedom)) ** 2
    hits = rate * effective
    low = stats.beta.ppf(0.025, hits, effective - hits + 1) if rate > 0 else 0.0
    high = stats.beta.ppf(0.975, hits + 1, effective - hits) if rate < 1 else 1.0
    return Within(rate, min(rate, float(low)), max(rate, float(high)))
