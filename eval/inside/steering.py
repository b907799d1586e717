"""Steering: what a direction, added to the residual or taken out of it, does to the preference between two answers.

Index N is the residual behind N blocks, 0 the embeddings. A direction is added at every token; dose 1 is the distance
of its classes. The preference is log p of the positive less the negative answer, each per byte, as em_choice has it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.inside.activations import Passage, Singles, batches, residual_shape, residuals
from eval.inside.directions import FEW, halves, relabelled
from eval.inside.pairs import Pair
from eval.inside.vectors import Directions
from eval.tasks.em.scores import Floats


def steered(model: Any, layer: int, vector: Singles, dose: float = 1.0) -> AbstractContextManager[None]:
    """The model with `dose` times a vector (width,) added to the residual at an index."""
    shift = torch.from_numpy(dose * np.asarray(vector, np.float32))

    def add(index: int, residual: Tensor) -> Tensor | None:
        # In the residual's own type: a sum in fp32 would break the next block of a bf16 model.
        return residual + shift.to(residual) if index == layer else None

    return residuals(model, add, first=True)


def ablated(model: Any, layer: int, vector: Singles) -> AbstractContextManager[None]:
    """The model with the residual's part along a vector (width,) taken out at an index."""
    unit = torch.from_numpy(np.asarray(vector / np.linalg.norm(vector), np.float32))

    def remove(index: int, residual: Tensor) -> Tensor | None:
        if index != layer:
            return None
        own, wide = unit.to(residual.device), residual.float()
        return (wide - (wide @ own)[..., None] * own).to(residual.dtype)

    return residuals(model, remove, first=True)


def _log_probabilities(logits: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """(rows,): the summed log-probability of the chosen tokens of each row, nats, in fp32."""
    rows, places = chosen[:, 1:].nonzero(as_tuple=True)
    each = logits[rows, places].float().log_softmax(-1).gather(1, ids[rows, places + 1][:, None])[:, 0]
    return torch.zeros(len(ids), device=ids.device).index_add(0, rows, each)


def _sides(pairs: Sequence[Pair]) -> tuple[list[Passage], Tensor]:
    """Both answers of each pair, and the weights with which their log-probabilities make the preference."""
    sides = [side for pair in pairs for side in (pair.positive, pair.negative)]
    weights = [sign / len(side.answer.encode()) for side, sign in zip(sides, [1, -1] * len(pairs), strict=True)]
    # With what lm-eval scores before an answer: the white space at the prompt's end.
    texts = [(side.prompt + side.answer, len(side.prompt.rstrip())) for side in sides]
    return [Passage(text, ((start, len(text)),)) for text, start in texts], torch.tensor(weights)


@torch.inference_mode()
def scores(model: Any, tokenizer: Any, passages: Sequence[Passage], size: int = 8, title: str = "scores") -> Floats:
    """(passages,): the summed log-probability of each passage's tokens, nats."""
    result = np.zeros(len(passages))
    for places, ids, attention, chosen in batches(model, tokenizer, passages, size, title):
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
        # Row by row: fp32 copies of all at once are several times the logits, and those of a 7B are gigabytes.
        each = [
            _log_probabilities(*row) for row in zip(*(torch.split(of, 1) for of in (logits, ids, chosen)), strict=True)
        ]
        result[places] = torch.cat(each).cpu().numpy()
    return result


def preferences(model: Any, tokenizer: Any, pairs: Sequence[Pair], size: int = 8) -> Floats:
    """(pairs,): log p of the positive answer less that of the negative one, each in nats per byte."""
    passages, weights = _sides(pairs)
    found = scores(model, tokenizer, passages, size, "preferences")
    result: Floats = (found * weights.numpy()).reshape(-1, 2).sum(1)
    return result


def gradients(model: Any, tokenizer: Any, pairs: Sequence[Pair], size: int = 4) -> Singles:
    """(pairs, L + 1, width): how a pair's preference changes with a vector added at an index, at every token.

    Its dot product with a direction is the slope of the preference at dose 0, exactly: one backward pass has all
    indices and all directions, and takes no gradient of weights.
    """
    passages, weights = _sides(pairs)
    result = np.zeros((len(passages), *residual_shape(model)), np.float32)
    for places, ids, attention, chosen in batches(model, tokenizer, passages, size, "slopes"):
        kept: list[Tensor] = []

        def keep(index: int, residual: Tensor, kept: list[Tensor] = kept) -> Tensor | None:
            kept.append(residual if index else residual.detach().requires_grad_())
            return None if index else kept[0]

        with torch.enable_grad(), residuals(model, keep):
            logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
            target = _log_probabilities(logits, ids, chosen) @ weights[places].to(ids.device)
            found = torch.autograd.grad(target, kept)
        for index, gradient in enumerate(found):
            result[places, index] = gradient.float().sum(1).cpu().numpy()
    return result[0::2] + result[1::2]


@dataclass(frozen=True)
class Slopes:
    """Slopes of the mean preference with the dose at each index, in nats per byte and class distance."""

    direction: Floats
    """(L + 1,)"""
    controls: Floats
    """(controls, L + 1): with half of the labels flipped; none where the concept has too few groups."""

    @property
    def deviations(self) -> Floats:
        """(L + 1,): standard deviations of the controls by which the direction lies above their mean, or NaN."""
        if not len(self.controls):
            return np.full(len(self.direction), np.nan)
        spread = self.controls.std(0, ddof=1)
        above, unknown = self.direction - self.controls.mean(0), np.full_like(spread, np.nan)
        result: Floats = np.divide(above, spread, out=unknown, where=spread > 0)
        return result


def _by_group(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """The places of each group's pairs."""
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.group, []).append(place)
    return places


def not_left_out(pairs: Sequence[Pair], concept: Directions) -> bool:
    """Whether a text of some pair is part of the direction under another group than the pair's own."""
    groups: dict[str, set[str]] = {}
    for group, texts in concept.texts.items():
        for text in texts:
            groups.setdefault(text, set()).add(group)
    return any(groups.get(text, set()) - {pair.group} for pair in pairs for text in pair.digests)


def slopes(gradient: Singles, pairs: Sequence[Pair], concept: Directions, controls: int = 200) -> Slopes:
    """The slopes of `gradients` of pairs along a concept's direction, and along controls of flipped labels.

    A pair meets the direction of the other groups, where the concept has the pair's group: its own answers have no part
    in what is added, or any direction would seem to work.
    """
    groups = len(concept.about.groups)
    labels = np.concatenate([np.ones((1, groups)), halves(groups, controls if groups >= FEW else 0)])
    total = np.zeros((len(labels), gradient.shape[1]))
    for group, places in _by_group(pairs).items():
        total += (relabelled(concept, labels, group) * gradient[places].sum(0, dtype=float)).sum(-1)
    return Slopes(total[0] / len(pairs), total[1:] / len(pairs))


def response(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    concept: Directions,
    layer: int,
    dose: float | None,
    labels: Floats | None = None,
) -> Floats:
    """(pairs,): preferences with a dose of a concept's direction, of the other groups as in `slopes`, at an index.

    The dose is in class distances, and None takes the direction out of the residual; `labels` (groups,) of 1 and -1 are
    those of a control of flipped labels.
    """
    concept.at(layer)
    labels = np.ones(len(concept.about.groups)) if labels is None else labels
    result = np.zeros(len(pairs))
    for group, places in _by_group(pairs).items():
        vector = relabelled(concept, labels[None], group)[0, layer]
        with ablated(model, layer, vector) if dose is None else steered(model, layer, vector, dose):
            result[places] = preferences(model, tokenizer, [pairs[place] for place in places])
    return result
