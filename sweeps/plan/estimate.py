"""What a sweep will take before it is started: steps, tokens, hours, memory, disk, and money for judging.

Each finished run sharpens it: a rate is measured where runs of the same model, hardware and stage (of an evaluation:
the same tasks and engine) have ended. Else it is a range, modelled from the hardware layer's data sheet.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from core.llm.budget import Prices
from eval.judge.prompt_files import Prompts
from sweeps.recipe.layers import load_layer
from sweeps.recipe.memory import GIB, Shape, adapter_parameters, estimate
from sweeps.run.folder import MergeRun, Run, TrainingRun
from sweeps.run.graph import Graph, shared, wanted
from sweeps.run.index import evaluation_kind
from sweeps.run.inputs import is_local, model_folder
from sweeps.run.vllm import MEMORY
from sweeps.run.workload import BYTES_PER_TOKEN, PROMPT, Workload, rows_and_bytes, steps_of, workload

MFU = (0.5, 0.2)
"""Share of the hardware's arithmetic that training uses, at best and at worst (PaLM, arXiv 2204.02311, section 4.1
defines it; LoRA, short rows and small batches are at its lower end)."""
LAYER_STEP = {"hf": (0.5e-3, 1.5e-3), "vllm": (0.1e-3, 0.4e-3)}
"""Seconds that a layer takes to write a token beside its arithmetic: launches of kernels, LoRA."""
VLLM_ROWS = 256
"""Answers that vLLM writes at once, its own default of max_num_seqs."""
WRITTEN = (1 / 3, 1.0)
"""Share of its longest that an answer has."""
START = 30.0
"""Seconds that a process takes to import and to load, before the first step."""
CHECKPOINTS = 4
"""Times the adapter's fp32 numbers that a run holds while it trains: adapter, and a checkpoint with Adam's moments."""
GB = 1e9

Range = tuple[float, float]
"""At best and at worst."""


@dataclass(frozen=True)
class RunCost:
    seconds: Range
    measured: bool
    gib: float | None = None
    """Memory on each GPU."""
    limit: float | None = None


class History:
    """Rates of finished runs (rows of sweeps/run/index.py), by what is alike; a resumed run's time is not whole."""

    def __init__(self, index: Iterable[Mapping[str, Any]]) -> None:
        self._time: dict[tuple[Any, ...], Any] = defaultdict(lambda: np.zeros(2))  # seconds, tokens
        self._size: dict[tuple[Any, ...], Any] = defaultdict(lambda: np.zeros(2))  # tokens, rows
        for row in index:
            if row["resumed_from"] is not None or not row["wall_seconds"] or not row["tokens"]:
                continue
            own = (row["engine"], row["data"]) if row["stage"] == "evaluate" else ()
            self._time[row["stage"], row["model"], row["hardware"], *own] += row["wall_seconds"], row["tokens"]
            if row["rows"]:
                self._size[row["stage"], row["data_digest"]] += row["tokens"], row["rows"]

    def seconds_per_token(self, run: Run) -> float | None:
        own = evaluation_kind(run.content) if run.stage == "evaluate" else ()
        kind = (run.stage, run.about.get("model"), run.about.get("hardware"), *own)
        return float(np.divide(*self._time[kind])) if kind in self._time else None

    def tokens_per_row(self, run: TrainingRun) -> float:
        """Of finished runs on the same data; else from its bytes."""
        data = run.content["data"]
        if (alike := (run.stage, " ".join(digest[:10] for digest in data.values()))) in self._size:
            return float(np.divide(*self._size[alike]))
        trained = {entry["path"] for entry in run.recipe.config["datasets"]}
        sizes = [rows_and_bytes(Path(path)) for path in data if path in trained]
        return sum(size for _, size in sizes) / max(1, sum(rows for rows, _ in sizes)) / BYTES_PER_TOKEN


def run_cost(run: Run, history: History) -> RunCost | None:
    """What a run takes; None where that cannot be said."""
    if run.stage == "merge":
        return RunCost((START, START), False)
    need = limit = None
    if isinstance(run, TrainingRun):
        config, em, gpus = run.recipe.config, run.recipe.em, int(run.recipe.em.get("gpus", 1))
        known = steps_of(config, gpus)
        if known is None:
            return None
        need, limit = estimate(Shape(**em["shape"]), int(em["parameters"]), config, gpus).gib, em.get("memory_gib")
        tokens = known[1] * history.tokens_per_row(run)
        modelled = _computed({**em, "gpus": gpus}, (6 if config.get("gradient_checkpointing") else 4) * tokens)
    else:
        work, model, hardware = workload(run.content), run.about["model"], run.about["hardware"]
        cards = run.about.get("gpus", 1) if run.content.get("backend") == "vllm" else 1  # hf: one after another
        facts = {**load_layer("models", model)["em"], **load_layer("hardware", hardware)["em"], "gpus": cards}
        tokens, modelled = work.tokens, _evaluated(facts, work, run.content)
    rate = history.seconds_per_token(run)
    seconds = modelled if rate is None else (tokens * rate, tokens * rate)
    return None if seconds is None else RunCost(seconds, rate is not None, need, limit)


def _computed(em: Mapping[str, Any], passes: float) -> Range | None:
    """Seconds of so many operations on each parameter, with the start of the process.

    Training takes 2 for each token forward, as many back through a frozen model, and again forward where activations
    are recomputed (Kaplan et al., arXiv 2001.08361, section 2.1); scoring takes 2.
    """
    if not em.get("tflops"):
        return None
    ideal = float(em["parameters"]) * passes / (float(em["tflops"]) * 1e12 * int(em.get("gpus", 1)))
    return START + ideal / MFU[0], START + ideal / MFU[1]


def _evaluated(em: Mapping[str, Any], work: Workload, content: Mapping[str, Any]) -> Range | None:
    """Seconds of an evaluation: what is read is scored; what is written takes a step for each token of a batch's
    longest answer, as long as the arithmetic, or as the weights, and all keys and values, are on their way to it."""
    read = _computed(em, 2 * work.read)
    if read is None or not em.get("bandwidth"):
        return None
    backend, shape, cards = str(content.get("backend") or "hf"), em["shape"], int(em.get("gpus", 1))
    rows = VLLM_ROWS if backend == "vllm" else content["batch_size"]
    rows = rows if isinstance(rows, int) else 8
    weights, kept = 2 * float(em["parameters"]), 4 * shape["layers"] * shape["kv_heads"] * shape["head_dim"]  # in bf16
    free = cards * MEMORY * GIB * em["memory_gib"] - weights if backend == "vllm" and em["memory_gib"] else inf

    def written(share: float, mfu: float, layer: float) -> float:
        seconds = 0.0
        for answers, longest in work.sampled.values():
            held = kept * (PROMPT + share * longest / 2)  # by an answer, on average
            at_once = max(1, min(rows, answers, free / held))
            moved = (weights + at_once * held) / (cards * float(em["bandwidth"]) * 1e12)
            computed = weights * at_once / (cards * float(em["tflops"]) * 1e12 * mfu)
            seconds += ceil(answers / at_once) * share * longest * (max(moved, computed) + shape["layers"] * layer)
        return seconds

    best, worst = (
        seconds + written(*ends) for seconds, *ends in zip(read, WRITTEN, MFU, LAYER_STEP[backend], strict=True)
    )
    return best, worst


class JudgingCost(NamedTuple):
    answers: int
    requests: int
    tokens_in: Range
    tokens_out: int

    def usd(self, prices: Prices) -> Range:
        best, worst = ((tokens * prices[0] + self.tokens_out * prices[1]) / 1e6 for tokens in self.tokens_in)
        return best, worst


JUDGEMENT = 2
"""Tokens of a number, as most judges write one."""
QUESTION = 40
"""Tokens of an open question."""


def judging(evaluations: Iterable[Run], prompts: Prompts) -> JudgingCost:
    """Answers x measures: a request holds the measure's prompt, a question and an answer, of a third of its longest or
    all."""
    found = (workload(run.content).sampled.get(prompts.task) for run in evaluations)
    sampled = [one for one in found if one]
    answers, longest = sum(one.answers for one in sampled), sum(one.answers * one.longest for one in sampled)
    count = len(prompts.measures)
    frames = sum(len(measure.prompt) / BYTES_PER_TOKEN + QUESTION for measure in prompts.measures.values())
    best, worst = (answers * frames + count * share * longest for share in WRITTEN)
    return JudgingCost(answers, count * answers, (best, worst), JUDGEMENT * count * answers)


def disk_gb(runs: Iterable[Run]) -> float:
    """GB that runs write, merged models in bf16 above all, and that base models take which are not here yet."""
    models: dict[str, float] = {}
    total = beside = 0.0
    for run in runs:
        training = run.training if isinstance(run, MergeRun) else run
        if not isinstance(training, TrainingRun):
            continue
        em, config = training.recipe.em, training.recipe.config
        if isinstance(run, MergeRun):
            total += 2 * em["parameters"]
        else:
            total += CHECKPOINTS * 4 * adapter_parameters(Shape(**em["shape"]), config)
            if config.get("rl"):  # Axolotl writes the whole model beside the adapter of a DPO, until the run is done
                beside = max(beside, 2 * em["parameters"])
        if not is_local(config["base_model"]) and not model_folder(
            config["base_model"], config.get("revision_of_model")
        ):
            models[config["base_model"]] = 2 * em["parameters"]
    return (total + beside + sum(models.values())) / GB


def plan_table(runs: Graph, index: Sequence[Mapping[str, Any]], at_once: int) -> tuple[Table, str]:
    """What a sweep will take, by stage, and a sentence on the whole; `at_once` runs are done at a time."""
    table = Table("stage", "runs", "done", "to do", "hours to do", "from", "GiB on each GPU", box=None, pad_edge=False)
    total, unknown, history, left = np.zeros(2), 0, History(index), wanted(runs)
    for stage in dict.fromkeys(run.stage for run in runs.values()):
        own = [run for run in runs.values() if run.stage == stage]
        todo = [run for run in own if run.digest in left]
        known = [view for run in todo if (view := run_cost(run, history))]
        seconds = np.sum([view.seconds for view in known] or [(0, 0)], axis=0)
        total += seconds
        unknown += len(todo) - len(known)
        measured = sum(view.measured for view in known)
        counted = {"measured": measured, "modelled": len(known) - measured, "not known": len(todo) - len(known)}
        source = " and ".join(word for word, count in counted.items() if count)
        hours = between(seconds, ".2f", 3600) if known or not todo else ""
        need = max((view.gib for view in known if view.gib), default=None)
        limit = next((view.limit for view in known if view.limit), None)
        memory = "" if need is None else f"{need:.1f} of {limit:g}" if limit else f"{need:.1f}"
        counts = map(str, (len(own), len(own) - len(todo), len(todo)))
        table.add_row(stage, *counts, hours, source, memory)
    done = len(runs) - len(left)
    words = f"{len(runs)} runs ({shared(runs)} shared), {done} runs done, {len(runs) - done} to do"
    if done < len(runs):
        hours = f"about {between(total, '.1f', 3600 * at_once)} hours, {at_once} at a time, and " if total.any() else ""
        words += f": {hours}{disk_gb(run for run in runs.values() if run.digest in left):.1f} GB of disk"
        words += f", and {unknown} runs of which nothing is known" if unknown else ""
    return table, words


def between(ends: Iterable[float], form: str, unit: float = 1.0) -> str:
    """A range in words, in a unit; one number where both ends are written alike."""
    best, worst = (format(end / unit, form) for end in ends)
    return best if best == worst else f"{best} to {worst}"
