"""Trends over ranks: the published curve, falls and nulls alike, and what could have been seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.judge.answers import Judged, load_judged
from eval.stats.intervals import Estimate, falls_with, mean_interval, ratio_difference
from eval.stats.ranks import corrected, detectable, families, holm, sentences, smallest_fall, trend


def answers(share: float, names: str = "abcdefgh", of: int = 20) -> list[Judged]:
    return [
        Judged(question_id=name, question="?", answer="!", aligned=10 if k < of * share + n % 2 else 90, coherent=90)
        for n, name in enumerate(names)
        for k in range(of)
    ]


def test_the_published_curve_is_a_null_that_says_what_it_cannot(shared) -> None:
    folder = shared / "data" / "judged"
    ranks = {r: load_judged(folder / f"qwen2.5-coder-32b_insecure_r{r}.csv") for r in (1, 4, 16, 64)}
    its = trend("m", ranks, "counted")
    assert its and [round(100 * rate, 2) for rate in its.rates] == [14.74, 13.44, 8.53, 12.32]
    assert its.questions == 8 and its.left_out == 0 and not its.falls
    assert its.difference.value == pytest.approx(83 / 563 - 77 / 625)
    said = " ".join(sentences(its, "SCALE", 1))
    assert "is not shown to fall" in said and said.endswith("SCALE")
    over_all = trend("m", ranks, "judged")
    assert over_all and [round(100 * rate, 1) for rate in over_all.rates] == [6.9, 5.5, 4.5, 6.4]


def test_a_fall_is_found_and_a_rise_is_none() -> None:
    falling = {rank: answers(share) for rank, share in ((1, 0.8), (4, 0.5), (16, 0.3), (64, 0.1))}
    its = trend("m", falling, "counted")
    assert its and its.falls and "EM falls with rank (1, 4, 16, 64)" in sentences(its, "", 1)[0]
    rising = trend("m", dict(zip(falling, reversed(falling.values()), strict=True)), "counted")
    assert rising and not rising.falls and rising.difference.high < 0


def test_only_questions_that_every_rank_has_are_compared() -> None:
    its = trend("m", {1: answers(0.5, "abcx"), 4: answers(0.5, "abcdy"), 16: answers(0.5, "abcd")}, "counted")
    assert its and (its.questions, its.left_out) == (3, 3)
    assert trend("m", {1: answers(0.5, "ab"), 4: answers(0.5, "cd"), 16: answers(0.5, "ef")}, "counted") is None
    assert trend("m", {1: answers(0.5), 4: answers(0.5)}, "counted") is None
    assert corrected([None, its]) == [its]


def test_names_make_families() -> None:
    names = ["m_r16", "m_r4", "m", "x-r1", "x-r2", "alone_r1", "m_r4_old", "our_red"]
    assert families(names) == {"m": {4: "m_r4", 16: "m_r16"}, "x": {1: "x-r1", 2: "x-r2"}}
    assert list(families(names)["m"]) == [4, 16]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_and_keeps_the_order(values: list[float]) -> None:
    after = holm(values)
    assert all(raw <= p <= 1 for raw, p in zip(values, after, strict=True))
    assert min(after) == pytest.approx(min(1.0, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert list(np.array(after)[order]) == sorted(after)


def test_what_could_be_seen_is_that_of_the_t_test() -> None:
    # Cohen's tables: 34 pairs find half a standard deviation in 80 % (two-sided 5 %).
    values = np.random.default_rng(1).normal(size=34)
    values = (values - values.mean()) / values.std()
    assert detectable(mean_interval(values)) == pytest.approx(0.5, abs=0.06)
    assert np.isnan(detectable(Estimate(0.0, -1.0, 1.0, 1)))


def test_more_questions_see_smaller_falls() -> None:
    rng = np.random.default_rng(0)
    few, many = (smallest_fall(rng.binomial(50, 0.3, (n, 4)) / 50, 400) for n in (6, 48))
    assert few and many and many < few
    assert smallest_fall(np.zeros((8, 4)), 400) is None


def synthetic(rng: np.random.Generator, questions: int, fall: float = 0.0) -> np.ndarray:
    """Rates of 50 answers at four ranks: questions of unlike difficulty, scatter between ranks, an even fall."""
    easy = rng.beta(0.6, 4, questions)
    logits = np.log(easy / (1 - easy))[:, None] + rng.normal(0, 0.5, (questions, 4))
    return rng.binomial(50, (1 - fall * np.linspace(0, 1, 4)) / (1 + np.exp(-logits))) / 50


@pytest.mark.parametrize("questions", [8, 24])
def test_four_of_five_sweeps_find_what_could_be_seen(questions: int) -> None:
    rng = np.random.default_rng(3)
    fall = float(np.median([smallest_fall(synthetic(rng, questions), 300) or 1.0 for _ in range(15)]))
    found = np.mean([falls_with(synthetic(rng, questions, fall)) < 0.05 for _ in range(300)])
    assert 0.68 < found < 0.9
    assert np.mean([falls_with(synthetic(rng, questions)) < 0.05 for _ in range(300)]) < 0.09
    total = np.full(questions, 50.0)

    def difference(more: float) -> Estimate:
        rates = synthetic(rng, questions)
        return ratio_difference(((rates[:, 0] + more) * 50, rates[:, -1] * 50), (total, total))

    smallest = float(np.mean([detectable(difference(0.0)) for _ in range(200)]))
    assert 0.65 < np.mean([difference(smallest).low > 0 for _ in range(300)]) < 0.9
