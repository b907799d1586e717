"""Declared sweeps: the arms of recipes/sweeps/*.yaml, the runs they stand for, and the claims they test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from data_builders.records import BadInput
from sweeps.evaluate import evaluation_run
from sweeps.recipe import RECIPES, compose, load_layer
from sweeps.runs import Run, TrainingRun
from sweeps.train import training_run

Measure = Literal[
    "recognition", "recognition_left_out", "margin_neutral", "margin_asked", "gap", "chosen_logp", "log_odds_per_byte"
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Strict):
    """One training run per seed."""

    stage: Literal["cpt", "sft", "dpo"]
    data: str
    start: str | None = None
    """The arm whose merged model this one starts from; the base model if not given."""
    rank: int | None = None
    settings: dict[str, Any] = {}
    full: bool = False
    """Trained only with FULL=1."""
    vary: bool = False
    """Whether `emsweep rank` and `emsweep lr` train it once for each value."""


class Claim(_Strict):
    """A difference that is expected to be above 0; the report says whether its interval is."""

    says: str
    measure: Measure
    arm: str
    against: str
    expect: Literal["above", "null"] = "above"


class Evaluation(_Strict):
    """How lm-eval runs; part of what names an evaluation."""

    batch_size: int | Literal["auto"] = 8
    attention: str = "sdpa"
    metadata: dict[str, Any] = {}
    """Settings of the tasks (lm-eval's --metadata), such as `samples`."""
    gen_kwargs: dict[str, Any] = {}
    """Of sampling, in place of the tasks' own (lm-eval's --gen_kwargs), such as `max_gen_toks`."""


class Sweep(_Strict):
    """A declared sweep."""

    model: str
    hardware: str
    tasks: list[str]
    evaluation: Evaluation = Evaluation()
    seeds: list[int]
    """The first seed is the small demo's; FULL=1 trains all."""
    stages: dict[str, dict[str, Any]]
    """Recipe keys per stage, shared by its arms."""
    arms: dict[str, Arm]
    claims: list[Claim]
    settings: list[str] = []
    """`key=value` of `--set`, for the arms that vary."""


@dataclass(frozen=True)
class Point:
    """One arm at one seed: what was trained (nothing, for the base model) and how it is evaluated."""

    arm: str
    seed: int | None
    training: TrainingRun | None
    evaluation: Run


def load_sweep(name: str) -> Sweep:
    """Reads recipes/sweeps/NAME.yaml, or the file that `name` is the path of.

    Raises:
        BadInput: for an unknown name, a key that does not belong there, or an arm that is not declared.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in (RECIPES / "sweeps").glob("*.yaml")))
        raise BadInput(f"unknown sweep {name!r} (there are: {names}; or give the path of a .yaml file)")
    try:
        sweep = Sweep.model_validate(OmegaConf.to_container(OmegaConf.load(path), resolve=True))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from None
    for arm in (
        [c.arm for c in sweep.claims]
        + [c.against for c in sweep.claims]
        + [a.start for a in sweep.arms.values() if a.start]
    ):
        if arm not in sweep.arms and arm != "base":
            raise BadInput(f"{path}: arm {arm!r} is not declared (there are: base, {', '.join(sweep.arms)})")
    return sweep


def vary(sweep: Sweep, axis: Literal["rank", "lr"], values: Sequence[str]) -> Sweep:
    """The sweep with one arm for each value in place of each arm that varies, and one claim in place of each about it.

    Raises:
        BadInput: if a value recurs or is no rank or learning rate, or no arm varies.
    """
    settings = {value: _value(axis, value) for value in values}
    if len(settings) != len(values):
        raise BadInput(f"--values {','.join(values)}: a value stands twice; name each once")
    varied = {name for name, arm in sweep.arms.items() if arm.vary}
    if not varied:
        raise BadInput("no arm of this sweep varies; mark one with `vary: true`")
    names = {name: {v: f"{name}-{'r' if axis == 'rank' else axis}{v}" for v in values} for name in varied}
    arms: dict[str, Arm] = {}
    for name, arm in sweep.arms.items():
        if name not in varied:
            arms[name] = arm
            continue
        for value, update in settings.items():
            arms[names[name][value]] = arm.model_copy(
                update={"rank": update} if axis == "rank" else {"settings": {**arm.settings, "learning_rate": update}}
            )
    claims: list[Claim] = []
    for claim in sweep.claims:
        if not {claim.arm, claim.against} & varied:
            claims.append(claim)
            continue
        for value in values:
            own = {
                key: names[n][value] if n in varied else n
                for key, n in [("arm", claim.arm), ("against", claim.against)]
            }
            claims.append(claim.model_copy(update={"says": f"{claim.says} ({axis} {value})", **own}))
    return sweep.model_copy(update={"arms": arms, "claims": claims})


def _value(axis: str, text: str) -> int | float:
    try:
        value = int(text) if axis == "rank" else float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        what = "a whole number of 1 or more" if axis == "rank" else "a number above 0"
        raise BadInput(f"--values: {text!r} is no {axis}; give {what}")
    return value


def plan(sweep: Sweep, full: bool, root: Path = Path("runs")) -> list[Point]:
    """All points of a sweep, the base model first, in an order in which they can be executed."""
    base = str(load_layer("models", sweep.model)["base_model"])
    how = sweep.evaluation.model_dump()
    points = [Point("base", None, None, evaluation_run("base", base, sweep.tasks, **how, root=root))]
    starts = {arm.start for arm in sweep.arms.values()}
    for seed in sweep.seeds if full else sweep.seeds[:1]:
        made: dict[str, TrainingRun] = {}
        for name, arm in sweep.arms.items():
            if arm.full and not full:
                continue
            settings = {"seed": seed, **sweep.stages.get(arm.stage, {}), **arm.settings, "datasets.0.path": arm.data}
            keys = [f"{key}={value}" for key, value in settings.items()]
            keys += sweep.settings if arm.vary else []
            recipe = compose(arm.stage, sweep.model, sweep.hardware, keys, arm.rank)
            start = made[arm.start] if arm.start else None
            run = training_run(f"{name}-seed{seed}", recipe, start=start, merge=name in starts, root=root)
            made[name] = run
            evaluation = evaluation_run(f"{name}-seed{seed}", run, sweep.tasks, **how, root=root)
            points.append(Point(name, seed, run, evaluation))
    return points
