"""The permutation test of a trend, peaks, and the power that is stated: against simulated sweeps with known truths."""

import numpy as np
import pytest
from scipy import stats

from eval.stats.trend import highest_shares, peak_p, smallest_fall, smallest_shift, trend_p


def sweeps(
    rng: np.random.Generator, number: int, shape: tuple[int, int], rate: float, answers: int, fall: float = 0.0
) -> np.ndarray:
    """Hits of sweeps: questions of unlike difficulty, many of them never misaligned, scatter between ranks, a fall."""
    questions, ranks = shape
    easy = np.clip(rng.beta(3 * rate, 3 * (1 - rate), (number, questions, 1)), 1e-4, 1 - 1e-4)
    shares = 1 / (1 + np.exp(-np.log(easy / (1 - easy)) - rng.normal(0, 0.5, (number, questions, ranks))))
    return rng.binomial(answers, shares * (1 - fall * np.linspace(0, 1, ranks))).astype(float)


@pytest.mark.parametrize(("shape", "rate", "answers"), [((8, 4), 0.2, 50), ((24, 4), 0.1, 50), ((48, 5), 0.03, 20)])
def test_the_level_is_held_and_the_stated_power_is_right(shape: tuple[int, int], rate: float, answers: int) -> None:
    rng = np.random.default_rng(0)
    assert 0.02 < (trend_p(sweeps(rng, 500, shape, rate, answers) / answers) < 0.05).mean() < 0.08
    totals = np.full(shape, float(answers))
    falls = [smallest_fall(hits, totals) or 1.0 for hits in sweeps(rng, 25, shape, rate, answers)]
    found = trend_p(sweeps(rng, 400, shape, rate, answers, float(np.mean(falls))) / answers) < 0.05
    assert 0.72 < found.mean() < 0.9


def test_the_stated_shift_is_found_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    tables = rng.normal(size=(400, 20, 1)) * 5 + rng.normal(size=(400, 20, 4))
    shift = float(np.mean([smallest_shift(table) or np.nan for table in tables[:20]]))
    assert 0.72 < (trend_p(tables + shift * np.linspace(0, 1, 4)) < 0.05).mean() < 0.88
    assert smallest_shift(np.ones((4, 4))) is None


def test_what_could_have_been_seen_holds_the_correction_for_several_trends() -> None:
    """A verdict after Holm's correction asks more of a trend than 5 %, and so of the smallest one that it finds."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(20, 1)) * 5 + rng.normal(size=(20, 4))
    alone, among = smallest_shift(table), smallest_shift(table, 20)
    assert alone and among and among > 1.2 * alone
    hits, totals = sweeps(rng, 1, (48, 5), 0.2, 50)[0], np.full((48, 5), 50.0)
    assert (smallest_fall(hits, totals, 20) or 1.0) > (smallest_fall(hits, totals) or 1.0)


def test_all_tables_are_counted_that_tie() -> None:
    """By hand: of the orders of one row two of six lie as far out; with two equal numbers four of six."""
    assert trend_p(np.array([[3.0, 2.0, 1.0]])) == pytest.approx(2 / 6, abs=0.03)
    assert trend_p(np.array([[1.0, 0.0, 0.0]])) == pytest.approx(4 / 6, abs=0.03)
    assert trend_p(np.zeros((8, 4))) == peak_p(np.zeros((8, 4))) == 1
    assert smallest_fall(np.zeros((8, 4)), np.ones((8, 4))) is None


def test_a_trend_over_two_columns_is_the_paired_permutation_test() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(12, 2)) + np.array([0.0, 0.8])
    paired = stats.permutation_test((table[:, 1] - table[:, 0],), np.mean, permutation_type="samples")
    assert trend_p(table) == pytest.approx(paired.pvalue, abs=0.02)


def test_a_peak_is_told_from_noise_and_from_a_rise_that_levels_off() -> None:
    rng = np.random.default_rng(3)
    tables = sweeps(rng, 150, (24, 5), 0.15, 50) / 50
    levels, peaks = tables.copy(), tables.copy()
    levels[:, :, 0] *= 0.2
    peaks[:, :, [0, -1]] *= 0.4
    for nothing in (tables, levels, -levels):
        assert np.mean([peak_p(table) < 0.05 for table in nothing]) < 0.1
    assert np.mean([peak_p(table) < 0.05 for table in peaks]) > 0.8
    assert peak_p(-peaks[0]) > 0.2 and peak_p(peaks[0][:, :2]) == 1


def test_the_highest_rank_is_as_sure_as_its_questions() -> None:
    hits = np.array([[[1.0, 9.0, 2.0]] * 6])
    totals = np.full_like(hits, 10.0)
    assert list(highest_shares(hits, totals)) == [0, 1, 0]
    assert highest_shares(np.zeros_like(hits), totals) == pytest.approx(np.full(3, 1 / 3))
    seeds = np.array([[[9.0, 5.0, 0.0]] * 6, [[1.0, 5.0, 0.0]] * 6])  # of two seeds one is far above
    shares = highest_shares(seeds, np.full_like(seeds, 10.0))
    assert shares == pytest.approx([0.5, 0.5, 0.0], abs=0.04)  # a tie of the means shares the draw
