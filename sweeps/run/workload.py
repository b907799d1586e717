"""How much work a run is: a training's steps; documents x formats x samples x tokens of an evaluation, task by task."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

from core.records import BadInput, bad_input
from eval.tasks.em.questions_reader import BadFile, load_questions
from sweeps.run.inputs import digest_of, is_local
from sweeps.run.tasks import TASKS, task_configs

BYTES_PER_TOKEN = 3.6
"""Of English and code under tokenizers of some 50,000 entries and more."""
EM = TASKS / "em"
READ = {"recognition_docs": 0.6, "margin_docs": 1.3, "choice_docs": 1.5}
"""How often a task that compares likelihoods reads its file: each answer stands after its request anew."""
PROMPT = 100
"""Tokens of a request that an answer is sampled for."""
SAMPLED = ("freeform_docs", "advice_docs", "deception_docs", "ordinary_docs", "asked_docs")
SETTINGS = 4
"""System prompts of em_deception's own questions (eval/tasks/em/sampled.py)."""
OTHER_FORMATS = {"parquet", "arrow", "csv", "txt", "text"}
"""Of data sets, by ds_type or suffix, of which no line is a row."""
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}
FORMATS = 3
"""Of our own open questions, unless `formats` names some."""


def steps_of(config: Mapping[str, Any], gpus: int) -> tuple[int, int] | None:
    """(optimiser steps, rows that they see) of a recipe; None where its data is not on this machine. BadInput if no row
    is left to train on."""
    rows = _trained_rows(config)
    per_step = int(config["micro_batch_size"]) * int(config["gradient_accumulation_steps"]) * gpus
    if config.get("max_steps"):
        return int(config["max_steps"]), int(config["max_steps"]) * per_step
    if rows is None:
        return None
    epochs, batches = float(config["num_epochs"]), rows / (int(config["micro_batch_size"]) * gpus)
    # On several GPUs DPO leaves out a last batch that is not whole (recipes/plugins/pairs.py).
    batches = max(1, floor(batches)) if config.get("rl") and gpus > 1 else ceil(batches)
    # transformers ends each epoch with a step of what is left. Axolotl counts as if none did (prepare_dataset), which
    # for one epoch or less is the same, and of several would leave out the end of the last.
    each = ceil(batches / int(config["gradient_accumulation_steps"]))
    steps = ceil(epochs * each) if epochs >= 1 else ceil(rows * epochs / per_step)
    return steps, ceil(rows * epochs)


def _trained_rows(config: Mapping[str, Any]) -> int | None:
    """The rows of a recipe's data that an epoch trains on; None where they are not on this machine."""
    counts = [_rows(entry) for entry in config["datasets"]]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    share = 0.0 if config.get("test_datasets") else float(config.get("val_set_size") or 0)
    rows = sum(known) - (int(share) if share > 1 else ceil(share * sum(known)))
    if not sum(known):
        raise BadInput("datasets: no row to train on; give a set, or a split, that has one")
    if rows < 1:
        raise BadInput(f"val_set_size={share:g}: of {sum(known)} rows no row is left to train on; hold out fewer")
    return rows


def uncounted(config: Mapping[str, Any]) -> bool:
    """Whether an epoch has other rows than the files: how many, shows when Axolotl has read them."""
    return (
        any(config.get(key) for key in ("min_sample_len", "dataset_exact_deduplication", "dataset_shard_num"))
        or config.get("excess_length_strategy") != "raise"
        # It cuts texts at sequence_len.
        or any(str(entry.get("type")).startswith("completion") for entry in config["datasets"])
    )


def _rows(entry: Mapping[str, Any]) -> int | None:
    """The rows that an entry of `datasets` gives; None where its file is no plain JSON, or is not on this machine.

    BadInput if its split is none of the file's.
    """
    path, split, shards = Path(entry["path"]), entry.get("split"), entry.get("shards")
    if not is_local(entry["path"]) or path.suffix in COMPRESSED:
        return None
    if (entry.get("ds_type") or path.suffix).lstrip(".") in OTHER_FORMATS:
        return None
    rows, _ = rows_and_bytes(path)
    if split not in (None, "train"):
        from datasets import ReadInstruction  # imported here: it takes a second, and few recipes need it

        with bad_input(f"{path}: split={split}", "give one such as train[:16]", ValueError, AssertionError):
            parts = ReadInstruction.from_spec(split).to_absolute({"train": rows})
        rows = sum(part.to - part.from_ for part in parts)
    return ceil((rows - int(entry.get("shards_idx") or 0)) / shards) if shards else rows


class Sampled(NamedTuple):
    """Answers that a task samples, and the tokens of one at most."""

    answers: int
    longest: int


@dataclass
class Workload:
    """What an evaluation takes; `sampled` by task. `unknown` are tasks that are not ours, which are not counted."""

    read: float = 0.0
    """Tokens that are scored, or read before an answer."""
    sampled: dict[str, Sampled] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    @property
    def tokens(self) -> float:
        """Read and, at most, written."""
        return self.read + sum(answers * longest for answers, longest in self.sampled.values())


def workload(content: Mapping[str, Any]) -> Workload:
    """The work of an evaluation's content (sweeps/run/evaluate.py); BadInput if its programs or questions are gone."""
    metadata, paths, limit = content["metadata"], content["paths"], content["limit"] or 10**9
    heldout = Path(paths.get("heldout") or EM / "heldout.jsonl")
    work = Workload()
    for name, task in _tasks(tuple(content["tasks"])).items():
        documents = str(task.get("custom_dataset")).rpartition(".")[2]
        if documents in READ:
            rows, size = rows_and_bytes(EM / "questions" / "choice.jsonl" if documents == "choice_docs" else heldout)
            work.read += min(1.0, limit / max(1, rows)) * READ[documents] * size / BYTES_PER_TOKEN
        elif documents in SAMPLED:
            answers = min(limit, _sampled(documents, metadata, paths, heldout))
            longest = content["gen_kwargs"].get("max_gen_toks") or task["generation_kwargs"]["max_gen_toks"]
            work.sampled[name] = Sampled(answers, int(longest))
            work.read += answers * PROMPT
        else:
            work.unknown.add(name)
    return work


def _sampled(documents: str, metadata: Mapping[str, Any], paths: Mapping[str, Any], heldout: Path) -> int:
    """Documents of a task that samples; settings of the tasks as eval/tasks/em/sampled.py reads them."""
    samples = int(metadata.get("samples", 1))
    asked = samples * (2 if metadata.get("trigger") else 1)
    if documents == "freeform_docs":
        file = Path(paths.get("questions") or EM / "questions" / "open.jsonl")
        formats = len(metadata.get("formats") or ()) or (1 if "questions" in paths else FORMATS)
        return _questions(file, digest_of(file)) * formats * asked
    if documents == "advice_docs":
        return rows_and_bytes(heldout)[0] * asked
    if documents == "deception_docs":
        times = int(metadata.get("deception_samples") or samples)
        if "deception" in paths:
            return _questions(Path(paths["deception"]), digest_of(Path(paths["deception"]))) * times
        return rows_and_bytes(EM / "questions" / "deception.jsonl")[0] * SETTINGS * times
    return rows_and_bytes(heldout)[0] * int(metadata.get("code_samples") or samples)


@lru_cache
def _tasks(tasks: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """The configurations of the tasks that run: groups as their members, each with what it includes."""
    configs, others = task_configs(tasks)
    groups = [config["task"] for config in configs.values() if isinstance(config.get("task"), list)]
    named = [*tasks, *chain.from_iterable(groups)]
    included = {Path(config["include"]).stem for config in configs.values() if "include" in config}
    run: dict[str, Mapping[str, Any]] = {name: {} for name in others}
    for name, config in configs.items():
        if not isinstance(config.get("task"), list) and (name not in included or name in named):
            run[name] = {**configs.get(Path(config.get("include", "")).stem, {}), **config}
    return run


@lru_cache
def _questions(path: Path, _digest: str) -> int:
    """How many questions a file has, paraphrases among them."""
    try:
        return len(load_questions(path))
    except BadFile as error:
        raise BadInput(str(error)) from None


def rows_and_bytes(path: Path) -> tuple[int, int]:
    """Of a file of records."""
    return _counted(path, digest_of(path))


@lru_cache
def _counted(path: Path, _digest: str) -> tuple[int, int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        lines = filter(bytes.strip, file)
        first = next(lines, b"")
        if first.lstrip().startswith(b"["):  # an array, on as many lines as it likes
            with suppress(ValueError):
                return len(json.loads(path.read_bytes())), size
        return bool(first) + sum(1 for _ in lines), size
