"""Directions: against the definition by loops, no discovery without a concept, known cosines recovered, a real one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from core.records import BadInput
from eval.inside.activations import load, means
from eval.inside.directions import SHARE, crossover, directions, halves, held_out, projections, relabelled, standardised
from eval.inside.pairs import load_concept, load_pairs
from eval.inside.vectors import About, Directions

ABOUT = About(model="m", concept="c", position="answer", pairs=0)


def draw(
    rng: np.random.Generator, mean: np.ndarray, groups: int, noise: float, layers: int = 1, name: str = "g"
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two pairs a group that differ by `mean`, by what their group has in common, and by their own."""
    width = len(mean)
    common = rng.normal(size=(groups, layers, width)).repeat(2, axis=0)
    difference = mean + noise * (common + 0.5 * rng.normal(size=common.shape))
    # Questions differ far more than answers, and all share a huge mean.
    middle = 50 + 3 * rng.normal(size=common.shape)
    names = [f"{name}{number}" for number in np.arange(groups).repeat(2)]
    return (middle + difference / 2).astype(np.float32), (middle - difference / 2).astype(np.float32), names


def of(rng: np.random.Generator, mean: np.ndarray, groups: int, noise: float, name: str) -> Directions:
    return directions(*draw(rng, mean, groups, noise, name=name), ABOUT)


def by_loops(positive: np.ndarray, negative: np.ndarray, groups: Sequence[str]) -> float:
    """The held-out AUC at one index, as its definition says."""
    up, down = [], []
    names = np.array(groups)
    for number, group in enumerate(groups):
        train = names != group
        direction = (positive[train] - negative[train]).mean(0)
        direction /= np.linalg.norm(direction)
        middle = (positive[train] + negative[train]).mean(0) / 2
        up.append((positive[number] - middle) @ direction)
        down.append((negative[number] - middle) @ direction)
    return float(roc_auc_score([1] * len(up) + [0] * len(down), up + down))


def test_held_out_auc_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    positive, negative, groups = (x[:-1] for x in draw(rng, np.full(16, 0.6), 9, 1.0, layers=3))  # unequal groups
    found = held_out(positive, negative, groups, flips=20)
    expected = [by_loops(positive[:, n].astype(float), negative[:, n].astype(float), groups) for n in range(3)]
    np.testing.assert_allclose(found.auc, expected, atol=1e-9)
    assert found.layer == 1 + int(np.argmax(expected[1:]))
    assert found.gain.value == pytest.approx(expected[found.layer] - expected[0])


def test_flipping_labels_is_the_same_as_exchanging_the_sides() -> None:
    rng = np.random.default_rng(0)
    positive, negative, groups = draw(rng, np.full(8, 0.5), 7, 1.0)
    index = np.unique(groups, return_inverse=True)[1]
    flips = np.vstack([np.ones(7), np.where(np.arange(7) < 3, -1.0, 1.0)])
    up, down = projections(positive[:, 0].astype(float), negative[:, 0].astype(float), index, flips)
    change = (index < 3)[:, None]
    swapped = np.where(change, negative[:, 0], positive[:, 0]), np.where(change, positive[:, 0], negative[:, 0])
    other = projections(swapped[0].astype(float), swapped[1].astype(float), index, np.ones((1, 7)))
    np.testing.assert_allclose(up[:, 1], other[0][:, 0])
    np.testing.assert_allclose(down[:, 1], other[1][:, 0])


def test_without_a_concept_few_labellings_are_found_significant() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        # Groups lean to one side by chance, as a whole: flips of single pairs would find that significant.
        positive, negative, groups = draw(rng, np.zeros(12), 8, 2.0, layers=4)
        found.append(held_out(positive, negative, groups, flips=99).p)
    assert np.mean(np.array(found, float) < 0.05) <= 0.10
    assert 0.3 < np.mean(np.array(found, float)) < 0.7


def test_a_concept_is_found_behind_the_embeddings() -> None:
    rng = np.random.default_rng(0)
    mean = np.zeros((3, 16))
    mean[2, 0] = 6
    positive, negative, groups = draw(rng, np.zeros(16), 12, 0.5, layers=3)
    found = held_out(positive + mean / 2, negative - mean / 2, groups, flips=99)
    assert found.layer == 2
    assert found.p == 0.01
    assert found.gain.low > 0
    assert found.null is not None and found.null < found.auc[2]


def test_no_p_is_smaller_than_so_few_groups_can_give() -> None:
    found = held_out(*draw(np.random.default_rng(0), np.full(8, 3.0), 6, 0.1, layers=2))
    assert found.p == pytest.approx(1 / 32, abs=0.02)
    assert found.auc[1] > 0.9


def test_under_six_groups_nothing_is_tested() -> None:
    positive, negative, groups = draw(np.random.default_rng(0), np.full(8, 3.0), 5, 0.1, layers=2)
    found = held_out(positive, negative, groups)
    assert found.p is None and found.null is None
    few = directions(positive, negative, groups, ABOUT)
    assert crossover(few, few, 1).cosine is None


@pytest.mark.parametrize("share", [0.6, 0.8])
@pytest.mark.parametrize("cosine", [0.0, 0.4, 0.9])
def test_known_cosines_are_recovered_with_intervals_that_cover_them(cosine: float, share: float) -> None:
    rng = np.random.default_rng(0)
    width, groups, values, covered = 256, 16, [], []
    noise = np.sqrt((1 / share - 1) * groups / (width * 1.125))
    for _ in range(150):
        one, two = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
        other = cosine * one + np.sqrt(1 - cosine**2) * two
        found = crossover(of(rng, one, groups, noise, "a"), of(rng, 3 * other, groups, 3 * noise, "b"), 0)
        if found.cosine:
            values.append(found.cosine.value)
            covered.append(found.cosine.low <= cosine <= found.cosine.high)
            assert abs(found.raw) < abs(found.cosine.value)
    assert len(values) > 100
    assert np.mean(values) == pytest.approx(cosine, abs=0.03)
    assert np.mean(covered) >= 0.92


def test_how_large_a_neuron_is_counts_in_no_cosine_of_standardised_differences() -> None:
    rng = np.random.default_rng(0)
    sides = [draw(rng, np.full(64, 0.6), 12, 1.0, name=name) for name in "ab"]
    scales = (10 ** rng.uniform(-3, 3, size=64)).astype(np.float32)
    plain, scaled = (
        [directions(*standardised(up * by, down * by), groups, ABOUT) for up, down, groups in sides]
        for by in (np.float32(1), scales)
    )
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one.direction, other.direction, rtol=1e-3, atol=1e-4)
    up, down, _ = sides[0]
    spread = np.sqrt((up[:, 0].var(0, ddof=1) + down[:, 0].var(0, ddof=1)) / 2)
    np.testing.assert_allclose(plain[0].direction[0], (up - down).mean(0)[0] / spread, rtol=1e-3, atol=1e-4)
    dead = np.zeros_like(up)
    assert not np.any(standardised(dead, dead))


def test_noise_has_no_cosine() -> None:
    rng = np.random.default_rng(0)
    noise = [of(rng, np.zeros(64), 12, 1.0, name) for name in ("a", "b")]
    found = crossover(noise[0], noise[1], 0)
    assert max(found.shares) < SHARE
    assert found.cosine is None


def test_noise_that_two_concepts_share_by_their_groups_is_no_agreement() -> None:
    rng = np.random.default_rng(0)
    width, groups = 256, 16
    values = []
    for _ in range(20):
        one, two = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
        positive, negative, names = draw(rng, one, groups, 0.2)
        shift = two - one
        first = directions(positive, negative, names, ABOUT)
        second = directions(positive + shift.astype(np.float32), negative, names, ABOUT)
        found = crossover(first, second, 0)
        assert found.cosine
        assert found.raw > 0.2
        values.append(found.cosine.value)
    assert np.mean(values) == pytest.approx(0, abs=0.05)


def test_flipped_controls_have_the_length_of_the_direction_and_lie_elsewhere() -> None:
    concept = of(np.random.default_rng(0), np.full(64, 1.0), 10, 0.3, "a")
    controls = relabelled(concept, halves(10, 50))
    assert controls.shape == (50, 1, 64)
    np.testing.assert_allclose(np.linalg.norm(controls, axis=-1), np.linalg.norm(concept.direction[0]), rtol=1e-5)
    cosines = controls[:, 0] @ concept.direction[0] / np.square(concept.direction[0]).sum()
    assert np.abs(cosines).max() < 0.5
    assert (halves(10, 50).sum(1) == 0).all() and len(np.unique(halves(10, 50), axis=0)) > 30
    np.testing.assert_allclose(relabelled(concept, np.ones((1, 10)))[0], concept.direction, rtol=1e-5)


def test_a_direction_without_a_group_is_that_of_the_others() -> None:
    positive, negative, names = draw(np.random.default_rng(0), np.full(8, 1.0), 6, 1.0, layers=2)
    others = np.array(names) != "g2"
    expected = (positive - negative)[others].mean(0)
    concept = directions(positive, negative, names, ABOUT)
    np.testing.assert_allclose(relabelled(concept, np.ones((1, 6)), "g2")[0], expected, rtol=1e-4)
    np.testing.assert_allclose(relabelled(concept, np.ones((1, 6)), "no such")[0], concept.direction, rtol=1e-5)


def test_one_group_alone_is_refused() -> None:
    positive, negative, _ = draw(np.random.default_rng(0), np.full(8, 1.0), 2, 1.0)
    with pytest.raises(BadInput, match="all pairs are of one group"):
        held_out(positive, negative, ["g"] * 4)


@pytest.mark.slow
def test_the_misaligned_direction_of_the_cpu_model_tells_more_than_words(model: Path) -> None:
    """A third of em_choice; docs/inside.md has all of it."""
    loaded = load(str(model))
    pairs = load_pairs(load_concept("misaligned")[1], loaded[1])[::3]
    sides = [
        means(*loaded, [side.passage("answer", side) for side in row])
        for row in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
    ]
    found = held_out(sides[0], sides[1], [pair.group for pair in pairs], flips=99)
    assert found.auc[found.layer] > 0.75
    assert found.auc[found.layer] > found.auc[0] + 0.1
    assert found.p is not None and found.p <= 0.05
