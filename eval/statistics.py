"""Intervals for everything that is reported: bootstrap over clusters, AUC over twins.

A cluster is what varies independently: a program (with its twins, halves and seeds) or a question (with
its answers). Resampling whole clusters keeps the answers to one question together; treating them as
independent makes intervals too narrow (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile interval over `clusters` resampled clusters."""

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


def _bootstrap(statistic: Callable[[Index], float], clusters: int, resamples: int) -> Any:
    return stats.bootstrap(
        (np.arange(clusters),),
        lambda index: statistic(np.asarray(index, dtype=np.int64)),
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )


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
    if clusters < 2:
        raise ValueError(f"an interval needs at least two clusters, not {clusters}")
    interval = _bootstrap(statistic, clusters, resamples).confidence_interval
    return Estimate(statistic(np.arange(clusters)), float(interval.low), float(interval.high), clusters)


def bootstrap_stderr(statistic: Callable[[Index], float], clusters: int, resamples: int = 1000) -> float:
    """Standard error of the statistic when clusters are resampled (NaN for fewer than two clusters)."""
    return float(_bootstrap(statistic, clusters, resamples).standard_error) if clusters > 1 else float("nan")


def mean_interval(per_cluster: Sequence[float] | Floats) -> Estimate:
    """The mean of one number per cluster, with its interval."""
    values = np.asarray(per_cluster, dtype=np.float64)
    return cluster_bootstrap(lambda index: float(values[index].mean()), len(values))


def auc_matrix(positive: Sequence[float] | Floats, negative: Sequence[float] | Floats) -> Floats:
    """(n, n) matrix of twins: 1 where positive i scores above negative j, 1/2 on a tie, else 0.

    Its mean is the area under the ROC curve (Mann-Whitney statistic; Hanley and McNeil, 1982). A bootstrap
    over twins resamples rows and columns alike.
    """
    p, n = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if p.shape != n.shape:
        raise ValueError(f"twins come in equal numbers, not {p.size} and {n.size}")
    result: Floats = (np.sign(p[:, None] - n[None, :]) + 1) / 2
    return result


def matrix_auc(matrix: Floats, index: Index | None = None) -> float:
    """The AUC over all twins, or over those in `index` (with repeats)."""
    return float((matrix if index is None else matrix[np.ix_(index, index)]).mean())
