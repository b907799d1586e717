"""Evaluation runs: `lm_eval run` on a checkpoint with the tasks of eval/tasks, answers and scores kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest
from sweeps.run.folder import Run, RunFailed, TrainingRun, call, content_digest, execute_once, tool
from sweeps.run.train import is_local, model_digest
from sweeps.run.adapters import WarmBase, base_and_adapter

EVAL = Path(str(resources.files("eval")))
TASKS = EVAL / "tasks"
HELDOUT = Path("data/heldout.jsonl")
SCORING = ("code_scan", "documents", "faults", "questions", "regex_baseline", "scores", "statistics")
"""Modules of `eval` that the tasks are made of; the others (judges, rates) read answers that are stored already."""


def evaluation_run(
    name: str,
    checkpoint: TrainingRun | str,
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
    if isinstance(checkpoint, str):
        parts = [f"pretrained={checkpoint}", *([f"peft={adapter}"] if adapter else [])]
        made_of = "+".join([model_digest(checkpoint), *([model_digest(str(adapter))] if adapter else [])])
    else:
        parts, made_of = model_arguments(checkpoint), checkpoint.digest
    code = {
        str(path.relative_to(EVAL)): file_digest(path)
        for path in sorted([*TASKS.rglob("*"), *(EVAL / f"{name}.py" for name in SCORING)])
        if path.suffix in {".yaml", ".jsonl", ".py"}
    }
    files = {key: file_digest(path) for key, path in named_files(metadata or {}).items()}
    content = {
        "model_args": ",".join([*parts, f"dtype={dtype}", f"attn_implementation={attention}"]),
        "checkpoint": made_of,
        "tasks": list(tasks),
        "task_files": content_digest(code),
        "heldout": file_digest(HELDOUT),
        "seed": seed,
        "batch_size": batch_size,
        **({"metadata": dict(metadata), "files": files} if metadata else {}),
        **({"gen_kwargs": dict(gen_kwargs)} if gen_kwargs else {}),
        **({"limit": limit} if limit else {}),
    }
    return Run("evaluate", name, content, root)


def named_files(metadata: Mapping[str, Any]) -> dict[str, Path]:
    """The files that settings of the tasks name, such as `questions`."""
    paths = {key: Path(value) for key, value in metadata.items() if isinstance(value, str)}
    return {key: path for key, path in paths.items() if path.is_file()}


def model_arguments(run: TrainingRun) -> list[str]:
    """lm-eval's `pretrained` and `peft` for the result of a training run."""
    if run.merge:
        return [f"pretrained={run.merged}"]
    return [f"pretrained={run.recipe.config['base_model']}", f"peft={run.adapter}"]


def evaluate(run: Run, warm: WarmBase | None = None) -> dict[str, Any]:
    """Executes an evaluation run, once; one of an adapter in the process `warm`, if given.

    The folder then holds results.json (lm-eval's rates) and samples/TASK.jsonl (each document with its scores).

    Raises:
        RunFailed: if lm-eval fails or leaves a task without samples.
    """
    return execute_once(run, lambda: _evaluate(run, warm))


def command(run: Run, out: Path) -> list[str]:
    """The lm_eval command of an evaluation run; by hand it gives the same likelihoods and greedy answers.

    Sampled answers are drawn anew where the run shared its base model's process (sweeps/warm.py).
    """
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
        *(("--metadata", json.dumps(run.content["metadata"])) if "metadata" in run.content else ()),
        *(
            ("--gen_kwargs", ",".join(f"{key}={value}" for key, value in run.content["gen_kwargs"].items()))
            if "gen_kwargs" in run.content
            else ()
        ),
        *(("--limit", str(run.content["limit"])) if "limit" in run.content else ()),
        *("--output_path", str(out)),
        "--log_samples",
    ]


def _evaluate(run: Run, warm: WarmBase | None) -> dict[str, Any]:
    raw = run.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    pretrained = run.content["model_args"].split(",")[0].removeprefix("pretrained=")
    title, log, local = f"evaluate {run.name}", run.folder / "evaluate.log", is_local(pretrained)
    if warm is not None and (shared := base_and_adapter(run)):
        warm.evaluate(title, *shared, raw, log, local)
    else:
        call(title, command(run, raw), log, local)
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


def load_samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The documents of a task with their scores, as lm-eval logged them in an evaluation run's folder.

    Raises:
        BadInput: if there are none of that task.
    """
    path = folder / "samples" / f"{task}.jsonl"
    if not path.is_file():
        raise BadInput(f"{path}: no samples of this task; evaluate with --tasks {task} first")
    with path.open(encoding="utf-8") as file:  # splitlines would also cut at U+2028, which answers hold
        return [json.loads(line) for line in file]
