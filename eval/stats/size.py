"""Do a model's size and its training data decide an outcome, and which of them, or their ratio?

outcome = family + b_P log10(non-embedding parameters) + b_T log10(training tokens), fitted by least squares with both
slopes free. The model is the unit: its answers, questions and seeds make one number. Families differ in architecture
and data, so that only differences within a family count; what is tested is therefore permuted within families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from math import factorial, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from eval.stats.intervals import Floats
from eval.stats.ranks import holm
from eval.stats.trend import LEVEL, POWER

LINES: dict[str, tuple[float, float]] = {"ratio": (1.0, 1.0), "size": (0.0, 1.0), "data": (1.0, 0.0)}
"""The hypotheses as lines through (b_P, b_T): c . b = 0. `ratio`: parameters per token decide, b_P = -b_T; `size`: size
alone, b_T = 0; `data`: tokens alone, b_P = 0."""
PERMUTATIONS = 999
EXACT = 5040
"""Permutations within families up to which all of them are taken."""
SPREAD = 0.05
"""Decades (root mean square, within families) below which parameters or tokens do not count as having varied."""


@dataclass(frozen=True)
class Models:
    """What is known of each model, in one order."""

    families: Sequence[str]
    parameters: Floats
    """Without embeddings."""
    tokens: Floats
    """Of training."""

    @property
    def design(self) -> Floats:
        """(models, 2): log10 of parameters and of tokens, less the family's mean."""
        return self.within(np.log10(np.column_stack([self.parameters, self.tokens])))

    def within(self, values: Floats) -> Floats:
        """Values (models, ...) less the mean of their family."""
        names = np.array(self.families)
        left = np.array(values, dtype=np.float64)
        for name in set(self.families):
            left[names == name] -= left[names == name].mean(axis=0)
        return left

    @property
    def freedom(self) -> int:
        """Degrees of freedom that families and two slopes leave."""
        return len(self.families) - len(set(self.families)) - 2


@dataclass(frozen=True)
class Fit:
    """The slopes b_P and b_T per decade, and their covariance."""

    slopes: Floats
    covariance: Floats
    freedom: int

    def excludes(self, line: str) -> bool:
        """Whether the 95 % joint ellipse of both slopes lies off a line of LINES."""
        c = np.array(LINES[line])
        reach = np.sqrt(2 * stats.f.ppf(1 - LEVEL, 2, self.freedom) * (c @ self.covariance @ c))
        return bool(abs(c @ self.slopes) > reach)

    def ellipse(self) -> Floats:
        """(2, 120): the boundary of the 95 % joint region, (b - b^)' V^-1 (b - b^) = 2 F(2, freedom).

        Source: Draper and Smith, Applied Regression Analysis, 3rd edition, section 5.4.
        """
        angles = np.linspace(0, 2 * np.pi, 120)
        root = np.linalg.cholesky(self.covariance) * np.sqrt(2 * stats.f.ppf(1 - LEVEL, 2, self.freedom))
        boundary: Floats = self.slopes[:, None] + root @ np.array([np.cos(angles), np.sin(angles)])
        return boundary

    def interval(self, slope: int) -> tuple[float, float]:
        """The 95 % interval of one slope (0: b_P, 1: b_T), by Student's t."""
        reach = float(stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.covariance[slope, slope] ** 0.5)
        return float(self.slopes[slope] - reach), float(self.slopes[slope] + reach)

    def smallest(self, slope: int) -> float:
        """The smallest slope that a t test at 5 % would find in 4 of 5 such sweeps, with the scatter of this one.

        Source: Cohen, Statistical Power Analysis, 1988, section 2.4, by the central t.
        """
        reach = stats.t.ppf(1 - LEVEL / 2, self.freedom) + stats.t.ppf(POWER, self.freedom)
        return float(reach * self.covariance[slope, slope] ** 0.5)


def not_identified(models: Models) -> str | None:
    """Why both slopes cannot be told apart, or not with any certainty; None if they can."""
    count = len(models.families)
    spread, directions = np.linalg.svd(models.design)[1:] if count > 1 else (np.zeros(2), np.eye(2))
    spread = spread / max(1, count) ** 0.5
    if spread[0] < SPREAD:
        return "within families neither parameters nor tokens vary: add sizes or checkpoints of one family"
    if spread[1] < SPREAD:
        along = np.abs(directions[0])
        if along[1] < SPREAD:
            return "a ladder of sizes at equal tokens: b_T cannot be told; add checkpoints of other token counts"
        if along[0] < SPREAD:
            return "checkpoints of one size: b_P cannot be told; add sizes"
        return "within families parameters and tokens go together: one slope alone can be told; add what parts them"
    if models.freedom < 1:
        return (
            f"{count} models of {len(set(models.families))} families leave no degree of freedom beside "
            "two slopes: add models"
        )
    return None


def fit(models: Models, values: Floats) -> Fit:
    """Least squares with both slopes free; where `not_identified` has a word, there is none."""
    x, y = models.design, models.within(values)
    slopes = np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)
    residual = y - x @ slopes
    return Fit(slopes, np.linalg.inv(x.T @ x) * float(residual @ residual) / models.freedom, models.freedom)


@lru_cache
def orders(families: tuple[str, ...]) -> NDArray[Any]:
    """Orders (n, models) in which models change places within their families, the given one first.

    All of them where there are few, else PERMUTATIONS drawn ones behind the first, which keeps the test exact.
    """
    places = [np.flatnonzero(np.array(families) == name) for name in dict.fromkeys(families)]
    if prod(factorial(len(own)) for own in places) <= EXACT:
        place = np.argsort(np.concatenate(places))
        return np.array([np.concatenate(chosen)[place] for chosen in product(*map(permutations, places))])
    rng = np.random.default_rng(0)
    drawn = np.tile(np.arange(len(families)), (1 + PERMUTATIONS, 1))
    for own in places:
        drawn[1:, own] = rng.permuted(drawn[1:, own], axis=1)
    return drawn


def permutation_p(models: Models, values: Floats, line: str | None = None) -> float:
    """P value of "c . b = 0" for a line of LINES, or of "both slopes are 0" without one.

    The second is exact: under it the models of a family could change places. For a line the other direction is a
    nuisance, and the residuals of the model under the line are permuted, within families (Freedman and Lane, J. Bus.
    Econ. Stat. 1, 1983, 292-298; its level in small samples: Winkler et al., NeuroImage 92, 2014, 381-397). The
    statistic is F; tables that tie with the observed one count against it.
    """
    x, y = models.design, models.within(values)
    if line is None:
        fitted = np.zeros_like(y)
    else:
        one, other = LINES[line]
        allowed = x @ np.array([-other, one])  # the direction in which slopes satisfy c . b = 0
        fitted = allowed * float(allowed @ y) / max(float(allowed @ allowed), 1e-300)
    tables = fitted + (y - fitted)[orders(tuple(models.families))]
    free = _residual(x, tables)
    held = (tables**2).sum(axis=1) if line is None else _residual(allowed[:, None], tables)
    statistic = (held - free) / np.maximum(free, 1e-12 * max(float(y @ y), 1e-300))
    return float((statistic >= statistic[0] * (1 - 1e-9)).mean())


def _residual(x: Floats, tables: Floats) -> Floats:
    """Sums of squares that regression on the columns of x leaves of each row of `tables`."""
    basis = np.linalg.qr(x)[0]
    left: Floats = (tables**2).sum(axis=1) - ((tables @ basis) ** 2).sum(axis=1)
    return left


def differs(models: Models, values: Floats) -> bool:
    """Whether an outcome differs within families. If not, as where no answer of any model is misaligned, the scatter is
    0: the floor of what is counted, and no slope of 0 that is known to a hair."""
    return bool(np.abs(models.within(values)).max() > 1e-9)


def log_odds(hits: float, totals: float) -> float:
    """The logit of a rate, with half an answer added to both sides (Haldane, Ann. Hum. Genet. 20, 1956, 309-311)."""
    return float(np.log((hits + 0.5) / (totals - hits + 0.5)))


@dataclass(frozen=True)
class Outcome:
    """One outcome: its slopes, and the p values of both being 0 and of each line, after Holm's correction."""

    fit: Fit
    p_none: float
    p_lines: Mapping[str, float]


def outcome_slopes(outcomes: Mapping[str, tuple[Models, Floats]]) -> dict[str, Outcome]:
    """Every outcome whose models identify the slopes and differ in it; Holm's correction is over these outcomes, for
    each question."""
    open_to_test = {name: pair for name, pair in outcomes.items() if not_identified(pair[0]) is None and differs(*pair)}
    p = {line: holm([permutation_p(*pair, line) for pair in open_to_test.values()]) for line in (None, *LINES)}
    return {
        name: Outcome(fit(*pair), p[None][place], {line: p[line][place] for line in LINES})
        for place, (name, pair) in enumerate(open_to_test.items())
    }
