"""Declared sweeps: the arms of recipes/sweeps/*.yaml, the runs they stand for, and the claims they test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from core.records import BadInput
from eval.judge.settings import JudgeSettings
from eval.stats.measures import MeasureName
from sweeps.recipe.compose import RECIPES, compose, load_layer
from sweeps.recipe.precision import cpu_dtype
from sweeps.run.evaluate import evaluation_run, of_checkpoint
from sweeps.run.folder import MergeRun, Run, TrainingRun, merge_run
from sweeps.run.train import training_run


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
    """Whether it is trained once for each value of the grid."""
    model: str | None = None
    """The sweep's if not given."""
    engine: str = "axolotl"
    values: dict[str, str] = {}
    """Where it stands on the axes of the grid."""


class Claim(_Strict):
    """A difference that is expected to be above 0; the report says whether its interval is."""

    says: str
    measure: MeasureName
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


class Tuned(_Strict):
    """A learning rate that was searched for, and the 95 % interval of the edge that it stands for."""

    lr: float
    low: float
    high: float


class Sweep(_Strict):
    """A declared sweep."""

    model: str
    hardware: str
    tasks: list[str]
    evaluation: Evaluation = Evaluation()
    seeds: list[int]
    """The first seed is the small sweep's; --full trains all, and so does a grid with the axis `seed`."""
    grid: dict[str, list[Any]] = {}
    """The values of each axis (sweeps/axes.py)."""
    stages: dict[str, dict[str, Any]]
    """Recipe keys per stage, shared by its arms."""
    arms: dict[str, Arm]
    claims: list[Claim]
    settings: list[str] = []
    """`key=value` of `--set`, for the arms that vary."""
    judge: JudgeSettings | None = None
    """Scores the free-form answers when all runs are done; without it they are there to be read."""
    tuned: dict[str, Tuned] = {}
    """Learning rate of the arms that vary, by rank (`emsweep rank --retune`)."""


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
    for arm in [name for claim in sweep.claims for name in (claim.arm, claim.against)]:
        if arm not in sweep.arms and arm != "base":
            raise BadInput(f"{path}: arm {arm!r} is not declared (there are: base, {', '.join(sweep.arms)})")
    before: list[str] = []
    for name, own in sweep.arms.items():
        if own.start and own.start not in before:
            raise BadInput(f"{path}: arm {name} starts from {own.start!r}, which no arm before it is called")
        if own.start and sweep.arms[own.start].full and not own.full:
            raise BadInput(f"{path}: arm {name} starts from {own.start}, which is `full`; make both `full`, or none")
        before.append(name)
    return sweep


def plan(sweep: Sweep, full: bool, root: Path = Path("runs")) -> list[Point]:
    """All points of a sweep, the base models first, in an order in which they can be executed.

    What has the same content is the same run, whatever its arms are called. A CPT that other arms start from is
    evaluated as the merged model that they start from.
    """
    settings = sweep.evaluation.model_dump()
    if load_layer("hardware", sweep.hardware)["em"]["memory_gib"] is None:
        settings["dtype"] = cpu_dtype()
    bases: dict[str, Run] = {}
    points: list[Point] = []
    made: dict[str, Any] = {}
    for model in dict.fromkeys([sweep.model, *(arm.model or sweep.model for arm in sweep.arms.values())]):
        run = evaluation_run("base", model, sweep.tasks, **settings, root=root)
        bases[model] = replace(run, about={"model": model, "hardware": sweep.hardware})
        points.append(Point("base" if model == sweep.model else f"base-{model}", None, None, bases[model]))
    starts = {arm.start for arm in sweep.arms.values()}
    for seed in sweep.seeds if full or "seed" in sweep.grid else sweep.seeds[:1]:
        merges: dict[str, MergeRun] = {}
        for name, arm in sweep.arms.items():
            if arm.full and not full:
                continue
            keys = {"seed": seed, **sweep.stages.get(arm.stage, {}), **arm.settings, "datasets.0.path": arm.data}
            texts = [*(f"{key}={value}" for key, value in keys.items()), *(sweep.settings if arm.vary else [])]
            recipe = compose(arm.stage, arm.model or sweep.model, sweep.hardware, texts, arm.rank, engine=arm.engine)
            called = f"{name}-seed{seed}"
            trained = training_run(called, recipe, start=merges[arm.start] if arm.start else None, root=root)
            trained = made.setdefault(trained.digest, trained)
            if name in starts:
                merged = merge_run(trained)
                merges[name] = made.setdefault(merged.digest, merged)
            checkpoint_run = merges.get(name, trained)
            evaluation = of_checkpoint(bases[arm.model or sweep.model], checkpoint_run, called)
            points.append(Point(name, seed, trained, made.setdefault(evaluation.digest, evaluation)))
    return points
