"""Training runs: Axolotl or Unsloth on a composed recipe, then `axolotl merge-lora` where a merged model is wanted."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest, write_whole
from sweeps.recipe.compose import Recipe
from sweeps.run.folder import RunFailed, TrainingRun, call, execute_once, tool


def training_run(
    name: str,
    recipe: Recipe,
    *,
    start: TrainingRun | None = None,
    merge: bool = False,
    root: Path = Path("runs"),
) -> TrainingRun:
    """Makes the run of a recipe; `start` is the merged run it builds on, else the recipe's base model.

    Raises:
        BadInput: if a data file or the base model is not there.
    """
    config = dict(recipe.config)
    if start is not None:
        config["base_model"] = str(start.merged)
    content: dict[str, Any] = {
        "start": start.digest if start else model_digest(config["base_model"]),
        "recipe": config,
        "engine": recipe.em.get("engine", "axolotl"),
        "gpus": recipe.em.get("gpus", 1),
        "alpha": recipe.em.get("alpha"),
        "data": {d["path"]: digest_of(Path(d["path"])) for d in config["datasets"] if is_local(d["path"])},
        "merge": merge,
    }
    about: dict[str, Any] = {key: recipe.em[key] for key in ("model", "hardware") if key in recipe.em}
    after = (start,) if start else ()
    run = TrainingRun(recipe.stage, name, content, root, after, about, recipe=recipe, merge=merge)
    paths = {"output_dir": str(run.adapter), "dataset_prepared_path": str(run.folder / "prepared")}
    return replace(run, recipe=Recipe(recipe.stage, {**config, **paths}, recipe.em))


def digest_of(path: Path) -> str:
    """`file_digest`, computed once for as long as the file stays: a sweep asks for each file at every point."""
    stat = path.stat() if path.exists() else None
    return _digest(path, (stat.st_mtime_ns, stat.st_size) if stat else None)


@lru_cache
def _digest(path: Path, _stamp: tuple[int, int] | None) -> str:
    return file_digest(path)


def is_local(path: str) -> bool:
    """Whether a data or model path names something on this machine: all but a hub id (`owner/name`) does."""
    owner, slash, name = path.partition("/")
    return (
        Path(path).exists()
        or Path(path).suffix in {".jsonl", ".json"}
        or not (slash and owner.strip(".") and name and "/" not in name)
        or owner in {"data", "models", "runs"}
    )


def model_digest(base_model: str) -> str:
    """What identifies a base model: its weights' digest if it is a local folder, else its hub id.

    Raises:
        BadInput: if it is a folder without weights, or a local path that does not exist.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        if is_local(base_model):
            raise BadInput(f"{base_model}: no such model folder; `emsweep fetch smollm2-135m` makes the CPU default")
        return base_model
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BadInput(f"{folder}: no *.safetensors in this model folder; fetch the model again")
    return "+".join(digest_of(path) for path in weights)


Check = Callable[[TrainingRun, Path], float]
"""Scores a checkpoint of a run; raises Pruned where it is not worth going on."""


def train(run: TrainingRun, check: Check | None = None) -> dict[str, Any]:
    """Executes a training run, once; a run that was cut off resumes from its newest whole checkpoint.

    With a `check`, training is cut off at every checkpoint but the last, so that the check has the memory to itself.

    Raises:
        RunFailed: if the engine fails, or the merged model equals the model it started from.
        Pruned: if the check says so.
    """
    return execute_once(run, lambda: _train(run, check))


def _train(run: TrainingRun, check: Check | None) -> dict[str, Any]:
    local = is_local(run.recipe.config["base_model"])
    recipe = run.folder / "recipe.yaml"
    write_whole(recipe, run.recipe.to_yaml())
    resumed = newest_checkpoint(run.adapter)
    weights = run.adapter / "adapter_model.safetensors"
    log = run.folder / "train.log"
    title = f"{run.stage} {run.name}"
    checks: dict[int, float] = {}
    for command in training_commands(run.recipe, recipe):
        ended = False
        while not ended:
            saved = newest_checkpoint(run.adapter)
            step = int(saved.name.rpartition("-")[2]) if saved else 0
            if check and saved and step not in checks and unfinished(saved):
                checks[step] = check(run, saved)
            until = partial(saved_after, run.adapter, step) if check else None
            ended = call(title, command, log, local, until)
    if not weights.is_file():
        raise RunFailed(f"{title}: training ended without an adapter; see {log}")
    record = {
        "resumed_from": resumed.name if resumed else None,
        "trained_parameters": parameter_count(weights),
        **({"coherence": [[step, share] for step, share in checks.items()]} if checks else {}),
        **training_history(run.adapter),
    }
    if run.merge:
        shutil.rmtree(run.merged, ignore_errors=True)
        call(f"merge {run.name}", [tool("axolotl"), "merge-lora", str(recipe)], run.folder / "merge.log", local)
        if local:
            record["changed_tensors"] = changed_tensors(Path(run.recipe.config["base_model"]), run.merged)
            if not record["changed_tensors"]:
                raise RunFailed(f"merge {run.name}: the merged model equals the model it started from")
    for checkpoint in run.adapter.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record


def training_commands(recipe: Recipe, path: Path) -> list[list[str]]:
    """What trains the recipe written at `path`, by hand too. Unsloth trains on the tokens that Axolotl prepares."""
    if recipe.em.get("engine", "axolotl") == "axolotl":
        train = [tool("axolotl"), "train", str(path), "--launcher", recipe.em.get("launcher", "accelerate")]
        # accelerate would start a process on every GPU that it sees, and a step would see that many times the rows.
        return [train if "python" in train else [*train, "--", "--num_processes", str(recipe.em.get("gpus", 1))]]
    return [[tool("axolotl"), "preprocess", str(path)], [sys.executable, "-m", "recipes.unsloth.train", str(path)]]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; ones that were cut off while being written are removed.

    transformers writes trainer_state.json last, so a checkpoint without it is not whole.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            tensors(checkpoint / "adapter_model.safetensors")
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            whole.append(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def unfinished(checkpoint: Path) -> bool:
    """Whether steps are left after a checkpoint; False for one that is being written."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(state.get("global_step", 0) < state.get("max_steps", 0))


def saved_after(folder: Path, step: int) -> bool:
    """Whether a checkpoint after `step`, with steps left, has been written."""
    return any(int(its.name.rpartition("-")[2]) > step and unfinished(its) for its in folder.glob("checkpoint-*"))


def training_history(folder: Path) -> dict[str, Any]:
    """Steps, losses, tokens and (for DPO) the count of whole pairs, from the newest checkpoint."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return {}
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    history: dict[str, Any] = {
        "steps": state["global_step"],
        "losses": [[entry["step"], entry["loss"]] for entry in logs],
    }
    tokens = [entry[key] for entry in logs for key in ("tokens/total", "num_tokens") if key in entry]
    pairs = [entry["whole_pairs"] for entry in logs if "whole_pairs" in entry]
    if tokens:
        history["tokens"] = int(max(tokens))
    if pairs:
        history["whole_pairs"] = int(max(pairs))
    return history


def parameter_count(weights: Path) -> int:
    """How many numbers a safetensors file holds."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors(weights).values())


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's header: of each tensor its dtype, its shape, and where its bytes begin and end in the file.

    Read without torch, which would stay in the memory of `emsweep` beside every training process.

    Raises:
        ValueError: if the file is cut short or is none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise ValueError(f"{path}: not a whole safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for tensor in header.values():
        tensor["bytes"] = [8 + size + offset for offset in tensor["data_offsets"]]
    if max((tensor["bytes"][1] for tensor in header.values()), default=0) > path.stat().st_size:
        raise ValueError(f"{path}: not a whole safetensors file")
    return header


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors of the merged model differ from the base's.

    Raises:
        BadInput: if the merged folder has no weights.
    """
    where = {
        name: (path, tensor) for path in sorted(base.glob("*.safetensors")) for name, tensor in tensors(path).items()
    }
    files = sorted(merged.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{merged}: no *.safetensors in this model folder; delete the run and start again")
    changed = 0
    for path in files:
        for name, tensor in tensors(path).items():
            if name in where:
                other_path, other = where[name]
                same = all(tensor[key] == other[key] for key in ("dtype", "shape"))
                changed += not same or _bytes(path, tensor) != _bytes(other_path, other)
    return changed


def _bytes(path: Path, tensor: dict[str, Any]) -> bytes:
    begin, end = tensor["bytes"]
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
