"""The axes of a grid: what a value of each does to the arms that vary, and the names that come of it."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, product
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from core.records import BadInput, bad_input, one_line
from sweeps.plan.declaration import AXES, Arm, Claim, InsideClaim, Sweep, Tuned, check_keys, same_key
from sweeps.plan.sweep import FITTING, arm_recipe
from sweeps.recipe.alpha import ALPHA_POLICIES
from sweeps.recipe.layers import ENGINES, layer_names, learns_preferences, load_layer
from sweeps.recipe.refusals import of_dpo
from sweeps.recipe.settings import ABSENT, at, given_settings, parsed

MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {"mlp": MLP, "attention": ATTENTION, "all": MLP + ATTENTION, **{name: [name] for name in MLP + ATTENTION}}
NAMES = tuple(AXES)
PREFIX = {"rank": "r", "lr": "lr", "cpt": "cpt-"}
AnyClaim = TypeVar("AnyClaim", Claim, InsideClaim)
LEAST = {"rank": 1, "seed": 0, "lr": 0}
SAVING = {"save_strategy", "save_steps", "save_total_limit"}
"""Recipe keys that several points of training set (TrainingRun.whole_recipe)."""


@cache
def variants() -> dict[str, tuple[str, str]]:
    """(stage, data file) of each set: the stage's own, and those of its controls (recipes/variants)."""
    usual = {"explained": "cpt", "sft": "sft", "complementary": "dpo"}
    own = {name: (stage, load_layer("axolotl", stage)["datasets"][0]["path"]) for name, stage in usual.items()}
    layers = {name: load_layer("variants", name) for name in layer_names("variants")}
    controls = {name: layer for name, layer in layers.items() if "datasets.0.path" in layer}
    return own | {name: (layer["em"]["stage"], layer["datasets.0.path"]) for name, layer in controls.items()}


def choices(axis: str) -> list[str] | None:
    """The valid values of an axis of names; None for one of numbers, or a recipe key."""
    stage = {name: stage for name, (stage, _) in variants().items()}
    return {
        "model": list(layer_names("models")),
        "targets": list(TARGETS),
        "alpha": list(ALPHA_POLICIES),
        "engine": list(ENGINES),
        "data": [name for name in stage if stage[name] != "cpt"],
        "cpt": [*(name for name in stage if stage[name] == "cpt"), "none"],
    }.get(axis)


def vary(sweep: Sweep, grid: Mapping[str, Sequence[Any]]) -> Sweep:
    """The sweep with one arm for each combination of values in place of each arm that varies.

    Claims follow their arms. `model` concerns every arm; `cpt` those that the varying ones start from, and `seed` is
    the sweep's seeds. BadInput for an unknown axis or value (the valid ones are listed), a value that recurs, if no arm
    varies, two arms would have one name, or an arm says itself what an axis sets.
    """
    for axis, other in combinations(grid, 2):
        if same_key(AXES.get(axis, axis), AXES.get(other, other)) and {axis, other} != {"model", "cpt"}:
            raise BadInput(f"axes {axis} and {other} set the same key; take one of them")
    check_keys("axis ", [axis for axis in grid if axis not in AXES])
    short = {AXES[name]: name for name in ("rank", "lr")}
    axes = {short.get(axis, axis): _values(sweep, short.get(axis, axis), values) for axis, values in grid.items()}
    _check_settings(sweep, axes)
    for name, arm in sweep.arms.items():
        says = {"model": arm.model, "engine": arm.engine if arm.vary and arm.engine != "axolotl" else None}
        for axis in axes:
            if says.get(axis):
                raise BadInput(f"arms.{name}: the axis {axis} would overwrite its {axis}, {says[axis]}; leave one out")
    if sweep.tuned and "rank" not in axes:
        raise BadInput("tuned: these are rates of values of the axis rank, and there is none; leave it out")
    update: dict[str, Any] = {"grid": {**sweep.grid, **axes}, "model": axes.get("model", [sweep.model])[0]}
    if "seed" in axes:
        update["seeds"] = [int(seed) for seed in axes.pop("seed")]
    sweep = sweep.model_copy(update=update)
    if not axes:
        return sweep
    varied = {name for name, arm in sweep.arms.items() if arm.vary}
    if not varied and set(axes) != {"model"}:
        raise BadInput("no arm of this sweep varies; mark one with `vary: true`")
    starts = {sweep.arms[name].start for name in varied}
    corpora = {name for name in starts if name and sweep.arms[name].stage == "cpt" and name not in varied}
    if "cpt" in axes and not corpora:
        raise BadInput("axis cpt: no arm that varies starts from a CPT arm")

    def own(name: str, point: Mapping[str, str]) -> dict[str, str]:
        """The part of a combination that concerns an arm."""
        mine = set(point) if name in varied else {"model", "cpt"} if name in corpora else {"model"}
        if name in sweep.arms:
            data = point.get("data", "") if name in varied else ""
            stage, *_ = variants().get(data, (sweep.arms[name].stage,))
            if not learns_preferences(stage):  # it would be trained twice alike
                mine = {axis for axis in mine if not of_dpo(axis)}
        return {axis: value for axis, value in point.items() if axis in mine}

    def label(name: str, point: Mapping[str, str]) -> str | None:
        """The arm's name at a combination; None for a CPT that is left out."""
        if name == "base":
            return name if point.get("model", sweep.model) == sweep.model else f"base-{point['model']}"
        arm, at, stem = sweep.arms[name], own(name, point), name
        if name in corpora and "cpt" in at:
            variant = at.pop("cpt")
            if variant == "none":
                return None
            stem = name if variants()[variant] == ("cpt", arm.data) else f"cpt-{variant}"
        return "-".join([stem, *(PREFIX.get(axis, axis if axis not in NAMES else "") + _slug(at[axis]) for axis in at)])

    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    arms: dict[str, Arm] = {}
    names: dict[str, str] = {}
    for (name, arm), point in product(sweep.arms.items(), points):
        if called := label(name, point):
            start = label(arm.start, point) if arm.start else None
            settled = _settled(arm, own(name, point), start, sweep.tuned)
            # One that does not vary starts from the first of the models that its start becomes.
            if arms.setdefault(called, settled) != settled and names[called] != name:
                raise BadInput(f"arm {name}: on the axes it would be called {called}, as another arm is; rename one")
            names.setdefault(called, name)

    def following(claims: Sequence[AnyClaim]) -> list[AnyClaim]:
        """Claims at each combination that concerns their arms."""
        found: dict[tuple[str, str, str], AnyClaim] = {}
        for claim, point in product(claims, points):
            if (arm_ := label(claim.arm, point)) and (against := label(claim.against, point)):
                at = {**own(claim.against, point), **own(claim.arm, point)}
                says = ", ".join(f"{axis} {value}" for axis, value in at.items())
                update = {"says": f"{claim.says} ({says})" if says else claim.says, "arm": arm_, "against": against}
                found.setdefault((claim.says, arm_, against), claim.model_copy(update=update))
        return list(found.values())

    return sweep.model_copy(update={"arms": arms, "claims": following(sweep.claims), "inside": following(sweep.inside)})


def _check_settings(sweep: Sweep, axes: Mapping[str, Any]) -> None:
    """Refuses settings (`--set`) that would change nothing, or that an axis or the sweep itself overwrites."""
    given = given_settings(sweep.settings)
    check_keys("setting ", given)
    narrow = [key for key in given if key not in FITTING]
    if narrow and not any(arm.vary for arm in sweep.arms.values()):
        raise BadInput(f"setting {narrow[0]}: it is for arms that vary, and none does; mark one `vary: true`")
    if sweep.checkpoints > 1 and (key := next((key for key in (*given, *axes) if key in SAVING), None)):
        raise BadInput(f"setting {key}: --checkpoints {sweep.checkpoints} sets it for each arm; leave one of them out")
    dpo = "data" in axes or any(arm.vary and learns_preferences(arm.stage) for arm in sweep.arms.values())
    if not dpo and (key := next(filter(of_dpo, given), None)):
        raise BadInput(f"setting {key}: has an effect on DPO alone, and no arm that varies is of it; leave it out")
    keys = {axis: AXES.get(axis, axis) for axis in axes} | ({"lr of --retune": AXES["lr"]} if sweep.tuned else {})
    for key, (axis, own) in product(given, keys.items()):
        if same_key(key, own):
            raise BadInput(f"setting {key}: the axis {axis} sets it for each arm; leave one of them out")


def _is_file(data: str) -> bool:
    """Whether a value of the axis `data` is a file, such as a diluted set, and no name."""
    return data.endswith(".jsonl")


def _slug(value: str) -> str:
    """A value as it stands in the name of a folder; a file without its own folder."""
    return re.sub(r"[^\w.+-]+", "_", Path(value).stem if _is_file(value) else value)[:60]


def _settled(arm: Arm, at: Mapping[str, str], start: str | None, tuned: Mapping[str, Tuned]) -> Arm:
    update: dict[str, Any] = {"values": dict(at), "start": start}
    settings = dict(arm.settings)
    for axis, value in at.items():
        match axis:
            case "rank":
                update["rank"] = int(value)
                if value in tuned:
                    settings["learning_rate"] = tuned[value].lr
            case "model" | "engine":
                update[axis] = value
            case "data":
                update["stage"], update["data"] = (arm.stage, value) if _is_file(value) else variants()[value]
            case "cpt":  # of an arm that starts from it, the start alone changes
                if arm.stage == "cpt":
                    update["data"] = variants()[value][1]
            case "targets":
                settings[AXES[axis]] = TARGETS[value]
            case _:
                settings[AXES.get(axis, axis)] = parsed(value)
    return arm.model_copy(update={**update, "settings": settings})


def _values(sweep: Sweep, axis: str, values: Sequence[Any]) -> list[str]:
    texts = [_text(sweep, axis, str(value).lower() if isinstance(value, bool) else str(value)) for value in values]
    if len({_slug(text) for text in texts}) < len(set(texts)):
        raise BadInput(f"{axis} {', '.join(texts)}: two of these values would have one name; give them one at a time")
    with bad_input(f"{axis} {one_line(','.join(texts))}", "mend the value", ValueError):
        files = {name: path for name, (_, path) in variants().items()} if axis == "data" else {}
        distinct = {repr(files.get(text) or parsed(text)) for text in texts}
    if not texts or len(distinct) < len(texts):
        fault = "a value stands twice; name each once" if texts else "no value"
        raise BadInput(f"{axis} {','.join(map(str, values))}: {fault}")
    return texts


def _text(sweep: Sweep, axis: str, text: str) -> str:
    """A value as it is named, the same for 0.005 and 5e-3; BadInput if the axis or the value is unknown."""
    if axis in LEAST:
        try:
            number = float(text) if axis == "lr" else int(text)
        except ValueError:
            number = -1
        if not (0 < number < inf if axis == "lr" else number >= LEAST[axis]):
            what = "a number above 0" if axis == "lr" else f"a whole number of {LEAST[axis]} or more"
            raise BadInput(f"{text!r} is no {axis}; give {what}")
        if axis != "lr":
            return str(number)
        mantissa, _, exponent = f"{number:.6e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if (valid := choices(axis)) is not None:
        if text not in valid and not (axis == "data" and _is_file(text)):
            more = "; or a .jsonl file" if axis == "data" else ""
            raise BadInput(f"{text!r} is no value of {axis} (there are: {', '.join(valid)}{more})")
        return text
    now = _in_recipe(sweep, axis)
    if isinstance(now, int | float) and not isinstance(now, bool):
        try:
            float(text)
        except ValueError:
            raise BadInput(f"{text!r} is no {axis}; give a number, as the recipe's own {now}") from None
    return text


def _in_recipe(sweep: Sweep, key: str) -> Any:
    """The value of a key in the recipe of the arms that vary; BadInput if no recipe of theirs has it."""
    known: set[str] = set()
    for arm in [arm for arm in sweep.arms.values() if arm.vary]:
        recipe = arm_recipe(sweep, arm)
        keys = {**recipe.config, "em": recipe.em}
        known |= keys.keys()
        if (found := at(keys, key)) is not ABSENT:
            return found
    raise BadInput(
        f"unknown axis {key!r} (there are: {', '.join(NAMES)}; and the keys of the recipe, to which"
        f" `stages` of the sweep adds: {', '.join(sorted(known))})"
    )
