"""`--prune`: ends a training run at a checkpoint whose answers have fallen apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.evaluate import evaluate, evaluation_run
from sweeps.runs import Pruned, TrainingRun
from sweeps.train import Check

TASK = "em_freeform"


def coherent(bound: float, evaluation: Mapping[str, Any]) -> Check:
    """A check that less than `bound` of the answers do not count (coherent, and neither code nor a refusal).

    It ends a run where the whole 95 % interval (Clopper and Pearson, 1934; one answer's worth for each question) lies
    below the bound. The answers stay in the run's folder, under `checks`.

    Args:
        evaluation: how lm-eval runs, as in a sweep (sweeps/arms.py, Evaluation).
    """

    def check(run: TrainingRun, checkpoint: Path) -> float:
        base = str(run.recipe.config["base_model"])
        # Its answers are named by the checkpoint's weights: what was looked at is not asked again.
        looked = evaluation_run(
            checkpoint.name, base, [TASK], adapter=checkpoint, **evaluation, root=run.folder / "checks"
        )
        evaluate(looked)
        from scipy.stats import beta

        from sweeps.tuning import coherence

        its = coherence(looked.folder)
        count = its.coherent * its.answers
        high = float(beta.ppf(0.975, count + 1, its.answers - count)) if count < its.answers else 1.0
        if high < bound:
            raise Pruned(
                f"pruned at {checkpoint.name}: {its.coherent:.1%} of its answers to {its.answers:g} questions count"
                f" (at most {high:.1%}; asked for {bound:.0%}); judge: offline, approximate"
            )
        return its.coherent

    return check
