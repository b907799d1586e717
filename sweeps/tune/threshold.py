"""The highest learning rate at which a model stays coherent: bisection on the log scale under noise.

Each run gives a share of coherent answers, which falls as the learning rate rises. What is known of its edge (where the
share crosses the bound) is a distribution: the next run is at its median, and the search ends when it is as narrow as
asked. QUEST (Watson and Pelli, Perception & Psychophysics 33, 1983) finds thresholds of the senses so; slope and
ceiling of the curve are not known here, and are summed over.
"""

from collections.abc import Callable, Sequence
from math import log
from typing import NamedTuple

import numpy as np

from sweeps.plan.declaration import Tuned

SLOPES = np.geomspace(1.5, 48, 16)
"""Of the log-odds of coherence against the natural logarithm of the learning rate."""
CEILINGS = np.linspace(0.2, 1, 5)
"""Share of coherent answers far below the edge, as a part of the way from the bound to 1."""
BEYOND = log(3)
"""How far outside the range the edge may lie, so that a range without an edge is told from one with it at its end."""


class Trial(NamedTuple):
    lr: float
    coherent: float
    """Share of coherent answers, 0 to 1."""
    answers: float
    """How many independent answers it is worth; with answers to the same questions, fewer than there are."""


class Range(NamedTuple):
    """Where the edge is looked for: learning rates `low` to `high`, at a share of coherent answers of `bound`."""

    low: float
    high: float
    bound: float
    confidence: float = 0.95

    def edge(self, trials: Sequence[Trial]) -> Tuned:
        """What the runs so far say: the median of the edge and its central interval."""
        edges = np.linspace(log(self.low) - BEYOND, log(self.high) + BEYOND, 500)
        known = np.zeros((len(edges), len(SLOPES), len(CEILINGS)))
        ceiling = self.bound + (1 - self.bound) * CEILINGS
        at_edge = np.log(self.bound / np.maximum(ceiling - self.bound, 1e-9))
        for lr, coherent, answers in trials:
            beyond = (log(lr) - edges)[:, None, None] * SLOPES[:, None]
            share = np.clip(ceiling / (1 + np.exp(np.clip(beyond - at_edge, -50, 50))), 1e-6, 1 - 1e-6)
            known += answers * (coherent * np.log(share) + (1 - coherent) * np.log1p(-share))
        density = np.exp(known - known.max()).sum(axis=(1, 2))
        below = (np.cumsum(density) - density / 2) / density.sum()
        ends = [(1 - self.confidence) / 2, 0.5, (1 + self.confidence) / 2]
        low, middle, high = np.exp(np.interp(ends, below, edges))
        return Tuned(lr=float(middle), low=float(low), high=float(high))

    def next(self, trials: Sequence[Trial]) -> float:
        """The learning rate to run next, in three digits."""
        return float(f"{min(max(self.edge(trials).lr, self.low), self.high):.2e}")


def search(where: Range, run: Callable[[float], Trial], sharpness: float, most: int) -> tuple[Tuned, list[Trial]]:
    """Runs until the edge is as sharp as asked, or `most` times; the edge says which (`Tuned.sharp`)."""
    trials: list[Trial] = []
    while len(trials) < most:
        trials.append(run(where.next(trials)))
        if where.edge(trials).sharp(sharpness):
            break
    return where.edge(trials), trials
