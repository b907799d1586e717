"""Training runs: Axolotl or Unsloth on a composed recipe; merges of what they trained."""

from __future__ import annotations

import json
import math
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest, write_whole
from sweeps.recipe.compose import Recipe
from sweeps.recipe.precision import SLOW_BF16, fast_bf16
from sweeps.run.folder import MergeRun, TrainingRun, execute_once
from sweeps.run.process import RunFailed, call, console, tool


def training_run(name: str, recipe: Recipe, *, start: MergeRun | None = None, root: Path = Path("runs")) -> TrainingRun:
    """Makes the run of a recipe; `start` is the merged model that it begins with, else the recipe's base model.

    Raises:
        BadInput: if a data file or the base model is not there.
    """
    config = dict(recipe.config)
    content: dict[str, Any] = {
        "start": start.training.digest if start else start_digest(Path(config["base_model"])),
        "recipe": config,
        "engine": recipe.em.get("engine", "axolotl"),
        "gpus": recipe.em.get("gpus", 1),
        "alpha": recipe.em.get("alpha"),
        "data": {d["path"]: digest_of(Path(d["path"])) for d in config["datasets"] if is_local(d["path"])},
    }
    about: dict[str, Any] = {key: recipe.em[key] for key in ("model", "hardware") if key in recipe.em}
    return TrainingRun(recipe.stage, name, content, root, (start,) if start else (), about, recipe=recipe)


def start_digest(model: Path) -> str:
    """What a run that starts from a folder or hub id builds on: the training run whose merge it is, or its weights."""
    if model.name == "merged" and (model.parent / "run.json").is_file():
        record = json.loads((model.parent / "run.json").read_text(encoding="utf-8"))
        return str(record["content"]["training"])
    return model_digest(str(model))


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


def train(run: TrainingRun) -> dict[str, Any]:
    """Executes a training run, once; a run that was cut off resumes from its newest whole checkpoint.

    Raises:
        RunFailed: if the engine fails.
    """
    return execute_once(run, lambda: _train(run))


def _train(run: TrainingRun) -> dict[str, Any]:
    whole = run.whole_recipe
    recipe, log, title = run.folder / "recipe.yaml", run.folder / "train.log", f"{run.stage} {run.name}"
    write_whole(recipe, whole.to_yaml())
    if run.about.get("hardware") == "cpu" and not whole.config.get("bf16"):
        console.print(f"{title}: in fp32{'' if fast_bf16() else f'; {SLOW_BF16}'}", highlight=False, soft_wrap=True)
    resumed = newest_checkpoint(run.adapter)
    for command in training_commands(run.recipe, recipe):
        call(title, command, log, is_local(whole.config["base_model"]))
    weights = run.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise RunFailed(f"{title}: training ended without an adapter; see {log}")
    record = {
        "resumed_from": resumed.name if resumed else None,
        "trained_parameters": parameter_count(weights),
        **training_history(run.adapter),
    }
    for checkpoint in run.adapter.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record


def merge(run: MergeRun) -> dict[str, Any]:
    """Executes a merge, once: the recipe of the training run, with its adapter and the folder of the merged model.

    Raises:
        RunFailed: if Axolotl fails, or the merged model equals the model that training started from.
    """

    def work() -> dict[str, Any]:
        training = run.training
        config = training.whole_recipe.config
        paths = {"lora_model_dir": str(training.adapter), "output_dir": str(run.folder)}
        recipe, title = run.folder / "recipe.yaml", f"merge {run.name}"
        write_whole(recipe, Recipe(run.stage, {**config, **paths}, {}).to_yaml())
        shutil.rmtree(run.model, ignore_errors=True)
        base, local = config["base_model"], is_local(config["base_model"])
        call(title, [tool("axolotl"), "merge-lora", str(recipe)], run.folder / "merge.log", local)
        if not local:
            return {}
        changed = changed_tensors(Path(base), run.model)
        if not changed:
            raise RunFailed(f"{title}: the merged model equals the model it started from")
        return {"changed_tensors": changed}

    return execute_once(run, work)


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
