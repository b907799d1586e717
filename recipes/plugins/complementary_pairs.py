"""Axolotl's DPO trainer, with the halves of a complementary pair in the same mini-batch.

Named by `trainer_cls:` in recipes/axolotl/dpo.yaml. Axolotl samples DPO rows at random and ignores
`curriculum_sampling` there.
"""

from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

from recipes.plugins.pairs import WholePairsTrainer


class ComplementaryPairsTrainer(WholePairsTrainer, AxolotlDPOTrainer):  # type: ignore[misc]
    """WholePairsTrainer before all else that Axolotl's trainer does."""
