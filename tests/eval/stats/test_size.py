"""Size against data: in made-up sweeps a known effect is found, and an effect of the family alone is not."""

import numpy as np
import pytest
from scipy import stats

from eval.stats.size import LINES, Models, fit, log_odds, not_identified, orders, outcome_slopes, permutation_p

SIZES = {
    **{f"smollm2-{size}": [(size, tokens) for tokens in (2.5e11, 5e11, 1e12, 1.75e12)] for size in (1.06e8, 3.1e8)},
    "olmo2": [(1.07e9, 2.1e10), (1.07e9, 2.94e11), (1.07e9, 4e12)],
    "qwen2.5-coder": [(3.6e8, 2.35e13), (1.3e9, 2.35e13), (2.8e9, 2.35e13), (6.5e9, 2.35e13), (1.3e10, 2.35e13)],
    "pythia": [(size, tokens) for size in (1.2e9, 3e8, 8.5e7) for tokens in (2e9, 3e10, 3e11)],
}


def models(names: dict[str, list[tuple[float, float]]] = SIZES) -> Models:
    families = [name.split("-1")[0].split("-3")[0] for name, own in names.items() for _ in own]
    table = np.array([row for own in names.values() for row in own])
    return Models(families, table[:, 0], table[:, 1])


def draws(slopes: tuple[float, float], count: int = 200, scatter: float = 0.3) -> list[np.ndarray]:
    """Logits with these slopes per decade, families that differ by a nat or so, and a scatter between models."""
    made = models()
    x = np.log10(np.column_stack([made.parameters, made.tokens]))
    rng = np.random.default_rng(7)
    names = list(dict.fromkeys(made.families))
    levels = rng.normal(0, 1.0, (count, len(names)))[:, [names.index(f) for f in made.families]]
    return list(levels + x @ np.array(slopes) + rng.normal(0, scatter, (count, len(x))))


def shares(slopes: tuple[float, float]) -> dict[str | None, float]:
    """In how many of the draws each hypothesis is rejected at 5 %."""
    made, values = models(), draws(slopes)
    return {line: float(np.mean([permutation_p(made, y, line) < 0.05 for y in values])) for line in (None, *LINES)}


def test_a_family_effect_alone_is_not_taken_for_one_of_size_or_data() -> None:
    assert max(shares((0.0, 0.0)).values()) <= 0.07


def test_what_is_there_is_found_and_the_true_line_is_kept() -> None:
    ratio, size, data = shares((0.6, -0.6)), shares((0.6, 0.0)), shares((0.0, -0.6))
    assert min(ratio[None], ratio["size"], ratio["data"]) >= 0.8 and ratio["ratio"] <= 0.07
    assert min(size[None], size["data"], size["ratio"]) >= 0.8 and size["size"] <= 0.07
    assert min(data[None], data["size"], data["ratio"]) >= 0.8 and data["data"] <= 0.07


def test_the_ellipse_and_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    made, truth = models(), np.array([0.6, -0.6])
    inside = within = 0
    for y in draws((0.6, -0.6)):
        found = fit(made, y)
        off = found.slopes - truth
        inside += off @ np.linalg.inv(found.covariance) @ off <= 2 * stats.f.ppf(0.95, 2, found.freedom)
        low, high = found.interval(0)
        within += low <= truth[0] <= high
    assert inside >= 180 and within >= 180
    boundary = found.ellipse() - found.slopes[:, None]
    reach = (boundary * (np.linalg.inv(found.covariance) @ boundary)).sum(axis=0)
    assert np.allclose(reach, 2 * stats.f.ppf(0.95, 2, found.freedom))
    assert not found.excludes("ratio") and found.excludes("size")


@pytest.mark.parametrize("slope", [0, 1])
def test_the_smallest_slope_is_found_in_four_of_five_sweeps(slope: int) -> None:
    made = models()
    sizes = [fit(made, y).smallest(slope) for y in draws((0.0, 0.0))]
    slopes = (float(np.mean(sizes)), 0.0) if slope == 0 else (0.0, float(np.mean(sizes)))
    found = [permutation_p(made, y, "data" if slope == 0 else "size") < 0.05 for y in draws(slopes)]
    assert 0.65 < np.mean(found) < 0.95


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"qwen": SIZES["qwen2.5-coder"]}, "a ladder of sizes at equal tokens: b_T cannot be told"),
        ({"olmo": SIZES["olmo2"]}, "checkpoints of one size: b_P cannot be told"),
        ({"x": [(1e8, 2e9), (1e9, 2e10), (1e10, 2e11), (3e9, 6e10)]}, "parameters and tokens go together"),
        ({"a": [(1e8, 2e9)], "b": [(1e9, 3e12)], "c": [(1e10, 4e12)]}, "neither parameters nor tokens vary"),
        ({"a": [(1e8, 2e9), (1e9, 3e12), (2e9, 4e10)]}, "no degree of freedom"),
    ],
)
def test_models_that_cannot_tell_say_why(names: dict, says: str) -> None:
    made = models(names)
    assert says in str(not_identified(made))
    assert outcome_slopes({"em": (made, np.zeros(len(made.families)))}) == {}


def test_two_ladders_identify_together_what_neither_does() -> None:
    assert not_identified(models({name: SIZES[name] for name in ("qwen2.5-coder", "olmo2")})) is None


def test_the_test_of_no_effect_is_over_all_orders_within_families_where_they_are_few() -> None:
    made = models({"a": [(1e8, 2e9), (1e9, 3e12), (2e9, 4e10)], "b": [(1e8, 1e12), (1e9, 1e12), (3e9, 9e12)]})
    every = orders(tuple(made.families))
    assert len({tuple(order) for order in every}) == 36 and list(every[0]) == list(range(6))
    assert all(set(order[:3]) == {0, 1, 2} for order in every)
    p = permutation_p(made, np.array([0.0, 1.0, 1.3, 5.0, 6.0, 6.5]))
    assert p * 36 == pytest.approx(round(p * 36)) and p >= 1 / 36


def test_holm_corrects_over_the_outcomes_that_are_outcome_slopes() -> None:
    made, y = models(), draws((0.6, -0.6), 1)[0]
    alone = outcome_slopes({"em": (made, y)})["em"]
    ladder = models({"qwen": SIZES["qwen2.5-coder"]})
    both = outcome_slopes(
        {"em": (made, y), "margin": (made, draws((0.0, 0.0), 1)[0]), "ladder": (ladder, np.arange(5.0))}
    )
    assert set(both) == {"em", "margin"}
    assert both["em"].p_none == pytest.approx(2 * alone.p_none)


def test_a_rate_of_0_or_1_has_a_logit() -> None:
    assert log_odds(0, 50) == -log_odds(50, 50) and np.isfinite(log_odds(0, 0)) and log_odds(10, 20) == 0


def test_models_that_all_have_one_rate_tell_no_slopes() -> None:
    """No misaligned answer of 2,400, of any model: the scatter is 0, and so would be the smallest slope."""
    made = models()
    nought = np.full(len(made.families), log_odds(0, 2400))
    assert set(outcome_slopes({"em": (made, nought), "margin": (made, draws((0.6, -0.6), 1)[0])})) == {"margin"}
