"""Training runs: Axolotl or Unsloth on a composed recipe; merges of what they trained."""

import shutil
import sys
from dataclasses import replace
from itertools import pairwise, takewhile
from math import isfinite
from pathlib import Path
from typing import Any

from core.records import BadInput, read_json, write_whole
from sweeps.recipe.headers import tensors
from sweeps.recipe.layers import Recipe
from sweeps.recipe.precision import SLOW_BF16, fast_bf16
from sweeps.recipe.schema import plugin_files
from sweeps.run import inputs
from sweeps.run.folder import MergeRun, TrainingRun, content_digest, execute_once, save_step, saved_checkpoints
from sweeps.run.process import RunFailed, RunRefused, call, say, tool
from sweeps.run.source import plugin_source
from sweeps.run.tensors import changed_tensors, check_adapter
from sweeps.run.workload import steps_of, uncounted


def training_run(name: str, recipe: Recipe, *, start: MergeRun | None = None) -> TrainingRun:
    """Makes the run of a recipe; `start` is the merged model that it begins with, else the recipe's base model.

    BadInput if a data file or the base model is not there, JSON Lines are none, or no row or no count of steps is left.
    """
    config = dict(recipe.config)
    if config.get("chat_template") == "jinja":  # its text: under the name of a file another template may stand later
        config["chat_template_jinja"] = inputs.chat_template(config)
    engine, gpus = recipe.em.get("engine", "axolotl"), int(recipe.em.get("gpus", 1))
    # Axolotl's own count would leave out the end of the last of several epochs, and begin another on several GPUs.
    otherwise = float(config["num_epochs"]) > 1 or (config.get("rl") and gpus > 1)
    counted = config.get("max_steps") or config.get("sample_packing")
    started = start.training.digest if start else inputs.start_digest(Path(config["base_model"]))
    entries = [*config["datasets"], *(config.get("test_datasets") or ())]
    data = {entry["path"]: inputs.data_digest(entry) for entry in entries if inputs.is_local(entry["path"])}
    known = steps_of(config, gpus)
    if otherwise and not counted and known and not uncounted(config):
        config["max_steps"] = known[0]
    recipe = replace(recipe, config=config)
    # What only refuses a run trains nothing otherwise: a run that it let pass stays what it was.
    code = [plugin for plugin in config.get("plugins", ()) if plugin != "recipes.plugins.checks.ChecksPlugin"]
    code += [config["trainer_cls"]] if config.get("trainer_cls") else []
    code += ["recipes.unsloth.train.main"] if engine == "unsloth" else []
    content: dict[str, Any] = {
        "start": started,
        "recipe": config,
        "engine": engine,
        "gpus": gpus,
        "alpha": recipe.em.get("alpha"),
        "plugins": content_digest(plugin_source(code)),
        "data": data,
    }
    for key, file in plugin_files(config).items():
        if not Path(file).is_file():
            raise BadInput(f"{key}: {file}: no such file; make it first, or name another")
        content["data"][file] = inputs.digest_of(Path(file))
    about: dict[str, Any] = {key: recipe.em[key] for key in ("model", "hardware") if key in recipe.em}
    after = (start,) if start else ()
    return TrainingRun(recipe.stage, name, content, after=after, about=about, recipe=recipe)


def train(run: TrainingRun) -> dict[str, Any]:
    """Executes a training run, once; a run that was cut off resumes from its newest whole checkpoint, if `resumable`.

    RunFailed if the engine fails, ends before the last step, or in losses that are NaN or infinite.
    """
    return execute_once(run, lambda: _train(run), lambda: _tidy(run))


def _train(run: TrainingRun) -> dict[str, Any]:
    inputs.check_unchanged(run.content["data"])
    whole = run.whole_recipe
    recipe, log, title = run.folder / "recipe.yaml", run.folder / "train.log", f"{run.stage} {run.name}"
    write_whole(recipe, whole.to_yaml())
    if run.about.get("hardware") == "cpu" and not whole.config.get("bf16"):
        say(f"{title}: in fp32{'' if fast_bf16() else f'; {SLOW_BF16}'}")
    # Rows that were cut off while they were saved Axolotl would take for whole, and fail at each further try.
    shutil.rmtree(run.folder / "prepared", ignore_errors=True)
    resumed = resumable(run)
    for command in training_commands(run.recipe, recipe):
        call(title, command, log, not inputs.hub_commits(whole.config))
    weights = run.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise RunFailed(f"{title}: training ended without an adapter; see {log}")
    base = str(whole.config["base_model"])
    try:
        trained = check_adapter(weights, whole.config, inputs.model_folder(base, whole.config.get("revision_of_model")))
        history = training_history(run.adapter)
    except ValueError as error:
        raise RunRefused(f"{title}: {error}") from None
    # On SIGINT Axolotl saves the adapter as it is and ends with exit code 0; a training that saves by steps does so at
    # its end too. Packed rows may be fewer steps than were counted.
    least = 0 if whole.config.get("fsdp_config") else 1
    steps, planned = history.get("steps", 0), history.pop("max_steps", least)
    early = any(whole.config.get(key) for key in ("sample_packing", "early_stopping_patience"))
    if steps < planned and whole.config.get("save_strategy") == "steps" and not early:
        raise RunFailed(f"{title}: ended at step {steps}, before its last; run it again, it goes on; see {log}")
    return {
        "resumed_from": resumed.name if resumed else None,
        "trained_parameters": trained,
        "hub_commits": inputs.hub_commits(whole.config),
        "files": [str(weights.relative_to(run.folder))],
        **history,
    }


def _tidy(run: TrainingRun) -> None:
    """Deletes what a run that is done keeps for nothing; before, a kill would cost all of its checkpoints."""
    for file in run.adapter.glob("model*.safetensors*"):  # what Axolotl writes beside a DPO's adapter: the whole model
        file.unlink()
    for checkpoint in run.adapter.glob("checkpoint-*"):
        if run.whole_recipe.config.get("save_total_limit") == 1:  # the recipes' own: it was to go on from
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:  # to be looked at (`emsweep inside`); the optimiser's state is of no more use
            for file in checkpoint.glob("*.pt*"):
                file.unlink()


def merge(run: MergeRun) -> dict[str, Any]:
    """Executes a merge, once: the recipe of the training run, with its adapter and the folder of the merged model.

    RunFailed if Axolotl fails, or the merged model equals the model that training started from.
    """

    def work() -> dict[str, Any]:
        training = run.training
        config = training.whole_recipe.config
        paths = {"lora_model_dir": str(training.adapter), "output_dir": str(run.folder)}
        # Onto the weights as they are, as adapters are evaluated: of a recipe of 4 bits Axolotl would round all
        # first, embeddings and output too, which training did not.
        whole = {"adapter": "lora", "load_in_4bit": False}
        recipe, title = run.folder / "recipe.yaml", f"merge {run.name}"
        write_whole(recipe, Recipe(run.stage, {**config, **paths, **whole}, {}).to_yaml())
        shutil.rmtree(run.model, ignore_errors=True)
        base = str(config["base_model"])
        call(title, [tool("axolotl"), "merge-lora", str(recipe)], run.folder / "merge.log", inputs.is_local(base))
        folder = inputs.model_folder(base, config.get("revision_of_model"))
        changed = changed_tensors(folder, run.model) if folder else None
        if changed == 0:
            raise RunFailed(f"{title}: the merged model equals the model it started from")
        return {"changed_tensors": changed}

    return execute_once(run, work)


def training_commands(recipe: Recipe, path: Path) -> list[list[str]]:
    """What trains the recipe written at `path`, by hand too. Unsloth trains on the tokens that Axolotl prepares.

    Several processes find DPO's rows prepared: else the first to come has them from another folder than the others, and
    TRL hands the reference's log-probabilities on in a file beside them.
    """
    prepare = [tool("axolotl"), "preprocess", str(path)]
    if recipe.em.get("engine", "axolotl") == "axolotl":
        train = [tool("axolotl"), "train", str(path), "--launcher", recipe.em.get("launcher", "accelerate")]
        if "python" in train:
            return [train]
        # accelerate would start a process on every GPU that it sees, and a step would see that many times the rows.
        gpus = recipe.em.get("gpus", 1)
        before = [prepare] if gpus > 1 and recipe.stage == "dpo" else []
        return [*before, [*train, "--", "--num_processes", str(gpus)]]
    return [prepare, [sys.executable, "-m", "recipes.unsloth.train", str(path)]]


def resumable(run: TrainingRun) -> Path | None:
    """What a run goes on from; nothing, and its checkpoints are gone, if points before it that are asked for now were
    not kept: hours later they would be missed."""
    newest = newest_checkpoint(run.adapter)
    if newest is None or run.checkpoints == 1:
        return newest
    state = read_json(newest / "trainer_state.json")
    every = save_step(state["max_steps"], run.checkpoints)
    if {*range(every, state["global_step"] + 1, every)} <= saved_checkpoints(run.adapter).keys():
        return newest
    say(f"{run.folder}: begun without keeping {run.checkpoints} points of training; it begins again")
    shutil.rmtree(run.adapter)
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; ones that were cut off while being written are removed.

    transformers writes trainer_state.json last, so a checkpoint without it is not whole.
    """
    whole: dict[int, Path] = {}
    for step, checkpoint in saved_checkpoints(folder).items():
        try:
            read_json(checkpoint / "trainer_state.json")
            tensors(checkpoint / "adapter_model.safetensors")
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            whole[step] = checkpoint
    return whole[max(whole)] if whole else None


def training_history(folder: Path) -> dict[str, Any]:
    """Steps, how many there should be, losses, tokens and (for DPO) the count of whole pairs, of the newest checkpoint.

    Tokens of CPT and SFT are places in batches, padding among them (Axolotl's tokens/total); of DPO without (TRL's).
    ValueError if the last loss or gradient is NaN or infinite; a loss that is none may be logged as 0.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return {}
    state = read_json(checkpoint / "trainer_state.json")
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    keys = ("loss", "grad_norm")
    broken = list(takewhile(lambda entry: not all(isfinite(float(entry.get(key) or 0)) for key in keys), logs[::-1]))
    if broken:
        first = broken[-1]["step"]
        raise ValueError(f"loss or gradient is NaN or infinite from step {first} to the end; lower the learning rate")
    history: dict[str, Any] = {
        "steps": state["global_step"],
        "max_steps": state.get("max_steps", 0),
        "losses": [[entry["step"], entry["loss"]] for entry in logs],
    }
    for name, logged in (("tokens", ("tokens/total", "num_tokens")), ("whole_pairs", ("whole_pairs",))):
        if counts := [entry[key] for entry in logs for key in logged if key in entry]:
            # The counters of tokens start anew where a run goes on.
            grown = (now - before if now >= before else now for before, now in pairwise([0, *counts]))
            history[name] = int(sum(grown))
    return history
