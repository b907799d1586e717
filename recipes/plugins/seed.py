"""Axolotl plugin that seeds the LoRA matrices.

Axolotl seeds the trainer, but by then the adapter has been drawn from an unseeded generator: two runs of one
recipe start from different matrices, and `seed` names nothing. Seen on axolotl 0.19.0; tested end to end.
"""

from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import set_seed


class SeedPlugin(BasePlugin):  # type: ignore[misc]
    """Seeds all generators with the recipe's `seed` before the model and its adapter are made."""

    def pre_model_load(self, cfg: Any) -> None:
        set_seed(cfg.seed)
