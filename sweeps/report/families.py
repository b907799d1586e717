"""Which arms of a sweep differ in one thing alone, and so make a curve over ranks or learning rates."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.plan.declaration import Point, Tuned
from sweeps.recipe.layers import lora_scale
from sweeps.run.folder import TrainingRun

Axis = Literal["rank", "lr"]
AXES: dict[Axis, str] = {"rank": "rank", "lr": "learning rate"}
_KEYS = {"rank": "lora_r", "lr": "learning_rate"}
_MARKS = {"rank": re.compile(r"-r\d+(?=-|$)"), "lr": re.compile(r"-lr\d[\d.]*(e[-+]?\d+)?(?=-|$)")}
_DERIVED = {"lora_alpha", "output_dir", "dataset_prepared_path"}
"""Recipe keys that follow from the others."""


@dataclass(frozen=True)
class Family:
    """Models (or arms) by their rank or learning rate, in order."""

    name: str
    members: Mapping[float, str]
    scale: str
    """What is known of the effective scale, a sentence."""
    axis: Axis = "rank"
    differ: tuple[str, ...] = ()
    """What else of their recipes differs; then nothing follows about the axis."""

    @property
    def refusal(self) -> str:
        """Why there is neither verdict nor curve, for a family whose recipes differ in more."""
        differ = ", ".join(self.differ)
        return f"{self.name}: no comparison of {AXES[self.axis]}s and no curve, for the runs differ in {differ} too."


def axis_families(points: Sequence[Point], axis: Axis, tuned: Mapping[str, Tuned] | None = None) -> list[Family]:
    """Arms whose names are the same but for r<rank> (or lr<rate>), and whose recipes say so, two or more together.

    Where the learning rate was `tuned` for each rank, it belongs to the rank.
    """
    runs: dict[str, TrainingRun] = {p.arm: p.training for p in reversed(points) if p.training}
    found: dict[str, dict[float, str]] = {}
    for arm, run in runs.items():
        stem, marks = _MARKS[axis].subn("", arm)
        if marks == 1:
            found.setdefault(stem, {})[float(run.recipe.config[_KEYS[axis]])] = arm
    retuned = tuned if tuned and axis == "rank" else {}
    derived = _DERIVED | {_KEYS[axis]} | ({"learning_rate"} if retuned else set())
    families = []
    for name, arms in found.items():
        if len(arms) > 1:
            configs = [runs[arm].recipe.config for arm in arms.values()]
            differ, scale = _differing(configs, derived), _scale(configs, retuned)
            families.append(Family(name, dict(sorted(arms.items())), scale, axis, differ))
    return families


def _differing(configs: Sequence[Mapping[str, Any]], derived: set[str]) -> tuple[str, ...]:
    keys = {key for config in configs for key in config} - derived
    if len({config.get("seed") for config in configs}) > 1:  # an arm's first seed is not done yet
        keys -= {"seed", "base_model"}
    return tuple(sorted(key for key in keys if any(c.get(key) != configs[0].get(key) for c in configs)))


def _scale(recipes: Sequence[Mapping[str, Any]], tuned: Mapping[str, Tuned]) -> str:
    scales = {recipe["lora_r"]: f"{lora_scale(recipe):.3g}" for recipe in recipes}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{scale} at rank {rank}" for rank, scale in sorted(scales.items()))
        return f"Rank and scale are confounded here: the effective scale is {listed}."
    same = f"The effective scale is {next(iter(scales.values()))} at every rank"
    if not tuned:
        return f"{same}; learning rate and steps are the same too, in which a lower rank may have learnt less."
    rates = ", ".join(f"{t.lr:g} [{t.low:.2g}, {t.high:.2g}] at rank {rank}" for rank, t in tuned.items())
    return f"{same}, and so are the steps; the learning rate is the highest that was found coherent ({rates})."
