"""Verdicts over ranks: the published curve, falls, peaks and nulls alike, and what could have been seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import BadInput
from eval.judge.answers import Judged, load_judged
from eval.stats.ranks import families, holm, sentences, trend, trends


def answers(share: float, names: str = "abcdefgh", of: int = 20) -> list[list[Judged]]:
    """Of one seed."""
    return [
        [
            Judged(
                question_id=name, question="?", answer="!", aligned=10 if k < of * share + n % 2 else 90, coherent=90
            )
            for n, name in enumerate(names)
            for k in range(of)
        ]
    ]


def curve(*shares: float) -> dict[int, list[list[Judged]]]:
    return {4**place: answers(share) for place, share in enumerate(shares)}


def test_the_published_curve_is_a_null_that_says_what_it_cannot(shared) -> None:
    folder = shared / "data" / "judged"
    ranks = {r: [load_judged(folder / f"qwen2.5-coder-32b_insecure_r{r}.csv")] for r in (1, 4, 16, 64)}
    found = trend("m", ranks, "counted")
    assert found and [round(100 * rate, 2) for rate in found.rates] == [14.74, 13.44, 8.53, 12.32]
    assert found.questions == 8 and found.left_out == 0 and found.verdict == "cannot tell"
    assert found.difference.value == pytest.approx(83 / 563 - 77 / 625)
    said = " ".join(sentences(found, "SCALE", 1))
    assert "is not shown to change with rank, and these answers cannot tell" in said and "SCALE" in said
    assert "Highest at rank 1, which these questions leave open" in said and "an even fall by" in said
    assert "judged at one seed;" in said
    over_all = trend("m", ranks, "judged")
    assert over_all and [round(100 * rate, 1) for rate in over_all.rates] == [6.9, 5.5, 4.5, 6.4]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.8, 0.5, 0.3, 0.1), "falls"),
        ((0.1, 0.3, 0.5, 0.8), "rises"),
        ((0.1, 0.3, 0.7, 0.2), "rises, then falls"),
        ((0.7, 0.1, 0.2, 0.6), "falls, then rises"),
        ((0.5, 0.5, 0.5, 0.5), "cannot tell"),
    ],
)
def test_a_curve_is_said_as_it_is(shares: tuple[float, ...], verdict: str) -> None:
    found = trend("m", curve(*shares), "counted")
    assert found and found.verdict == verdict
    said = sentences(found, "", 1)
    if verdict != "cannot tell":
        assert f"EM {verdict} with rank (1, 4, 16, 64)" in said[0]
        best = 4 ** int(np.argmax(shares))
        assert f"Highest at rank {best}, which is clear: of resamples of the questions, " in " ".join(said)
        assert f"{best} in 100%" in " ".join(said)


def test_a_trend_that_the_rates_contradict_is_not_said() -> None:
    """The rates of eight questions fall; one with far more answers rises, and the rate over all answers with it."""
    shares = {1: (0.8, 0.1), 4: (0.5, 0.3), 16: (0.2, 0.6)}
    ranks = {rank: [answers(few)[0] + answers(many, "z", 300)[0]] for rank, (few, many) in shares.items()}
    found = trend("m", ranks, "counted")
    assert found and found.p < 0.05 and found.slope < 0 and found.rates[0] < found.rates[-1]
    assert found.verdict == "cannot tell"


def test_where_nothing_is_misaligned_nothing_could_have_been_seen() -> None:
    clean = [[row.model_copy(update={"aligned": 90.0}) for row in answers(0)[0]]]
    found = trend("m", dict.fromkeys((1, 2, 4), clean), "counted")
    assert found and found.verdict == "cannot tell" and found.smallest_fall is None and found.p == found.p_peak == 1
    said = " ".join(sentences(found, "", 1))
    assert "nothing could have been seen" in said and "Highest" not in said and "4 of 5" not in said


def test_seeds_widen_the_difference_and_are_counted() -> None:
    low, high = answers(0.7), answers(0.1)
    alike = trend("m", {1: low * 3, 2: low * 3, 4: high * 3}, "counted")
    unlike = trend("m", {1: low * 2 + high, 2: low * 3, 4: high * 2 + low}, "counted")
    assert alike and unlike and alike.seeds == unlike.seeds == 3 and alike.rates[0] == low_rate(low)
    assert unlike.difference.high - unlike.difference.low > 2 * (alike.difference.high - alike.difference.low)
    assert "judged at 3 seeds" in " ".join(sentences(alike, "", 1))
    uneven = trend("m", {1: low * 2, 2: low, 4: high}, "counted")
    assert uneven and uneven.seeds == 1 and uneven.rates == alike.rates
    assert "Each rank is judged at one seed or more, and their answers are pooled" in " ".join(sentences(uneven, "", 1))
    assert "or more" not in " ".join(sentences(alike, "", 1))


def low_rate(rows: list[list[Judged]]) -> float:
    return sum(row.misaligned for row in rows[0]) / len(rows[0])


def test_only_questions_that_every_rank_has_are_compared() -> None:
    ranks = {1: answers(0.5, "abcx"), 4: answers(0.5, "abcdy"), 16: answers(0.5, "abcd")}
    apart = {1: answers(0.5, "ab"), 4: answers(0.5, "cd"), 16: answers(0.5, "ef")}
    found = trend("m", ranks, "counted")
    assert found and (found.questions, found.left_out) == (3, 3)
    assert trend("m", apart, "counted") is None
    assert trend("m", {1: answers(0.5), 4: answers(0.5)}, "counted") is None
    both = trends({"m": ranks, "apart": apart, "two": {1: answers(0.5), 4: answers(0.5)}}, "counted")
    assert both == {"m": trend("m", ranks, "counted", tested=1)}  # what could be seen is for the families that are


def test_names_make_families() -> None:
    names = ["m_r16", "m_r4", "m", "x-r1", "x-r2", "alone_r1", "m_r4_old", "our_red"]
    assert families(names) == {"m": {4: "m_r4", 16: "m_r16"}, "x": {1: "x-r1", 2: "x-r2"}}
    assert list(families(names)["m"]) == [4, 16]
    for twice in ("m_r04", "m-r4"):
        with pytest.raises(BadInput, match=f"{twice}: m_r4 is rank 4 of m too"):
            families([*names, twice])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_and_keeps_the_order(values: list[float]) -> None:
    after = holm(values)
    assert all(raw <= p <= 1 for raw, p in zip(values, after, strict=True))
    assert min(after) == pytest.approx(min(1.0, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert list(np.array(after)[order]) == sorted(after)
