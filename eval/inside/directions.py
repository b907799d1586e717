"""Where a concept lies: difference of means at each index, tested on groups that were left out; how far concepts agree.

Index N is the residual behind N blocks; index 0, the embeddings, is the lexical baseline: what the words alone tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from core.records import BadInput, one_line
from eval.inside.activations import Singles, means
from eval.inside.pairs import Concept, class_texts
from eval.inside.vectors import About, Directions
from eval.stats.intervals import Estimate
from eval.tasks.em.scores import Floats, Index, auc_matrix, jackknife_stderr

FEW = 6
"""Groups below which nothing is tested: six can be flipped in 32 ways, so that no p is below 0.03."""
SHARE = 0.5
"""Share of signal in a direction's squared length below which its cosines cannot be estimated."""
FLIPS = 499


@dataclass(frozen=True)
class HeldOut:
    """How well a direction tells groups that it was not made from."""

    auc: Floats
    """(L + 1,): area under the ROC curve, positive against negative, each projected on the direction of the others."""
    layer: int
    """The index from 1 with the highest."""
    gain: Estimate
    """That AUC less the embeddings', 95 % over groups; the index was chosen on the same data: it flatters a little."""
    null: float | None
    """The highest AUC from index 1 that flipped labels reach in the median; None with too few groups."""
    p: float | None
    """Share of flips that reach as high at any index."""


def signs(groups: int, count: int) -> Floats:
    """(count, groups) of 1 and -1: labels flipped group by group.

    All alike comes up too, once in 2 ** (groups - 1): without it a p value over few groups would be too small.
    """
    return np.random.default_rng(0).choice([-1.0, 1.0], size=(count, groups))


def halves(groups: int, count: int, seed: int = 0) -> Floats:
    """(count, groups) of 1 and -1, half of the groups flipped: directions of the same pairs that hold no concept.

    For the size of what such a direction does. A p value needs `signs`, whose labels are as random as chance's.
    """
    rows = np.tile(np.where(np.arange(groups) < groups // 2, -1.0, 1.0), (count, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)


def projections(positive: Floats, negative: Floats, groups: Index, flips: Floats) -> tuple[Floats, Floats]:
    """Held-out projections at one index, each (pairs, flips), of the pairs' positive and negative sides.

    A pair is centred by the midpoints of the other groups and projected on the unit direction of the other groups, with
    the labels of each group flipped as `flips` (flips, groups) says; the two sides change places with their labels.
    """
    member = np.eye(flips.shape[1])[groups]
    apart = 1 - member @ member.T
    difference, middle = positive - negative, (positive + negative) / 2
    centre = apart @ middle / apart.sum(1, keepdims=True)
    label = (flips @ member.T).T
    gram = difference @ difference.T
    reach = gram @ label
    # |sum of the others|² = |sum of all|² - 2 (own sum)·(sum of all) + |own sum|²
    own = member @ (member.T @ (label * reach))
    squared = (label * reach).sum(0) - 2 * own + (member @ np.diag(member.T @ gram @ member))[:, None]
    length = np.sqrt(np.maximum(squared, np.finfo(float).tiny))
    up, down = (((side - centre) @ difference.T * apart) @ label / length for side in (positive, negative))
    return np.where(label > 0, up, down), np.where(label > 0, down, up)


def held_out(positive: Singles, negative: Singles, groups: Sequence[str], flips: int = FLIPS) -> HeldOut:
    """The test of a concept's direction on groups left out, one after another.

    Under the null the labels of a whole group may be exchanged: the distribution is that of the maximum over indices
    with labels flipped (Westfall and Young, Resampling-Based Multiple Testing, 1993).

    Args:
        positive: (pairs, L + 1, width), means over the same tokens as `negative`'s, pair by pair.
        groups: each pair's; BadInput for one group alone.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"all pairs are of one group, {one_line(names[0])!r}: nothing can be held out; group otherwise")
    labels = np.concatenate([np.ones((1, len(names))), signs(len(names), flips if len(names) >= FEW else 0)])
    sides = [
        projections(positive[:, n].astype(float), negative[:, n].astype(float), index, labels)
        for n in range(positive.shape[1])
    ]
    wins = [stats.mannwhitneyu(up, down, method="asymptotic").statistic for up, down in sides]  # ties count half
    table = np.array(wins) / len(index) ** 2  # AUCs, (L + 1, 1 + flips)
    best = table[1:].max(0)
    layer = 1 + int(table[1:, 0].argmax())
    member = np.eye(len(names))[index]
    beyond = auc_matrix(*(side[:, 0] for side in sides[layer])) - auc_matrix(*(side[:, 0] for side in sides[0]))
    between, sizes = member.T @ beyond @ member, member.sum(0)

    def gain(chosen: Index) -> float:
        return float(between[np.ix_(chosen, chosen)].sum() / sizes[chosen].sum() ** 2)

    value = gain(np.arange(len(names)))
    margin = float(stats.t.ppf(0.975, len(names) - 1)) * jackknife_stderr(gain, len(names))
    tested = len(labels) > 1
    return HeldOut(
        table[:, 0],
        layer,
        Estimate(value, value - margin, value + margin, len(names)),
        float(np.median(best[1:])) if tested else None,
        float((best >= best[0] - 1e-12).mean()) if tested else None,
    )


def directions(positive: Singles, negative: Singles, groups: Sequence[str], about: About) -> Directions:
    """The difference of means at each index, with what its intervals and controls are made of."""
    names, index, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    difference = positive - negative
    sums = np.zeros((len(names), *difference.shape[1:]), np.float32)
    np.add.at(sums, index, difference)
    counts = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    about = about.model_copy(update={"pairs": len(groups), "groups": counts})
    return Directions(about, difference.mean(0), (positive + negative).mean(0) / 2, sums)


def directions_of(model: Any, tokenizer: Any, concept: Concept, name: str, identity: str | None) -> Directions:
    """The directions of a concept, from its own texts at its own position, in a model that `identity` names.

    BadInput as of `class_texts` and `means`.
    """
    sides, pairs = class_texts(model, tokenizer, concept, concept.position)
    positive, negative = (means(model, tokenizer, side) for side in sides)
    about = About(model=identity, concept=name, position=concept.position, pairs=len(pairs))
    return directions(positive, negative, [pair.group for pair in pairs], about)


def standardised(positive: Singles, negative: Singles) -> tuple[Singles, Singles]:
    """Both sides (pairs, L + 1, neurons) in standard deviations of each neuron within the classes.

    The difference of their means is then each neuron's standardised difference (Cohen's d): a cosine of two concepts
    weighs neurons by how well they tell, and not by how large they are. How many of the top neurons two concepts share
    says nothing: flipped labels share as many.
    """
    spread = np.sqrt((positive.var(0, ddof=1) + negative.var(0, ddof=1)) / 2)
    up, down = (np.divide(side, spread, out=np.zeros_like(side), where=spread > 0) for side in (positive, negative))
    return up, down


def relabelled(concept: Directions, labels: Floats, without: str | None = None) -> Singles:
    """(labels, L + 1, width): a concept's direction with its groups' labels flipped, at the unflipped one's length.

    These are controls that lie where the concept's pairs differ; isotropic ones do not, and flatter any direction.
    `labels` are (labels, groups) of 1 and -1, and ones give the direction itself; a group `without`, if the concept has
    it, has no part in any.
    """
    if not len(concept.sums):
        return np.repeat(concept.direction[None], len(labels), 0)
    part = np.array([name != without for name in concept.about.groups])
    sums = concept.sums[part].astype(float)
    true = sums.sum(0) / np.array(list(concept.about.groups.values()))[part].sum()
    drawn = np.tensordot(labels[:, part], sums, 1)
    length = np.linalg.norm(drawn, axis=-1, keepdims=True)
    wanted = np.linalg.norm(true, axis=-1, keepdims=True)
    result: Singles = np.divide(drawn * wanted, length, out=np.zeros_like(drawn), where=length > 0).astype(np.float32)
    return result


@dataclass(frozen=True)
class Crossover:
    """The cosine of two concepts' true directions at an index."""

    layer: int
    shares: tuple[float, float]
    """Share of signal in each direction's squared length (its reliability)."""
    raw: float
    """The cosine of the directions as they were found; noise draws it towards 0."""
    cosine: Estimate | None
    """Disattenuated, with its 95 % interval; None where it is not estimable."""


def crossover(one: Directions, other: Directions, layer: int) -> Crossover:
    """The cosine of two concepts at an index, freed of the noise in their lengths.

    Products are taken between different groups alone, which makes squared lengths and dot products unbiased (U
    statistics; Hoeffding 1948); their ratio is Spearman's correction for attenuation (1904). The interval is the
    delete-one jackknife's over the groups of each concept with Student's t; groups of one name are left out of both.
    """
    names = [np.array(list(concept.about.groups), str) for concept in (one, other)]
    sums = one.sums[:, layer].astype(float), other.sums[:, layer].astype(float)
    sizes = np.array(list(one.about.groups.values()), float), np.array(list(other.about.groups.values()), float)

    def product(a: int, b: int) -> tuple[Floats, Floats]:
        """Dot products of groups' sums, and how many pairs of pairs each is over; 0 for groups of one name."""
        apart = (names[a][:, None] != names[b]).astype(float)
        return sums[a] @ sums[b].T * apart, np.outer(sizes[a], sizes[b]) * apart

    tables = {pair: product(*pair) for pair in ((0, 0), (1, 1), (0, 1))}

    def mean(pair: tuple[int, int], keep: Sequence[Floats]) -> float:
        dots, weights = (keep[pair[0]] @ table @ keep[pair[1]] for table in tables[pair])
        return float(dots / weights) if weights else float("nan")

    def cosine(keep: Sequence[Floats]) -> float:
        squares = mean((0, 0), keep), mean((1, 1), keep)
        return mean((0, 1), keep) / float(np.sqrt(squares[0] * squares[1])) if min(squares) > 0 else float("nan")

    everyone = np.ones(len(names[0])), np.ones(len(names[1]))
    vectors = one.direction[layer].astype(float), other.direction[layer].astype(float)
    lengths = np.linalg.norm(vectors[0]), np.linalg.norm(vectors[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tuple(float(mean((k, k), everyone) / lengths[k] ** 2) for k in (0, 1))
        raw = float(vectors[0] @ vectors[1] / (lengths[0] * lengths[1]))
    found, groups = (shares[0], shares[1]), min(map(len, names))
    if groups < FEW or not min(found) >= SHARE:
        return Crossover(layer, found, raw, None)
    value, variance = cosine(everyone), 0.0
    shared = set(names[0]) & set(names[1])
    for stratum in (shared, set(names[0]) - shared, set(names[1]) - shared):
        left = [cosine([(own != out).astype(float) for own in names]) for out in sorted(stratum)]
        variance += (len(left) - 1) * float(np.var(left)) if left else 0.0
    margin = float(stats.t.ppf(0.975, groups - 1) * np.sqrt(variance))
    estimate = Estimate(value, value - margin, value + margin, groups)
    return Crossover(layer, found, raw, estimate if np.isfinite(value + margin) else None)
