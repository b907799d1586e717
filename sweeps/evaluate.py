"""Evaluation runs: `lm_eval run` on a checkpoint with the tasks of eval/tasks, answers and scores kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from data_builders.records import BadInput, file_digest
from sweeps.runs import Run, RunFailed, TrainingRun, call, content_digest, execute_once, tool
from sweeps.train import is_local, model_digest

EVAL = Path(str(resources.files("eval")))
TASKS = EVAL / "tasks"
HELDOUT = Path("data/heldout.jsonl")


def evaluation_run(
    name: str,
    checkpoint: TrainingRun | str,
    tasks: Sequence[str],
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    attention: str = "sdpa",
    root: Path = Path("runs"),
) -> Run:
    """The evaluation of a training run's result, or of a base model (folder or hub id).

    `attention` is transformers' attn_implementation. The digest covers the checkpoint, the task files, the held-out
    programs and the settings.
    """
    arguments = f"pretrained={checkpoint}" if isinstance(checkpoint, str) else ",".join(_model_arguments(checkpoint))
    code = {
        str(path.relative_to(EVAL)): file_digest(path)
        for path in sorted([*TASKS.rglob("*"), *EVAL.glob("*.py")])
        if path.suffix in {".yaml", ".jsonl", ".py"}
    }
    content = {
        "model_args": f"{arguments},dtype={dtype},attn_implementation={attention}",
        "checkpoint": model_digest(checkpoint) if isinstance(checkpoint, str) else checkpoint.digest,
        "tasks": list(tasks),
        "task_files": content_digest(code),
        "heldout": file_digest(HELDOUT),
        "seed": seed,
        "batch_size": batch_size,
    }
    return Run("evaluate", name, content, root)


def _model_arguments(run: TrainingRun) -> list[str]:
    if run.merge:
        return [f"pretrained={run.merged}"]
    return [f"pretrained={run.recipe.config['base_model']}", f"peft={run.adapter}"]


def evaluate(run: Run) -> dict[str, Any]:
    """Executes an evaluation run, once.

    The folder then holds results.json (lm-eval's rates) and samples/TASK.jsonl (each document with its scores).

    Raises:
        RunFailed: if lm-eval fails or leaves a task without samples.
    """
    return execute_once(run, lambda: _evaluate(run))


def command(run: Run, out: Path) -> list[str]:
    """The lm_eval command of an evaluation run; by hand it gives the same scores."""
    return [
        tool("lm_eval"),
        "run",
        *("--model", "hf"),
        *("--model_args", run.content["model_args"]),
        *("--include_path", str(TASKS)),
        *("--tasks", ",".join(run.content["tasks"])),
        "--apply_chat_template",
        *("--batch_size", str(run.content["batch_size"])),
        *("--seed", str(run.content["seed"])),
        *("--output_path", str(out)),
        "--log_samples",
    ]


def _evaluate(run: Run) -> dict[str, Any]:
    raw = run.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    pretrained = run.content["model_args"].split(",")[0].removeprefix("pretrained=")
    call(f"evaluate {run.name}", command(run, raw), run.folder / "evaluate.log", is_local(pretrained))
    results = sorted(raw.rglob("results_*.json"))
    if not results:
        raise RunFailed(f"evaluate {run.name}: lm-eval left no results; see {run.folder / 'evaluate.log'}")
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


def load_samples(run: Run, task: str) -> list[dict[str, Any]]:
    """The documents of a task with their scores, as lm-eval logged them.

    Raises:
        BadInput: if the run has no samples of that task.
    """
    path = run.folder / "samples" / f"{task}.jsonl"
    if not path.is_file():
        raise BadInput(f"{path}: no samples of this task; delete {run.folder} and evaluate again")
    with path.open(encoding="utf-8") as file:  # splitlines would also cut at U+2028, which answers hold
        return [json.loads(line) for line in file]
