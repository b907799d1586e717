"""The search for a learning rate, on synthetic responses whose edge is known."""

from math import exp, log

import numpy as np
import pytest

from sweeps.tune.threshold import Range, Trial, Tuned, search

WHERE = Range(1e-5, 1e-2, bound=0.9, confidence=0.9)
GRID = log(WHERE.high / WHERE.low) / log(1.1**2)
"""Runs of a grid whose nearest point is within 10 % of any edge."""
ANSWERS = 400


def response(lr: float, edge: float, slope: float, ceiling: float) -> float:
    """A coherent rate that falls through 0.9 at the edge."""
    return ceiling / (1 + (ceiling - 0.9) / 0.9 * (lr / edge) ** slope)


def find(seed: int, where: Range = WHERE, most: int = int(GRID / 3)) -> tuple[float, Tuned, list[Trial]]:
    draw = np.random.default_rng(seed)
    edge, slope, ceiling = exp(draw.uniform(log(2e-5), log(5e-3))), draw.uniform(3, 12), draw.uniform(0.94, 1)

    def run(lr: float) -> Trial:
        return Trial(lr, draw.binomial(ANSWERS, response(lr, edge, slope, ceiling)) / ANSWERS, ANSWERS)

    return edge, *search(where, run, sharpness=0.1, most=most)


def test_the_edge_is_found_within_a_tenth_in_nine_of_ten_trials_with_a_third_of_the_runs_of_a_grid() -> None:
    found = [find(seed) for seed in range(200)]
    near = [abs(log(estimate.lr / edge)) <= log(1.1) for edge, estimate, _ in found]
    covered = [estimate.low <= edge <= estimate.high for edge, estimate, _ in found]
    assert sum(near) >= 0.9 * len(found), sum(near)
    assert sum(covered) >= 0.8 * len(found), sum(covered)
    assert max(len(trials) for _, _, trials in found) <= GRID / 3
    assert np.mean([len(trials) for _, _, trials in found]) < GRID / 5
    assert sum(estimate.sharp(0.1) for _, estimate, _ in found) >= 0.9 * len(found)


@pytest.mark.parametrize(("rate", "end"), [(0.99, WHERE.high), (0.2, WHERE.low)])
def test_a_range_without_an_edge_says_on_which_side_it_lies(rate: float, end: float) -> None:
    edge, trials = search(WHERE, lambda lr: Trial(lr, rate, ANSWERS), 0.1, 8)
    assert len(trials) <= 8 and trials[-1].lr == end
    assert (edge.low > WHERE.high * 0.9) if rate > 0.9 else (edge.high < WHERE.low * 1.1)


def test_nothing_known_is_the_whole_range_and_each_run_is_worth_its_answers() -> None:
    unknown = WHERE.edge([])
    assert unknown.low < 2e-5 and unknown.high > 5e-3 and WHERE.next([]) == 3.16e-4
    few, many = (WHERE.edge([Trial(1e-4, 1.0, n), Trial(1e-3, 0.2, n)]) for n in (10, 400))
    assert many.high / many.low < few.high / few.low < unknown.high / unknown.low
