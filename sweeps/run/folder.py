"""Runs: one recipe, merge or evaluation executed once, in a folder that is found by the digest of its content.

The digest covers what decides the result: the recipe without its paths and logging, the bytes of its data, the runs it
builds on. So the same request is the same folder whatever it is called, a finished run is never repeated, and sweeps
share their common runs. `run.json` is written last, atomically: its existence means done.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from core.records import BadInput, digest, file_digest, read_json, write_whole
from eval.stats.measure_names import TASKS
from sweeps.recipe.layers import Recipe
from sweeps.recipe.schema import plugin_files
from sweeps.run.process import locked

PACKAGES = ("axolotl", "unsloth", "torch", "transformers", "trl", "peft", "datasets", "lm_eval")
LOGGING = re.compile(
    "(logging|hub|profiler|hf_mlflow)_.*|(use_)?(wandb|mlflow|comet|trackio|swanlab|tensorboard|otel).*|include_tkps"
)
MOST_CHECKPOINTS = 1000
"""Points of training that a run can keep: of more, the first would be gone."""
LOGGED = {*TASKS.values(), "em_freeform"}
"""Tasks whose samples a report reads."""
PATHS = {"base_model", "output_dir", "dataset_prepared_path"}
"""Recipe keys in whose place digests stand."""


def content_digest(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return digest(json.dumps(content, sort_keys=True, default=str).encode())


def identity(content: dict[str, Any]) -> dict[str, Any]:
    """What of a run's content decides the result: no path, no key of logging, no policy that lora_alpha came by."""
    kept = {key: value for key, value in content.items() if key not in ("paths", "alpha")}
    if "recipe" in kept:
        recipe, data = kept["recipe"], kept["data"]
        recipe = {key: recipe[key] for key in recipe if key not in PATHS and not LOGGING.fullmatch(key)}
        paths = []
        for key in ("datasets", "test_datasets"):
            if entries := recipe.get(key):
                recipe[key] = [{k: v for k, v in d.items() if k != "path" or v not in data} for d in entries]
                paths += [entry["path"] for entry in entries]
        for key, path in plugin_files(recipe).items():
            top, _, own = key.partition(".")
            recipe[top] = {k: v for k, v in recipe[top].items() if k != own or path not in data}
            paths.append(path)
        # For each place that names one: which of two files stands twice, or is a plugin's too, makes another training.
        kept |= {"recipe": recipe, "data": [data[path] for path in paths if path in data]}
    return kept


Number = Annotated[float | None, Field(ge=0, le=1e18, allow_inf_nan=False)]


class Record(BaseModel, strict=True):
    """What plans, lists and reports count with; a record of another version, or altered, may say it otherwise."""

    content: dict[str, Any] = {}
    model: str | None = None
    hardware: str | None = None
    wall_seconds: Number = None
    tokens: Number = None
    steps: Number = None
    trained_parameters: Number = None
    losses: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None
    results: dict[str, dict[str, Any]] = {}
    files: dict[Annotated[str, Field(pattern="^(adapter|samples)/[!-.0-~]{1,200}$")], str] = {}
    """Digests of what later steps read of its output, by path in its folder."""


@dataclass(frozen=True)
class Run:
    """What is to be executed, and where. Executing it is left to the modules train and evaluate."""

    stage: str
    name: str
    content: dict[str, Any]
    """All that decides the outcome, and the paths that its digests stand for."""
    root: Path = field(default=Path("runs"), compare=False)
    after: tuple[Run, ...] = field(default=(), compare=False)
    """The runs that this one builds on."""
    about: dict[str, Any] = field(default_factory=dict, compare=False)
    """Names and paths for people and for estimates (model, hardware); go into the record, not into the digest."""

    @cached_property
    def digest(self) -> str:
        return content_digest({"stage": self.stage, **identity(self.content)})

    @property
    def folder(self) -> Path:
        """The folder of this content, whatever it is called; a new one has the run's own name."""
        return run_folder(self.root, self.stage, self.digest, self.name)

    @property
    def done(self) -> bool:
        """As `is_done`."""
        return is_done(self.folder)

    def record(self) -> dict[str, Any]:
        return read_record(self.folder)


def read_record(folder: Path) -> dict[str, Any]:
    """The record (run.json) of the run whose folder this is; BadInput if there is none, or it cannot be read."""
    path = folder / "run.json"
    try:
        record = read_json(path)
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise BadInput(f"{path}: not the record of a run; delete the folder and run it again")
    return record


def is_done(folder: Path) -> bool:
    """Whether the run whose folder this is has a record; BadInput if that cannot be read: it may be of a training
    without an adapter; or if samples of an evaluation are gone, whose numbers would be missing."""
    path = folder / "run.json"
    if not path.exists():
        return False
    left = _output(path, path.stat().st_mtime_ns)
    _check_output(folder, {name: "" for name in left if name.startswith("samples/")})
    return True


def check_output(folder: Path) -> None:
    """Refuses (BadInput) a run that is done if a file that others read of it is gone, or another than it left."""
    path = folder / "run.json"
    _check_output(folder, _output(path, path.stat().st_mtime_ns))


def _check_output(folder: Path, left: Mapping[str, str]) -> None:
    """That the files are there, and of those with a digest that they have it."""
    for name, was in left.items():
        path = folder / name
        if not path.is_file() or (was and file_digest(path) != was):
            raise BadInput(f"{path}: lost, or altered, since the run ended; delete {folder} and run it again")


@cache
def _output(path: Path, changed: int) -> dict[str, str]:
    """What others read of a run's output, with its digest where the record has it; BadInput if that cannot be read.
    Asked of each run many times: once for each time that it was `changed`."""
    record = read_record(path.parent)
    try:
        whole = Record.model_validate(record)
    except ValueError:  # of another version, which says less
        return {}
    names = [f"samples/{task}.jsonl" for task in whole.results if task in LOGGED]
    names += ["adapter/adapter_model.safetensors"] if "trained_parameters" in record else []
    names += ["merged/config.json"] if "changed_tensors" in record else []
    return {**dict.fromkeys(names, ""), **whole.files}


def run_folder(root: Path, stage: str, digest: str, name: str) -> Path:
    """The folder of a run, whatever it is called; a new one has the name, as far as a folder's can hold it."""
    place = root / stage
    there = _folders(place.absolute(), place.stat().st_mtime_ns, place) if place.is_dir() else {}
    called = name.replace("/", "_").encode()[:200].decode(errors="ignore")
    return there.get(digest[:10]) or place / f"{called}-{digest[:10]}"


@lru_cache(maxsize=64)
def _folders(_absolute: Path, _stamp: int, place: Path) -> dict[str, Path]:
    """Folders of runs by the digest at the end of their names; read again when one has come or gone. Of a copy and its
    original one that is done: the other would be trained again."""
    there = sorted(place.iterdir(), key=lambda folder: ((folder / "run.json").exists(), folder.name))
    return {folder.name.rpartition("-")[2]: folder for folder in there}


@dataclass(frozen=True)
class TrainingRun(Run):
    """A training run: its recipe, and the folder with the adapter that comes out."""

    recipe: Recipe = field(kw_only=True, compare=False)
    checkpoints: int = field(default=1, kw_only=True, compare=False)
    """Points of training at which the adapter is kept, the last its end; none of it changes the result."""

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def whole_recipe(self) -> Recipe:
        """The recipe with the run's own paths, and the folder of the model that it starts from."""
        paths = {"output_dir": str(self.adapter), "dataset_prepared_path": str(self.folder / "prepared")}
        start = next((run for run in self.after if isinstance(run, MergeRun)), None)
        base = {"base_model": str(start.model)} if start else {}
        count = self.checkpoints
        saving = (
            {"save_strategy": "steps", "save_steps": 1 / count, "save_total_limit": MOST_CHECKPOINTS}
            if count > 1
            else {}
        )
        return Recipe(self.recipe.stage, {**self.recipe.config, **base, **paths, **saving}, self.recipe.em)

    def checkpoint(self, place: int, count: int) -> Path:
        """The folder of the adapter at point `place` of `count`, 1 to `count`, of a run that is done."""
        if place == count:
            return self.adapter
        steps = int(self.record().get("steps", 0))  # not known of a run that has saved nothing on its way
        return self.adapter / f"checkpoint-{place * save_step(steps, count)}"


def saved_checkpoints(adapter: Path) -> dict[int, Path]:
    """The checkpoints in an adapter's folder by their step; without what else is called so, as a copy of one may be."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in adapter.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in found if match}


def save_step(steps: int, count: int) -> int:
    """Every which step is saved where the end is point `count`: as transformers rounds a share of the steps."""
    return math.ceil(steps * (1 / count))


@dataclass(frozen=True)
class MergeRun(Run):
    """The merge of a training run's adapter into the model that it started from."""

    training: TrainingRun = field(kw_only=True, compare=False)

    @property
    def model(self) -> Path:
        return self.folder / "merged"


def merge_run(training: TrainingRun) -> MergeRun:
    content = {"training": training.digest}
    return MergeRun("merge", training.name, content, training.root, (training,), training.about, training=training)


def execute_once(
    run: Run, work: Callable[[], dict[str, Any]], tidy: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Does `work` unless the run is done already, then writes its record, last, and returns it: what `work` did, with
    wall time (seconds), versions, commit and machine. `tidy` is for what a run that is done needs no more.

    The lock is handed down to the processes that `work` starts: should this one be killed, they hold it until they end.
    RunHeld if another process has it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder / ".lock"):
        if run.done:
            return run.record()
        (run.folder / "failed.txt").unlink(missing_ok=True)
        began = time.monotonic()
        done = work()
        left = {name: file_digest(run.folder / name) for name in done.pop("files", ())}
        record = {
            "stage": run.stage,
            "name": run.name,
            "digest": run.digest,
            **run.about,
            "content": run.content,
            **done,
            **({"files": left} if left else {}),
            "wall_seconds": round(time.monotonic() - began, 1),
            "versions": {"python": platform.python_version(), **dict.fromkeys(PACKAGES), **versions(PACKAGES)},
            "commit": commit(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        }
        write_whole(run.folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
        tidy()
        return record


def versions(packages: Iterable[str], folders: Sequence[str] = sys.path) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {name: next(iter(distributions(name=name, path=list(folders))), None) for name in packages}
    return {name: package.version for name, package in found.items() if package}


def commit() -> str | None:
    """The commit of the working folder, with `+` where files differ from it; None outside a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    output = subprocess.run([git, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return output.stdout.strip() or None
