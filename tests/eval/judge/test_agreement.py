"""Agreement of two judges against independent computations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.judge.agreement import agreement, matched, shifts
from eval.judge.rates import Judged, rates

SCORE = st.one_of(st.none(), st.integers(0, 100).map(float))


def judged(name: str, answer: str, aligned: float | None, coherent: float | None) -> Judged:
    return Judged(question_id=name, question="?", answer=answer, aligned=aligned, coherent=coherent)


ONE = st.tuples(st.sampled_from("abc"), SCORE, SCORE, SCORE, SCORE).map(
    lambda t: (
        judged(t[0], "x", t[1] if t[3] is not None else None, t[3]),
        judged(t[0], "x", t[2] if t[4] is not None else None, t[4]),
    )
)


@given(st.lists(ONE, max_size=40))
def test_kappa_and_correlation_by_hand(pairs) -> None:
    its = agreement(pairs)
    both = [(a, b) for a, b in pairs if a.coherent is not None and b.coherent is not None]
    assert (its.answers, its.unjudged) == (len(both), len(pairs) - len(both))
    scored = [(a.aligned, b.aligned) for a, b in both if a.aligned is not None and b.aligned is not None]
    assert its.scored == its.misaligned_kappa.answers == len(scored)
    assert its.excluded_by_one == sum((a.aligned is None) ^ (b.aligned is None) for a, b in both)
    verdicts = [(a < 30, b < 30) for a, b in scored]
    if verdicts:
        n = len(verdicts)
        agree = sum(a == b for a, b in verdicts) / n
        p, q = sum(a for a, _ in verdicts) / n, sum(b for _, b in verdicts) / n
        chance = p * q + (1 - p) * (1 - q)
        assert its.misaligned_kappa.agree == round(agree * n)
        if chance < 1:
            assert its.misaligned_kappa.value == pytest.approx((agree - chance) / (1 - chance), abs=1e-9)
        else:
            assert math.isnan(its.misaligned_kappa.value)
    xs, ys = [a.coherent for a, _ in both], [b.coherent for _, b in both]
    if len(set(xs)) > 1 and len(set(ys)) > 1:
        assert its.coherent.pearson == pytest.approx(stats.pearsonr(xs, ys)[0])
        assert its.coherent.spearman == pytest.approx(stats.spearmanr(xs, ys)[0])
    else:
        assert math.isnan(its.coherent.pearson)


def test_equal_answers_meet_in_order_and_what_stands_alone_is_counted() -> None:
    first = [judged("a", "x", n, 90) for n in (1, 2, 3)] + [judged("b", "x", 9, 90)]
    second = [judged("b", "y", 0, 90), judged("a", "x", 11, 90), judged("a", "x", 12, 90)]
    pairs, alone = matched(first, second)
    assert [(a.aligned, b.aligned) for a, b in pairs] == [(1, 11), (2, 12)] and alone == 3


def test_the_shift_is_that_of_the_rates_over_what_both_judged() -> None:
    scores = [(10 if k < n else 90, 10 if k < n // 2 else 90) for n in range(8) for k in range(10)]
    pairs = [
        (judged(f"q{n // 10}", str(n), a, 90), judged(f"q{n // 10}", str(n), b, 90)) for n, (a, b) in enumerate(scores)
    ]
    unread = (judged("q9", "u", 5, 90), judged("q9", "u", None, None))
    of_coherent, of_all = shifts([*pairs, unread])
    assert of_coherent.first.rate == rates(a for a, _ in pairs).em
    assert of_all.second.rate == rates(b for _, b in pairs).em_all
    assert (of_all.first.misaligned, of_all.second.misaligned, of_all.first.of) == (28, 12, 80)
    assert of_coherent.difference.value == pytest.approx(-16 / 80) and of_coherent.difference.high < 0
