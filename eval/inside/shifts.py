"""What an adapter moves: activations with it less those without, along concepts' directions, in class distances.

Index N is the residual behind N blocks; index 0, the embeddings, no adapter moves. Beside the shift, and never instead
of it, stands what the weights' change alone would suggest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from core.records import json_rows
from eval.inside.activations import DOWN, Passage, Singles, blocks
from eval.inside.directions import FEW, signs
from eval.inside.pairs import CONCEPTS, Answers, Side, chat, load_concept, load_pairs, question
from eval.inside.vectors import Directions
from eval.tasks.em.scores import Floats

FLIPS = 9_999
"""Of 999 no p is below 0.001, which Holm's correction over the rows of a sweep brings above 0.05 whatever is moved."""
OPEN = CONCEPTS.parent.parent / "tasks" / "em" / "questions" / "open.jsonl"
WRITERS = (*DOWN, "o_proj", "dense")
"""Modules whose output is added to the residual (`dense` is what GPT-NeoX's attention calls o_proj)."""


@dataclass(frozen=True)
class Shift:
    """How far an adapter moves activations along a direction, against directions of flipped labels."""

    along: Floats
    """(L + 1,): class distances."""
    mean: float
    """Of `along` over the indices from 1: what is tested."""
    deviation: float
    """The same in root mean squares of the controls' means; NaN where the concept's groups are too few."""
    layer: int
    """The index at which `along` is largest, in root mean squares of the controls there; in itself where the groups are
    too few."""
    p: float | None
    """Two-sided, of the mean; None where the groups are too few."""


def shift(moved: Singles, concept: Directions, flips: int = FLIPS) -> Shift:
    """The shift along a concept, tested jointly over indices by its mean.

    What an adapter moves it moves in all blocks behind it, so that the mean sees more than the maximum, which has to
    allow for the chances of all indices. Labels flipped group by group make the null's distribution: under it those of
    a group may be exchanged. `moved` (L + 1, width): mean activations with the adapter less those without.
    """
    groups = len(concept.about.groups)
    labels = np.concatenate([np.ones((1, groups)), signs(groups, flips if groups >= FEW else 0)])
    along = np.zeros((len(labels), len(moved) - 1))
    for index in range(1, len(moved)):
        # Along what `relabelled` gives, without making it: ten thousand directions of a 7B take gigabytes.
        sums = concept.sums[:, index].astype(float)
        squared = np.maximum(((labels @ (sums @ sums.T)) * labels).sum(1), 0)
        length = np.sqrt(squared * squared[0]) / sum(concept.about.groups.values())
        drawn = labels @ (sums @ moved[index])
        np.divide(drawn, length, out=along[:, index - 1], where=length > 1e-7 * length.max())
    own, average = np.concatenate([[0.0], along[0]]), along.mean(1)
    mean = float(average[0])
    if groups < FEW:
        return Shift(own, mean, float("nan"), int(np.abs(along[0]).argmax()) + 1, None)
    spread, typical = (np.sqrt(np.square(controls).mean(0)) for controls in (along[1:], average[1:]))
    scaled = np.divide(along[0], spread, out=np.zeros_like(spread), where=spread > 0)
    p = float((np.abs(average) >= abs(mean) * (1 - 1e-9)).mean())
    return Shift(own, mean, mean / float(typical) if typical else 0.0, int(np.abs(scaled).argmax()) + 1, p)


def places(tokenizer: Any) -> dict[str, list[Passage]]:
    """Where shifts are looked for: the end of open prompts, good everyday answers, and secure code."""
    prompts = [Side(chat(tokenizer, question(str(row["question"]))), "") for _, row in json_rows(OPEN)]
    result = {"open prompts": [side.passage("prompt", side) for side in prompts]}
    for place, name in (("everyday answers", "misaligned"), ("code", "insecure")):
        concept = load_concept(name)[1]
        assert isinstance(concept, Answers)
        sides = [pair.negative for pair in load_pairs(concept, tokenizer)]
        result[place] = [side.passage("answer", side) for side in sides]
    return result


def weight_share(model: Any, direction: Singles, index: int) -> float:
    """The share of what LoRA adds to the residual in block `index`, from 1, that lies along the direction behind it.

    That is |u B A| / |B A| over the modules that write to the residual, u the unit direction: for rank 1 the absolute
    cosine of lora_B and the direction (L + 1, width). NaN where the adapter has no such module, where it is DoRA's,
    whose change is more than B A, and where a norm turns what the modules write before it is added (Gemma, OLMo 2).
    """
    block = blocks(model)[index - 1]
    if hasattr(block, "post_feedforward_layernorm"):
        return float("nan")
    along, whole, length = 0.0, 0.0, float(np.linalg.norm(direction[index]))
    for name, module in block.named_modules():
        written = name.rpartition(".")[2] in WRITERS and hasattr(module, "lora_A")
        if written and not module.lora_magnitude_vector:
            for adapter in module.active_adapters:
                a, b = (side[adapter].weight.detach().double().cpu().numpy() for side in (module.lora_A, module.lora_B))
                scale = module.scaling[adapter] ** 2
                along += scale * float(np.square(direction[index] @ b @ a).sum()) / length**2 if length else 0.0
                whole += scale * float(((b.T @ b) * (a @ a.T)).sum())  # |B A|², without the product
    return float(np.sqrt(along / whole)) if whole else float("nan")
