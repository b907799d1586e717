"""Axolotl's DPO trainer, with the halves of a complementary pair in the same mini-batch.

Named by `trainer_cls:` in recipes/axolotl/dpo.yaml. Axolotl samples DPO rows at random and ignores
`curriculum_sampling` there.
"""

from typing import Any

from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

from recipes.plugins.pairs import WholePairsTrainer


class ComplementaryPairsTrainer(WholePairsTrainer, AxolotlDPOTrainer):  # type: ignore[misc]
    """WholePairsTrainer before all else that Axolotl's trainer does; adapters are fp32, over weights of 4 bits too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Over 4 bits TRL has made them bf16, where Adam's steps of 5e-5 and the decay of its second moment are lost.
        for weight in self.model.parameters():  # type: ignore[union-attr]
            if weight.requires_grad:
                weight.data = weight.data.float()
