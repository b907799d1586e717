"""Evaluation runs: `lm_eval run` on a checkpoint with the tasks of eval/tasks, answers and scores kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from core.records import file_digest
from sweeps.run.adapters import ResidentBase
from sweeps.run.folder import MergeRun, Run, TrainingRun, content_digest, execute_once
from sweeps.run.process import RunFailed, call, tool
from sweeps.run.train import is_local, model_digest

TASKS = Path(str(resources.files("eval"))) / "tasks"
HELDOUT = Path("data/heldout.jsonl")
"""Of the data that was built here; the tasks' own built-in programs where there is none."""


def evaluation_run(
    name: str,
    checkpoint: TrainingRun | MergeRun | str,
    tasks: Sequence[str],
    *,
    adapter: Path | None = None,
    seed: int = 0,
    dtype: str = "bfloat16",
    batch_size: int | str = 8,
    attention: str = "sdpa",
    metadata: Mapping[str, Any] | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    limit: int | None = None,
    root: Path = Path("runs"),
) -> Run:
    """The evaluation of a training run's result, or of a base model (folder or hub id), maybe with an `adapter`.

    `attention` is transformers' attn_implementation; `metadata` are settings of the tasks, such as `samples`;
    `gen_kwargs` take the place of the tasks' own, such as `max_gen_toks`; `limit` is how many documents of each task
    are taken, to try things out. The digest covers the checkpoint, the task files, the held-out programs and all that.
    """
    code = {str(path.relative_to(TASKS)): file_digest(path) for path in sorted(TASKS.rglob("*")) if _read(path)}
    metadata = {**({"heldout": str(HELDOUT)} if HELDOUT.is_file() else {}), **(metadata or {})}
    files = {key: file_digest(path) for key, path in named_files(metadata).items()}
    content = {
        "model_args": {"dtype": dtype, "attn_implementation": attention},
        "tasks": list(tasks),
        "task_files": content_digest(code),
        "seed": seed,
        "batch_size": batch_size,
        "metadata": {key: files.get(key, value) for key, value in metadata.items()},
        "gen_kwargs": dict(gen_kwargs or {}),
        "limit": limit,
    }
    paths = {key: metadata[key] for key in files}
    if isinstance(checkpoint, str):
        weights = [checkpoint, *([str(adapter)] if adapter else [])]
        content["checkpoint"] = "+".join(map(model_digest, weights))
        content["paths"] = {**paths, **dict(zip(("pretrained", "peft"), weights, strict=False))}
        return Run("evaluate", name, content, root)
    return of_checkpoint(Run("evaluate", name, {**content, "paths": paths}, root), checkpoint, name)


def of_checkpoint(evaluation: Run, run: TrainingRun | MergeRun, name: str) -> Run:
    """The evaluation of another checkpoint in the same way; the task files are not read again."""
    paths = {key: value for key, value in evaluation.content["paths"].items() if key not in ("pretrained", "peft")}
    content = {
        **evaluation.content,
        "checkpoint": run.digest if isinstance(run, TrainingRun) else run.training.digest,
        "merged": isinstance(run, MergeRun),
        "paths": paths,
    }
    # An adapter is loaded onto the merged model that its training started from: that must be there too.
    needed = (run, *run.after) if isinstance(run, TrainingRun) else (run,)
    return Run("evaluate", name, content, evaluation.root, needed, evaluation.about)


def model_paths(run: Run) -> dict[str, str]:
    """lm-eval's `pretrained` and `peft` of an evaluation."""
    for before in run.after:
        if isinstance(before, MergeRun):
            return {"pretrained": str(before.model)}
        if isinstance(before, TrainingRun):
            return {"pretrained": str(before.whole_recipe.config["base_model"]), "peft": str(before.adapter)}
    paths = run.content.get("paths", {})
    return {key: paths[key] for key in ("pretrained", "peft") if key in paths}


def _read(path: Path) -> bool:
    return path.suffix in {".yaml", ".jsonl", ".py"}


def named_files(metadata: Mapping[str, Any]) -> dict[str, Path]:
    """The files that settings of the tasks name, such as `questions`."""
    paths = {key: Path(value) for key, value in metadata.items() if isinstance(value, str)}
    return {key: path for key, path in paths.items() if path.is_file()}


def evaluate(run: Run, resident: ResidentBase | None = None) -> dict[str, Any]:
    """Executes an evaluation run, once; one of an adapter in the process `resident`, if given.

    The folder then holds results.json (lm-eval's rates) and samples/TASK.jsonl (each document with its scores).

    Raises:
        RunFailed: if lm-eval fails or leaves a task without samples.
    """
    return execute_once(run, lambda: _evaluate(run, resident))


def options(run: Run) -> dict[str, Any]:
    """What lm-eval is told about an evaluation, the model's paths aside."""
    content = run.content
    metadata = {key: content["paths"].get(key, value) for key, value in content["metadata"].items()}
    return {
        "model_args": ",".join(f"{key}={value}" for key, value in content["model_args"].items()),
        **{key: content[key] for key in ("tasks", "batch_size", "seed", "gen_kwargs", "limit")},
        "metadata": metadata,
    }


def command(run: Run, out: Path) -> list[str]:
    """The lm_eval command of an evaluation run; by hand it gives the same likelihoods and greedy answers.

    Sampled answers are drawn anew where the run shared its base model's process (sweeps/run/adapters.py).
    """
    told = options(run)
    gen_kwargs = ",".join(f"{key}={value}" for key, value in told["gen_kwargs"].items())
    paths = ",".join(f"{key}={value}" for key, value in model_paths(run).items())
    return [
        *(tool("lm_eval"), "run", "--model", "hf"),
        *("--model_args", f"{paths},{told['model_args']}"),
        *("--include_path", str(TASKS)),
        *("--tasks", ",".join(told["tasks"])),
        "--apply_chat_template",
        *("--batch_size", str(told["batch_size"])),
        *("--seed", str(told["seed"])),
        *(("--metadata", json.dumps(told["metadata"])) if told["metadata"] else ()),
        *(("--gen_kwargs", gen_kwargs) if gen_kwargs else ()),
        *(("--limit", str(told["limit"])) if told["limit"] else ()),
        *("--output_path", str(out)),
        "--log_samples",
    ]


def _evaluate(run: Run, resident: ResidentBase | None) -> dict[str, Any]:
    raw = run.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    paths = model_paths(run)
    title, log, local = f"evaluate {run.name}", run.folder / "evaluate.log", is_local(paths["pretrained"])
    if resident is not None and "peft" in paths:
        base = options(run)
        base["model_args"] = f"pretrained={paths['pretrained']},{base['model_args']}"
        resident.evaluate(title, base, paths["peft"], raw, log, local)
    else:
        call(title, command(run, raw), log, local)
    results = sorted(raw.rglob("results_*.json"))
    if not results:
        raise RunFailed(f"{title}: lm-eval left no results; see {log}")
    samples = run.folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    samples.mkdir()
    for path in raw.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        shutil.move(path, samples / f"{task}.jsonl")
    shutil.move(results[-1], run.folder / "results.json")
    shutil.rmtree(raw)
    rates = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))["results"]
    return {"results": rates, "command": command(run, Path("OUT"))[1:]}
