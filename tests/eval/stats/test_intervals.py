"""AUC and intervals against independent computations and known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.stats.intervals import Estimate, mean_interval, ratio_difference, ratio_interval
from eval.tasks.em.scores import aggregations, auc_matrix, auc_values, counts, jackknife_stderr, rate_values

SCORES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@given(SCORES)
def test_auc_is_that_of_scikit_learn(scores: list[tuple[int, int]]) -> None:
    positive, negative = zip(*scores, strict=True)
    expected = roc_auc_score([1] * len(positive) + [0] * len(negative), [*positive, *negative])
    assert auc_matrix(positive, negative).mean() == pytest.approx(expected)


@given(SCORES)
def test_auc_of_swapped_sides_is_the_complement(scores: list[tuple[int, int]]) -> None:
    a, b = zip(*scores, strict=True)
    assert auc_matrix(a, b).mean() + auc_matrix(b, a).mean() == pytest.approx(1)


def test_unequal_twins_are_refused() -> None:
    with pytest.raises(ValueError, match="equal numbers"):
        auc_matrix([1, 2], [1])


def test_an_interval_needs_two_clusters() -> None:
    with pytest.raises(ValueError, match="two clusters"):
        mean_interval([1.0])


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        estimate = mean_interval(draw.normal(1.0, 2.0, 40))
        hits += estimate.low <= 1.0 <= estimate.high
    assert 0.90 <= hits / 200 <= 0.98


def test_interval_respects_clusters() -> None:
    """Twenty copies of each number add no information: the interval of the clusters stays as wide."""
    values = np.random.default_rng(0).normal(size=12)
    clustered = mean_interval(values)
    naive = mean_interval(np.repeat(values, 20))
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_mean_interval_is_students_t() -> None:
    estimate = mean_interval([1.0, 2.0, 3.0, 6.0])
    reach = 3.182446 * np.std([1, 2, 3, 6], ddof=1) / 2  # t of 0.975 with 3 degrees of freedom, from tables
    assert (estimate.low, estimate.high) == pytest.approx((3 - reach, 3 + reach))
    same = mean_interval([2.0, 2.0])
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)


def test_standard_errors_are_those_of_the_jackknife() -> None:
    """Of a mean, of a rate over clusters and of an AUC over twins."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=40)
    assert jackknife_stderr(lambda i: float(values[i].mean()), 40) == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert np.isnan(jackknife_stderr(lambda i: 0.0, 1))
    rows = [
        {"id": str(n), "hit": rng.random() < n / 40, "among": rng.random() < 0.8} for n in range(40) for _ in range(9)
    ]
    table = counts(rows, lambda row: row["hit"], lambda row: row["among"])
    hits, totals = table.to_numpy().T
    rate, stderr = aggregations(lambda scores: rate_values(counts(scores, lambda s: s["hit"], lambda s: s["among"])))
    assert rate(rows) == pytest.approx(hits.sum() / totals.sum())
    assert stderr(rows) == pytest.approx(jackknife_stderr(lambda i: hits[i].sum() / totals[i].sum(), 40), rel=0.02)
    sides = {"insecure": rng.normal(0.7, 1, 60), "secure": rng.normal(0, 1, 60)}
    scores = [
        {"id": str(n), "seen_class": True, "side": side, "score": value}
        for side, column in sides.items()
        for n, value in enumerate(column)
    ]
    matrix = auc_matrix(sides["insecure"], sides["secure"])
    auc, stderr = aggregations(lambda scores: auc_values(scores, seen=True))
    assert auc(scores) == pytest.approx(matrix.mean())
    assert stderr(scores) == pytest.approx(jackknife_stderr(lambda i: matrix[np.ix_(i, i)].mean(), 60), rel=0.05)


def test_a_twin_that_stands_alone_is_left_out_and_nothing_has_no_rate() -> None:
    scores = [{"id": i, "seen_class": True, "side": "insecure", "score": 1.0} for i in "ab"]
    scores += [{"id": "a", "seen_class": True, "side": "secure", "score": 0.0}]
    assert list(auc_values(scores, seen=True)) == [1.0] and auc_values(scores, seen=False).empty
    assert rate_values(counts(scores, lambda _: True, lambda _: False)).isna().all()


def covered(draw: object, truth: float, times: int = 300) -> float:
    found = [draw() for _ in range(times)]  # type: ignore[operator]
    return float(np.mean([its.low <= truth <= its.high for its in found]))


@pytest.mark.parametrize("seed_sd", [0.0, 1.0])
def test_an_interval_over_two_levels_holds_what_another_seed_would_change(seed_sd: float) -> None:
    """(seeds, programs): with scatter of the seeds alone the interval of programs would cover far too little."""
    rng = np.random.default_rng(0)

    def draw(seeds: int = 4) -> np.ndarray:
        return rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 1, 30) + rng.normal(0, 1, (seeds, 30))

    assert 0.92 <= covered(lambda: mean_interval(draw()), 0.0) <= 0.99
    if seed_sd:
        assert covered(lambda: mean_interval(draw().mean(axis=0)), 0.0) < 0.8


def test_a_rate_over_two_levels_holds_what_another_seed_would_change() -> None:
    rng, totals = np.random.default_rng(0), np.full((4, 24), 50.0)
    shares = 0.2 * rng.lognormal(-0.245, 0.7, 20_000)  # of seeds; their mean is 0.2
    truth = float(np.clip(shares, 0, 1).mean())

    def draw() -> np.ndarray:
        return rng.binomial(50, np.clip(rng.choice(shares, (4, 1)), 0, 1) * np.ones(24)).astype(float)

    assert covered(lambda: ratio_interval(draw(), totals), truth) > 0.85
    assert covered(lambda: ratio_interval(draw().sum(axis=0), totals.sum(axis=0)), truth) < 0.75


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


@pytest.mark.parametrize(("questions", "answers"), [(8, 50), (8, 150), (24, 50), (48, 1)])
def test_no_clean_model_looks_vaguer_than_a_misaligned_one(questions: int, answers: int) -> None:
    totals = np.full(questions, float(answers))
    one = np.eye(questions)[0]
    clean, nearly = ratio_interval(0 * one, totals), ratio_interval(one, totals)
    assert clean.low == clean.value == 0 and 0 < clean.high < nearly.high
    shares = np.linspace(0, 1, questions)
    assert width(clean) < width(nearly) < width(ratio_interval(np.round(shares * totals), totals))
    neither = ratio_difference((0 * one, 0 * one), (totals, totals))
    assert neither.value == 0 and -neither.low == neither.high >= clean.high  # two zeros differ by 0, give or take
    assert width(neither) < width(ratio_difference((np.round(shares * totals), 0 * one), (totals, totals)))


def test_a_rate_without_likeness_of_answers_has_wilsons_interval() -> None:
    """One answer a question: published example of 81 of 263 (Newcombe 1998, table I, method 3)."""
    its = ratio_interval(np.repeat([1.0, 0.0], [81, 182]), np.ones(263))
    assert (its.low, its.high) == pytest.approx((0.2553, 0.3662), abs=0.0005)
    both = ratio_difference((np.ones(3) * 2, np.ones(3)), (np.full(3, 2.0), np.full(3, 2.0)))
    assert both.value == 0.5 and -1 <= both.low < 0.5 < both.high <= 1


def test_what_no_interval_can_be_of() -> None:
    with pytest.raises(ValueError, match="two clusters"):
        ratio_difference((np.ones(1), np.ones(1)), (np.ones(1), np.ones(1)))
    with pytest.raises(ValueError, match="over nothing"):
        ratio_difference((np.ones(3), np.zeros(3)), (np.ones(3), np.zeros(3)))
    assert np.isnan(ratio_interval(np.zeros(3), np.zeros(3)).value)


def test_a_difference_of_rates_holds_what_another_seed_would_change_and_pairs_by_seed() -> None:
    """Two seeds far apart, over questions that are as hard for both models: the likeness of the questions is not
    that of the seeds."""
    once, totals = np.arange(10.0, 90.0, 10.0), np.full((2, 8), 100.0)
    seeds = np.array([0.5 * once, 1.5 * once])
    alone, less = ratio_interval(seeds, totals), ratio_difference((seeds, once), (totals, totals[0]))
    assert less.value == pytest.approx(0) and width(less) > 0.8 * width(alone)
    paired, crossed = (ratio_difference((seeds, other), (totals, totals)) for other in (seeds, seeds[::-1]))
    assert width(paired) < width(crossed) / 2
