"""AUC and intervals against independent computations and known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.stats.intervals import cluster_bootstrap, mean_interval
from eval.tasks.em.scores import auc_matrix, jackknife_stderr, matrix_auc

SCORES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@given(SCORES)
def test_auc_is_that_of_scikit_learn(scores: list[tuple[int, int]]) -> None:
    positive, negative = zip(*scores, strict=True)
    expected = roc_auc_score([1] * len(positive) + [0] * len(negative), [*positive, *negative])
    assert matrix_auc(auc_matrix(positive, negative)) == pytest.approx(expected)


@given(SCORES)
def test_auc_of_swapped_sides_is_the_complement(scores: list[tuple[int, int]]) -> None:
    a, b = zip(*scores, strict=True)
    assert matrix_auc(auc_matrix(a, b)) + matrix_auc(auc_matrix(b, a)) == pytest.approx(1)


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


def test_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=40)
    expected = values.std(ddof=1) / 40**0.5
    assert jackknife_stderr(lambda i: float(values[i].mean()), 40) == pytest.approx(expected)
    assert np.isnan(jackknife_stderr(lambda i: 0.0, 1))


def test_standard_error_of_an_auc_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    matrix = auc_matrix(rng.normal(0.7, 1, 60), rng.normal(0, 1, 60))
    interval = cluster_bootstrap(lambda index: matrix_auc(matrix, index), 60)
    error = jackknife_stderr(lambda index: matrix_auc(matrix, index), 60)
    assert error == pytest.approx((interval.high - interval.low) / 3.92, rel=0.15)
