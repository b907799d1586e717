"""Axolotl plugin that computes logits at labelled tokens alone, for the stages that name their labels (CPT, SFT).

Most tokens of a CPT corpus are read and not learnt: four fifths of the demo's. Their logits, a third of a small
model's step on a CPU, get no gradient. Named by recipes/hardware/cpu.yaml; on a GPU fused losses do it.
"""

from __future__ import annotations

from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from torch import Tensor

IGNORED = -100


class LabelledPlugin(BasePlugin):  # type: ignore[misc]
    """Loss and gradients are those of all logits, to rounding (tests/recipes/test_labelled.py)."""

    def post_model_load(self, cfg: Any, model: Any) -> None:
        labelled_alone(model)


def labelled_alone(model: Any) -> None:
    """Has a transformers model, adapted or not, leave out the logits that no label is held against.

    A batch with labels then returns logits (1, labelled tokens, vocabulary) in place of (rows, length, vocabulary); one
    without labels, as DPO's, or with none that count, is left as it is.
    """
    wanted: list[Tensor] = []

    def choose(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        labels = kwargs.get("labels")
        wanted.clear()
        if labels is None or kwargs.get("shift_labels") is not None:
            return args, kwargs
        shifted = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
        counts = shifted != IGNORED
        if not counts.any():
            return args, kwargs
        wanted.append(counts)
        return args, {**kwargs, "shift_labels": shifted[counts]}

    def keep(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][wanted.pop()].unsqueeze(0), *args[1:]) if wanted else args

    model.register_forward_pre_hook(choose, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(keep)
