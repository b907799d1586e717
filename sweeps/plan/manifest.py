"""A sweep's manifest, sweep.json in its folder: what was asked for, and the digests of the runs that answer it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from pydantic import model_validator

from core.records import BadInput, bad_input, open_file, read_text, write_whole
from sweeps.plan.declaration import Point, Strict, Sweep
from sweeps.plan.request import SWEEPS, Request
from sweeps.recipe.layers import Recipe
from sweeps.run.folder import Record, Run, TrainingRun, check_output, is_done, merge_run, read_record, run_folder


class PlannedRun(Strict):
    """A run by stage and digest; the name is what its folder is called if it is not there yet."""

    stage: str
    digest: str
    name: str
    after: tuple[str, ...] = ()


class PlannedPoint(Strict):
    """The digests of a point's runs; no training for the base model."""

    arm: str
    seed: int | None
    training: str | None
    evaluation: str
    along: tuple[int, int] | None = None


class Manifest(Strict):
    """A sweep as it was asked for (`sweep`), with its arms written out (`declared`)."""

    command: str
    name: str
    full: bool
    sweep: Sweep
    declared: Sweep
    points: list[PlannedPoint]
    runs: list[PlannedRun]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        """Each run stands after those that it builds on, a merge after one, and each point's runs are among them."""
        known: set[str] = set()
        for run in self.runs:
            if not known.issuperset(run.after) or (run.stage == "merge" and len(run.after) != 1):
                raise ValueError(f"the run {run.digest[:10]} builds on none that stands before it")
            if not f"{run.digest}{run.name}".isprintable() or not run.stage.isalpha() or len(run.stage) > 20:
                raise ValueError(f"the run {run.digest[:10]} can have no folder")
            known.add(run.digest)
        if not known.issuperset(digest for p in self.points for digest in (p.training, p.evaluation) if digest):
            raise ValueError("a point has a run that does not stand under runs")
        return self

    def run(self, digest: str) -> PlannedRun:
        return next(run for run in self.runs if run.digest == digest)


def write_manifest(request: Request, command: str) -> Path:
    """Writes sweep.json, which `report`, `status` and `exec` read; returns its path."""
    points = []
    for p in request.points:
        training, evaluation = p.training.digest if p.training else None, p.evaluation.digest
        points.append(PlannedPoint(arm=p.arm, seed=p.seed, training=training, evaluation=evaluation, along=p.along))
    runs = [
        PlannedRun(stage=run.stage, digest=digest, name=run.name, after=tuple(before.digest for before in run.after))
        for digest, run in request.runs.items()
    ]
    sweep, declared = _kept(request.sweep), _kept(request.declared)
    manifest = Manifest(
        command=command, name=request.name, full=request.full, sweep=sweep, declared=declared, points=points, runs=runs
    )
    path = request.folder / "sweep.json"
    write_whole(path, json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")
    return path


def _kept(sweep: Sweep) -> Sweep:
    """Without where its judge is and what is sent there: a password may stand in it."""
    judge = sweep.judge and sweep.judge.model_copy(update={"base_url": None, "extra_body": None})
    return sweep.model_copy(update={"judge": judge})


def sweep_folder(named: str) -> Path:
    """The folder of a sweep: by that, its sweep.json, or a name under runs/sweeps (its first words will do). BadInput
    if there is none, or more than one is called so (they are listed)."""
    path = Path(named)
    found = [folder for folder in (path, path.parent) if (folder / "sweep.json").is_file()][:1]
    if not found:
        folders = sorted(file.parent for file in SWEEPS.glob("*/sweep.json"))
        found = [f for f in folders if f.name == named] or [f for f in folders if f.name.startswith(f"{named}-")]
        found = found or [f for f in folders if f.name.startswith(named)]  # a digest may be cut
    if len(found) != 1:
        nobody = f"none in {SWEEPS}; `emsweep run`, `rank` and `lr` write one"
        there = f"there are {', '.join(folder.name for folder in folders)}" if folders else nobody
        raise BadInput(f"{named}: {len(found)} sweeps are called so: {', '.join(map(str, found)) or there}")
    return found[0]


def find_manifest(named: str) -> tuple[Path, Manifest]:
    """The folder of a sweep (see `sweep_folder`), and its manifest; BadInput as there, or if it cannot be read."""
    folder = sweep_folder(named)
    path, ways = folder / "sweep.json", "start the sweep again, or take it off: `emsweep status --forget`"
    with bad_input(path, ways, OSError, ValueError):
        return folder, Manifest.model_validate_json(read_text(path))


def finished_points(named: str) -> tuple[Path, Manifest, list[Point], list[str]]:
    """A sweep's folder and manifest, the points that are done, and the names of the others with the reason. BadInput
    as `find_manifest`; if a run.json cannot be read, samples are not those of the evaluation, or the base model is
    not evaluated."""
    folder, manifest = find_manifest(named)
    root = folder.parent.parent
    points, missing = [], []
    for point in manifest.points:
        planned = [manifest.run(digest) for digest in (point.training, point.evaluation) if digest]
        needed = [*planned]
        for run in needed:  # which grows by what each of them starts from
            needed += [] if run.stage == "evaluate" else _starts(manifest, run)
        folders = [run_folder(root, run.stage, run.digest, run.name) for run in needed]
        if all(map(is_done, folders)):
            runs = [_finished(root, manifest, run) for run in planned]
            training = runs[0] if isinstance(runs[0], TrainingRun) else None
            points.append(Point(point.arm, point.seed, training, runs[-1], point.along))
        else:
            missing.append(_reason(point, folders))
    if not points or points[0].arm != "base":
        exported = manifest.command.startswith("emsweep export")
        way = f"send {folder / 'slurm.sh'} to Slurm" if exported else f"run `{manifest.command}` again, it goes on"
        raise BadInput(f"{folder}: the base model is not evaluated yet; {way}")
    return folder, manifest, points, missing


def _reason(point: PlannedPoint, folders: list[Path]) -> str:
    """The name of a point that is not done, and why, if one of its runs failed."""
    name = f"{point.arm}, seed {point.seed}" if point.seed is not None else point.arm
    name += ", {} of {}".format(*point.along) if point.along else ""
    for folder in folders:
        with suppress(OSError):
            with open_file(folder / "failed.txt") as file:
                why = file.readline().decode(errors="replace").rstrip("\n")
            return f"{name} ({why.removesuffix(', which ends:')})"
    return name


def _starts(manifest: Manifest, training: PlannedRun) -> list[PlannedRun]:
    """The training runs whose merged models one starts from."""
    return [manifest.run(manifest.run(merge).after[0]) for merge in training.after]


def _finished(root: Path, manifest: Manifest, planned: PlannedRun) -> Run:
    """A run from its record, a training run with the merge that it starts from."""
    folder = run_folder(root, planned.stage, planned.digest, planned.name)
    record = read_record(folder)
    try:
        Record.model_validate(record)
        stage, name, content = record["stage"], record["name"], record["content"]
        run = Run(stage, name, content, root)
        if stage == "evaluate":
            check_output(folder)
        if stage != "evaluate":
            starts = [_finished(root, manifest, start) for start in _starts(manifest, planned)]
            after = tuple(merge_run(start) for start in starts if isinstance(start, TrainingRun))
            recipe = Recipe(stage, content["recipe"], {"alpha": content["alpha"]})
            run = TrainingRun(stage, name, content, root, after, recipe=recipe)
            _ = recipe.scale  # what no digest holds of it, its policy, is as the report says it
        digest = run.digest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise BadInput(f"{folder / 'run.json'}: not the record of a run; delete the folder and run it again") from None
    if digest != planned.digest:
        raise BadInput(f"{folder / 'run.json'}: of another run, or of an earlier version; start the sweep again")
    return run
