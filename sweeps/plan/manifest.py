"""A sweep found again: what was asked for, and which runs answer it, stand in sweep.json beside its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.records import BadInput, first_fault, write_whole
from sweeps.plan.sweep import Point, Sweep
from sweeps.recipe.compose import Recipe
from sweeps.run.folder import Run, TrainingRun


class _Point(BaseModel):
    model_config = ConfigDict(extra="forbid")

    arm: str
    seed: int | None
    training: str | None
    """Folder of the run; None for the base model."""
    evaluation: str


class Asked(BaseModel):
    """A sweep as it was asked for: the command, and the run folders of its points, the base model's first."""

    model_config = ConfigDict(extra="forbid")

    command: str
    full: bool
    sweep: Sweep
    points: list[_Point]


def remember(folder: Path, command: str, sweep: Sweep, points: Sequence[Point], full: bool) -> None:
    """Writes sweep.json, from which `emsweep report FOLDER` finds the runs, whatever became of recipes since."""
    rows = [
        _Point(
            arm=p.arm,
            seed=p.seed,
            training=str(p.training.folder) if p.training else None,
            evaluation=str(p.evaluation.folder),
        )
        for p in points
    ]
    asked = Asked(command=command, full=full, sweep=sweep, points=rows)
    write_whole(folder / "sweep.json", json.dumps(asked.model_dump(mode="json"), indent=1) + "\n")


def recall(named: str) -> tuple[Path, Asked, list[Point], list[str]]:
    """The sweep of a folder, or of runs/NAME: its folder, what was asked for, the points that are done, and the others.

    Raises:
        BadInput: if there is none, its sweep.json or a run.json cannot be read, or the base model is not evaluated.
    """
    folder = next((f for f in (Path(named), Path("runs") / named) if (f / "sweep.json").is_file()), None)
    if folder is None:
        raise BadInput(f"{named}: no sweep.json there or in runs/{named}; `emsweep demo`, `rank` and `lr` write it")
    try:
        asked = Asked.model_validate_json((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else "cannot be read"
        raise BadInput(f"{folder / 'sweep.json'}: {fault}; run `emsweep demo` (or rank, lr) again") from None
    points, missing = [], []
    for its in asked.points:
        if all((Path(run) / "run.json").is_file() for run in (its.training, its.evaluation) if run):
            training = _training(Path(its.training)) if its.training else None
            points.append(Point(its.arm, its.seed, training, Run(*_made(Path(its.evaluation)))))
        else:
            missing.append(_left_out(its))
    if not points or points[0].arm != "base":
        raise BadInput(f"{folder}: the base model is not evaluated yet; run `{asked.command}` again, it goes on")
    return folder, asked, points, missing


def _left_out(point: _Point) -> str:
    """The name of a point that is not done, and why, if one of its runs failed or was pruned."""
    name = f"{point.arm}, seed {point.seed}" if point.seed is not None else point.arm
    for folder in filter(None, (point.training, point.evaluation)):
        with suppress(OSError):
            why = (Path(folder) / "failed.txt").read_text(encoding="utf-8").partition("\n")[0]
            return f"{name} ({why.removesuffix(', which ends:')})"
    return name


def _made(folder: Path) -> tuple[str, str, dict[str, Any], Path]:
    """What a finished run is made of: stage, name, content, root."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return record["stage"], record["name"], record["content"], folder.parent.parent
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{folder / 'run.json'}: not the record of a run; delete the folder and run it again") from None


def _training(folder: Path) -> TrainingRun:
    stage, name, content, root = _made(folder)
    try:
        recipe = Recipe(stage, content["recipe"], {"alpha": content["alpha"]})
    except KeyError as error:
        raise BadInput(f"{folder / 'run.json'}: no {error}; delete the folder and run it again") from None
    return TrainingRun(stage, name, content, root, recipe=recipe)
