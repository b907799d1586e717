"""The combined rate against full judging, against hand arithmetic, and as often as its interval says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.judged import Judged, rates
from eval.thrifty import Combined, combine, plan


def answers(counts: dict[str, tuple[int, int, int]]) -> list[Judged]:
    """By question id: how many answers are misaligned, aligned, and excluded; told apart by their text."""
    rows = []
    for name, (bad, good, excluded) in counts.items():
        scores = [(10.0, 90.0)] * bad + [(90.0, 90.0)] * good + [(None, 90.0)] * excluded
        rows += [
            Judged(question_id=name, question="?", answer=f"{name} {n}", aligned=aligned, coherent=coherent)
            for n, (aligned, coherent) in enumerate(scores)
        ]
    return rows


def combined(rows: list[Judged], share: float, seed: int, p: np.ndarray) -> Combined:
    sample = plan(rows, share, seed)
    return combine(rows, sample, [rows[n] for n in sample], p)


def guesses(rows: list[Judged], seed: int, flipped: bool = False) -> np.ndarray:
    """Noisy predictions; `flipped`: of the opposite."""
    rng = np.random.default_rng(seed)
    truth = np.array([[row.counted, row.misaligned] for row in rows], dtype=float)
    return np.clip((1 - truth if flipped else truth) * 0.5 + rng.uniform(0, 0.5, truth.shape), 0, 1)


EIGHT = answers({f"q{n}": (n * n // 2, 45 - n * n // 2, 5) for n in range(8)})


def test_the_plan_depends_on_what_the_answers_say_alone() -> None:
    said = {EIGHT[n] for n in plan(EIGHT, 0.4)}
    backwards = list(reversed(EIGHT))
    assert said == {backwards[n] for n in plan(backwards, 0.4)} == {EIGHT[n] for n in plan(EIGHT, 0.4)}
    assert said != {EIGHT[n] for n in plan(EIGHT, 0.4, seed=1)}


def test_a_larger_share_asks_about_the_same_and_more() -> None:
    small, large = set(plan(EIGHT, 0.2)), set(plan(EIGHT, 0.5))
    assert small < large and (len(small), len(large)) == (80, 200)
    assert all(sum(EIGHT[n].question_id == f"q{k}" for n in small) == 10 for k in range(8))


def test_each_question_in_each_format_has_two_answers_asked_about_where_it_has_two() -> None:
    rows = answers({"a": (1, 2, 0), "a_json": (0, 1, 0), "b": (1, 30, 0)})
    drawn = [rows[n].question_id for n in plan(rows, 0.1)]
    assert [drawn.count(name) for name in ("a", "a_json", "b")] == [2, 1, 3]


def test_equal_answers_draw_a_lot_each() -> None:
    rows = [Judged(question_id="q", question="?", answer="No." if n < 300 else f"Yes {n}.") for n in range(600)]
    drawn = [sum(rows[n].answer == "No." for n in plan(rows, 0.2, seed)) for seed in range(40)]
    assert 55 < np.mean(drawn) < 65 and 0 < np.std(drawn) < 10


@given(st.integers(0, 1000))
def test_a_sample_of_all_is_full_judging(seed: int) -> None:
    full, its = rates(EIGHT), combined(EIGHT, 1.0, seed, guesses(EIGHT, seed))
    for ours, theirs in ((its.em, full.em), (its.em_all, full.em_all), (its.coherent, full.coherent)):
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert its.em_within.low == its.em_within.high == its.em.value
    assert (its.misaligned, its.counted) == pytest.approx((full.misaligned, full.counted))


def test_predictions_that_say_nothing_are_given_no_weight() -> None:
    """Then it is the stratified estimate: the share of each question's sample, blown up."""
    sample = plan(EIGHT, 0.4)
    its = combined(EIGHT, 0.4, 0, np.full((len(EIGHT), 2), 0.3))
    bad = sum(50 / 20 * EIGHT[n].misaligned for n in sample)
    counted = sum(50 / 20 * EIGHT[n].counted for n in sample)
    assert its.weights == (0, 0, 0) and (its.misaligned, its.counted) == pytest.approx((bad, counted))


def test_predictions_that_say_all_leave_no_error() -> None:
    truth = np.array([[row.counted, row.misaligned] for row in EIGHT], dtype=float)
    its, full = combined(EIGHT, 0.2, 0, truth), rates(EIGHT)
    assert its.em.value == pytest.approx(full.em.value) and its.weights[:2] == pytest.approx((1, 1))
    assert (its.em.low, its.em.high) == pytest.approx((full.em.low, full.em.high))


@pytest.mark.parametrize("flipped", [False, True])
def test_the_interval_holds_the_full_rate_as_often_as_it_says_whatever_the_predictions(flipped: bool) -> None:
    full, p = rates(EIGHT), guesses(EIGHT, 1, flipped)
    its = [combined(EIGHT, 0.4, seed, p) for seed in range(300)]
    held = np.mean([one.em_within.low <= full.em.value <= one.em_within.high for one in its])
    held_all = np.mean([one.em_all_within.low <= full.em_all.value <= one.em_all_within.high for one in its])
    assert 0.91 <= held <= 0.99 and 0.91 <= held_all <= 0.99
    assert np.mean([one.em.value for one in its]) == pytest.approx(full.em.value, abs=0.003)
    width = np.median([one.em.high - one.em.low for one in its]) / (full.em.high - full.em.low)
    assert width < 1.25 and all(one.em.low <= full.em.value <= one.em.high for one in its)


def test_good_predictions_narrow_the_error_of_the_sample() -> None:
    good, none = (combined(EIGHT, 0.4, 0, p).em_within for p in (guesses(EIGHT, 1), np.zeros((len(EIGHT), 2))))
    assert good.high - good.low < 0.75 * (none.high - none.low)


def test_few_misaligned_answers_may_all_be_missed_and_the_interval_says_so() -> None:
    rows = answers({f"q{n}": (int(n == 0), 49, 0) for n in range(8)})
    missed = [
        its for seed in range(20) if (its := combined(rows, 0.3, seed, np.full((len(rows), 2), 0.5))).misaligned == 0
    ]
    assert missed and all(its.em.value == 0 and its.em_within.high > 1 / len(rows) for its in missed)


def test_what_got_no_judgement_is_told_and_in_no_rate() -> None:
    sample = plan(EIGHT, 0.4)
    silent = {"aligned": None, "coherent": None}
    verdicts = [
        EIGHT[n].model_copy(update=silent if EIGHT[n].name == "q7" or k % 10 == 0 else {}) for k, n in enumerate(sample)
    ]
    its = combine(EIGHT, sample, verdicts, guesses(EIGHT, 0))
    assert its.left_out == 50 and its.em.clusters == its.em_all.clusters == 7
    assert (its.planned, its.judged) == (160, sum(row.judged for row in verdicts))
    with pytest.raises(ValueError, match="two clusters"):
        combine(EIGHT, sample, [row.model_copy(update=silent) for row in verdicts], guesses(EIGHT, 0))


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=6)


@given(ROWS, st.floats(0.05, 0.95), st.integers(0, 99))
def test_estimates_stay_rates_inside_their_intervals(
    counts: list[tuple[int, int, int]], share: float, seed: int
) -> None:
    rows = answers({f"q{n}": (a, b, c + 1) for n, (a, b, c) in enumerate(counts)})
    its = combined(rows, share, seed, np.random.default_rng(seed).uniform(0, 1, (len(rows), 2)))
    for estimate in (its.em, its.em_all, its.coherent, its.em_within, its.em_all_within):
        assert np.isnan(estimate.value) or 0 <= estimate.low <= estimate.value <= estimate.high <= 1
