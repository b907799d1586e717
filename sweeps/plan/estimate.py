"""What a sweep will take before it is started: steps, tokens, hours, memory, and money for judging.

Each finished run sharpens it: a rate is measured where runs of the same model, hardware and stage have ended, and
else modelled from the hardware layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from rich.table import Table

from sweeps.recipe.compose import load_layer
from sweeps.recipe.memory import Shape, estimate
from sweeps.run.folder import Run, TrainingRun
from sweeps.run.graph import Graph, shared
from sweeps.run.inputs import digest_of, is_local
from sweeps.run.tasks import TASKS

MFU = 0.35
"""Share of the hardware's arithmetic that training uses (PaLM, arXiv 2204.02311, section 4.1 defines it)."""
START = 30.0
"""Seconds that a process takes to import and to load, before the first step."""
BYTES_PER_TOKEN = 3.6
EVALUATION_TOKENS = 30_000
"""Tokens of training that take as long as the tasks `em`: 80 s where it saw 364 a second (docs/measurements.md)."""
JUDGE_TOKENS = (2 * 600, 2 * 1)
"""Read and written for an answer: it is asked about twice, each time for one number."""


@dataclass(frozen=True)
class RunCost:
    """What one run takes."""

    seconds: float
    measured: bool
    gib: float | None
    """Memory on each GPU."""
    limit: float | None


def steps_of(config: Mapping[str, Any], gpus: int) -> tuple[int, int] | None:
    """(optimiser steps, rows that they see) of a recipe; None where its data is not on this machine."""
    per_step = int(config["micro_batch_size"]) * int(config["gradient_accumulation_steps"]) * gpus
    if config.get("max_steps"):
        return int(config["max_steps"]), int(config["max_steps"]) * per_step
    sizes = [_size(Path(entry["path"])) for entry in config["datasets"] if is_local(entry["path"])]
    if len(sizes) < len(config["datasets"]):
        return None
    steps = ceil(sum(rows for rows, _ in sizes) / per_step) * int(config["num_epochs"])
    return steps, steps * per_step


def _size(path: Path) -> tuple[int, int]:
    """(rows, bytes) of a data file."""
    return _counted(path, digest_of(path))


@lru_cache
def _counted(path: Path, _digest: str) -> tuple[int, int]:
    with path.open("rb") as file:
        return sum(1 for _ in file), path.stat().st_size


class History:
    """Rates of finished runs (rows of sweeps/index.py), by what is alike; a resumed run's time is not whole."""

    def __init__(self, index: Iterable[Mapping[str, Any]]) -> None:
        self._seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self._tokens: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self._rows: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for row in index:
            if row["resumed_from"] is not None or not row["wall_seconds"]:
                continue
            kind = (row["stage"], row["model"], row["hardware"])
            if row["stage"] == "evaluate":
                self._seconds[kind].append(row["wall_seconds"])
            elif row["tokens"] and row["rows"]:
                self._seconds[kind].append(row["wall_seconds"])
                self._tokens[kind].append(row["tokens"])
                data = (row["stage"], row["data_digest"])
                self._tokens[data].append(row["tokens"])
                self._rows[data].append(row["rows"])

    def seconds_of_evaluation(self, run: Run) -> float | None:
        seen = self._seconds.get(_kind(run))
        return sum(seen) / len(seen) if seen else None

    def seconds_per_token(self, run: Run) -> float | None:
        seen = self._seconds.get(_kind(run))
        return sum(seen) / sum(self._tokens[_kind(run)]) if seen else None

    def tokens_per_row(self, run: TrainingRun) -> float:
        """Of finished runs on the same data; else from its bytes."""
        data = run.content["data"]
        same = (run.stage, " ".join(digest[:10] for digest in data.values()))
        if same in self._rows:
            return sum(self._tokens[same]) / sum(self._rows[same])
        sizes = [_size(Path(path)) for path in data]
        return sum(size for _, size in sizes) / max(1, sum(rows for rows, _ in sizes)) / BYTES_PER_TOKEN


def _kind(run: Run) -> tuple[Any, ...]:
    return run.stage, run.about.get("model"), run.about.get("hardware")


def run_cost(run: Run, history: History) -> RunCost | None:
    """What a run takes; None where that cannot be said."""
    if run.stage == "merge":
        return RunCost(START, False, None, None)
    if not isinstance(run, TrainingRun):
        measured = history.seconds_of_evaluation(run)
        if measured is not None:
            return RunCost(measured, True, None, None)
        facts = {
            **load_layer("models", run.about["model"])["em"],
            **load_layer("hardware", run.about["hardware"])["em"],
        }
        seconds = _modelled(facts, EVALUATION_TOKENS, checkpointing=False)
        return None if seconds is None else RunCost(seconds, False, None, None)
    config, em, gpus = run.recipe.config, run.recipe.em, int(run.recipe.em.get("gpus", 1))
    known = steps_of(config, gpus)
    if known is None:
        return None
    need = estimate(Shape(**em["shape"]), int(em["parameters"]), config, gpus).gib if "shape" in em else None
    tokens, rate = known[1] * history.tokens_per_row(run), history.seconds_per_token(run)
    if rate is not None:
        return RunCost(tokens * rate, True, need, em.get("memory_gib"))
    seconds = _modelled({**em, "gpus": gpus}, tokens, bool(config.get("gradient_checkpointing")))
    return None if seconds is None else RunCost(seconds, False, need, em.get("memory_gib"))


def _modelled(em: Mapping[str, Any], tokens: float, checkpointing: bool) -> float | None:
    """Seconds: 2 operations per parameter and token forward, as many back through a frozen model, and again forward
    where activations are recomputed (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    if not em.get("tflops") or not em.get("parameters"):
        return None
    operations = (6 if checkpointing else 4) * float(em["parameters"]) * tokens
    return START + operations / (float(em["tflops"]) * 1e12 * MFU * int(em.get("gpus", 1)))


def judging(evaluations: Iterable[Run], prices: tuple[float, float]) -> tuple[int, float]:
    """(answers, USD) of judging every evaluation once; `prices` are USD per million tokens read and written."""
    questions, _ = _size(TASKS / "em" / "questions" / "open.jsonl")
    answers = questions * sum(1 for _ in evaluations)
    return answers, answers * sum(n * price for n, price in zip(JUDGE_TOKENS, prices, strict=True)) / 1e6


def plan_table(runs: Graph, index: Sequence[Mapping[str, Any]], at_once: int) -> tuple[Table, str]:
    """What a sweep will take, by stage, and a sentence on the whole; `at_once` runs are done at a time."""
    table = Table("stage", "runs", "done", "to do", "hours to do", "from", "GiB on each GPU", box=None, pad_edge=False)
    total, unknown, history = 0.0, 0, History(index)
    for stage in dict.fromkeys(run.stage for run in runs.values()):
        own = [run for run in runs.values() if run.stage == stage]
        todo = [run for run in own if not run.done]
        views = [run_cost(run, history) for run in todo]
        known = [view for view in views if view]
        hours, unknown = sum(view.seconds for view in known) / 3600, unknown + len(views) - len(known)
        total += hours
        measured = sum(view.measured for view in known)
        source = "measured" if measured == len(known) else "modelled" if not measured else "measured and modelled"
        need = max((view.gib for view in known if view.gib), default=None)
        limit = next((view.limit for view in known if view.limit), None)
        memory = "" if need is None else f"{need:.1f} of {limit:g}" if limit else f"{need:.1f}"
        table.add_row(stage, str(len(own)), str(len(own) - len(todo)), str(len(todo)), f"{hours:.2f}", source, memory)
    done = sum(run.done for run in runs.values())
    words = f"{len(runs)} runs ({shared(runs)} shared), {done} runs done, {len(runs) - done} to do"
    if done < len(runs):
        words += f": about {total / at_once:.1f} hours, {at_once} at a time"
        words += f", and {unknown} runs of which nothing is known" if unknown else ""
    return table, words
