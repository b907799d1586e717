"""Does a measure change along ordered columns (ranks), where is it highest, and what could its rows have shown at all?

Rows are clusters (questions, programs). One test serves all: under "no difference" the columns of a row could change
places, so that the observed statistic is compared with those of tables whose rows are permuted (Pitman, Suppl. J. R.
Stat. Soc. 4, 1937, 119-130; Good, Permutation Tests, 1994). Tables that tie with the observed one count against it.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

import numpy as np

from eval.stats.intervals import Floats

Shape = Literal["falls", "rises", "rises, then falls", "falls, then rises"]
PERMUTATIONS = 1999
DRAWS = 400
POWER = 0.8
LEVEL = 0.05


def trend_p(tables: Floats) -> Floats:
    """Two-sided p values of a linear trend along the columns of each table (..., rows, columns), without NaN."""
    *_, rows, columns = tables.shape
    along = np.arange(columns) - (columns - 1) / 2
    rng = np.random.default_rng(0)
    permuted = rng.permuted(np.broadcast_to(along, (PERMUTATIONS, rows, columns)), axis=2).reshape(PERMUTATIONS, -1)
    flat = (tables - tables.mean(axis=-1, keepdims=True)).reshape(-1, rows * columns)
    observed = np.abs(flat @ np.tile(along, rows)) - 1e-9 * np.abs(flat).sum(axis=1)  # ties, to the last digits
    beyond: Floats = (1 + (np.abs(flat @ permuted.T) >= observed[:, None]).sum(axis=1)) / (1 + PERMUTATIONS)
    return beyond.reshape(tables.shape[:-2])


def peak_p(table: Floats) -> float:
    """P value of a peak between the first and the last column: some inner mean lies above both (rows, columns).

    It is the larger one of two tests, inner columns against the first and against the last, whose statistic is the
    highest inner mean less the end's, columns permuted within rows (intersection-union test; Berger, Technometrics 24,
    1982, 295-300). 1 for fewer than three columns. Of a dip it is `peak_p(-table)`.
    """
    if table.shape[1] < 3:
        return 1.0
    rng = np.random.default_rng(0)

    def above(columns: Floats) -> float:
        """The last column is the end."""
        permuted = rng.permuted(np.broadcast_to(columns, (PERMUTATIONS, *columns.shape)), axis=2)
        means = np.vstack([columns.mean(axis=0)[None], permuted.mean(axis=1)])
        statistic = means[:, :-1].max(axis=1) - means[:, -1]
        return float((statistic >= statistic[0] - 1e-9 * np.abs(columns).max()).mean())

    return max(above(table[:, 1:]), above(table[:, -2::-1]))


def turn_p(table: Floats) -> tuple[bool, float]:
    """Whether the likelier turn between the ends is a peak, and not a dip; its p value, twice the smaller one."""
    peak, dip = peak_p(table), peak_p(-table)
    return peak <= dip, min(1.0, 2 * min(peak, dip))


def slope(table: Floats) -> float:
    """The linear trend along the columns that `trend_p` tests, per column; below 0 where it falls (rows, columns)."""
    along = np.arange(table.shape[1]) - (table.shape[1] - 1) / 2
    return float(table.mean(axis=0) @ along / (along @ along))


def shape(p_trend: float, p_turn: float, peaks: bool, trend: float, fall: float) -> Shape | None:
    """What is shown, if anything; a peak or a dip goes before a trend, which does not hold over all columns then.

    A trend that the ends contradict, as where some questions have many more answers than others, is not said: `trend`
    is the `slope` of what was tested, `fall` the first column's rate less the last one's.
    """
    if p_turn < LEVEL:
        return "rises, then falls" if peaks else "falls, then rises"
    if p_trend < LEVEL and trend * fall < 0:
        return "falls" if fall > 0 else "rises"
    return None


def highest_shares(hits: Floats, totals: Floats, resamples: int = 2000) -> Floats:
    """How often each column of (seeds, questions, columns) has the highest rate when questions, and the seeds of each
    column, are drawn anew; columns that tie share a draw."""
    rng = np.random.default_rng(0)
    seeds, questions, columns = hits.shape
    of_questions = rng.multinomial(questions, np.full(questions, 1 / questions), resamples)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), (resamples, columns))
    sums = [np.einsum("bq,bcs,sqc->bc", of_questions, of_seeds, part, optimize=True) for part in (hits, totals)]
    rates = sums[0] / np.maximum(sums[1], 1)
    best = rates == rates.max(axis=1, keepdims=True)
    shares: Floats = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def smallest_fall(hits: Floats, totals: Floats, tested: int = 1) -> float | None:
    """The smallest even fall of a rate, as a share of it at the first column, that `trend_p` finds in 80 % of sweeps.

    In fortieths; None if not even a fall to 0 is found. In each simulated sweep columns change places within each
    question (the same scatter, no trend), and each hit stays with the probability that the fall leaves. Hits and totals
    are (questions, columns); `tested` trends are what Holm's correction is for; it may ask all of the first of them.
    """
    rng = np.random.default_rng(0)
    shuffled_hits, shuffled_totals = _shuffled(rng, hits, totals)
    left = np.linspace(0, 1, hits.shape[1])

    def fallen(fall: float) -> Floats:
        rates: Floats = rng.binomial(shuffled_hits.astype(int), 1 - fall * left) / shuffled_totals
        return rates

    return _smallest(np.arange(1, 41) / 40, fallen, tested) if hits.any() else None


def smallest_shift(values: Floats, tested: int = 1) -> float | None:
    """The smallest even change from the first to the last column, in the unit of the values, found in 80 % of sweeps.

    As `smallest_fall`, in 100 steps up to four standard deviations within rows; None if not even that is found.
    """
    (shuffled,) = _shuffled(np.random.default_rng(0), values)
    steps = np.arange(1, 101) / 25 * float((values - values.mean(axis=1, keepdims=True)).std())
    change = np.linspace(0, 1, values.shape[1])
    return _smallest(steps, lambda shift: shuffled + shift * change, tested) if steps.any() else None


def _shuffled(rng: np.random.Generator, *tables: Floats) -> list[Floats]:
    """Each table DRAWS times, with columns that change places within rows; in all tables alike."""
    shape = (DRAWS, *tables[0].shape)
    order = rng.permuted(np.broadcast_to(np.arange(shape[2]), shape), axis=2)
    return [np.take_along_axis(np.broadcast_to(table, shape), order, axis=2) for table in tables]


def _smallest(steps: Floats, tables: Callable[[float], Floats], tested: int) -> float | None:
    level = LEVEL / tested
    place = bisect_left(steps, True, key=lambda step: bool((trend_p(tables(step)) < level).mean() >= POWER))
    return float(steps[place]) if place < len(steps) else None
