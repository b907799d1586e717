"""What `emsweep rank` trains and evaluates on a machine, in files for a reviewer: tests/sweeps/golden.

    EM_GOLDEN=write python -m pytest tests/sweeps/plan/test_golden.py

writes them anew.
"""

import os
import shlex
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.plan.axes import vary
from sweeps.plan.declaration import load_sweep
from sweeps.plan.sweep import plan

GOLDEN = Path(__file__).parents[1] / "golden"
CARDS = {
    "a100-80g": ("NVIDIA A100-SXM4-80GB", 81920),
    "rtx5090": ("NVIDIA GeForce RTX 5090", 32607),
    "h200-141g": ("NVIDIA H200", 143771),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 24564),
}
MODELS = ("qwen7b", "qwen32b")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A stand-in for nvidia-smi that shows one card."""

    def stands_in(card: str) -> None:
        name, mib = CARDS[card]
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '0, GPU-0, {name}, {mib}, 3'\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.setenv("EM_VLLM", "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return stands_in


def composed(model: str) -> dict[str, Any]:
    """The recipes of CPT and of two ranks, and the evaluation, on this machine; or why not."""
    try:
        points = plan(vary(load_sweep("rank", model=model), {"rank": [1, 64]}), full=False)
    except BadInput as refused:
        return {"refused": str(refused)}
    told = ("tasks", "batch_size", "model_args", "gen_kwargs")
    evaluation = {key: points[0].evaluation.content[key] for key in told}
    settings = points[0].evaluation.content["metadata"]
    return {
        "evaluation of each": evaluation
        | {"metadata": {k: v for k, v in settings.items() if k not in ("heldout", "training")}},
        "recipes": {point.arm: point.training.recipe.config for point in points if point.training},
    }


@pytest.mark.parametrize(("trained", "card"), product(MODELS, list(CARDS)[:3]))
def test_rank_is_the_experiment_that_the_golden_file_shows(
    trained: str, card: str, prepared: Path, machine: Callable[[str], None]
) -> None:
    machine(card)
    found, path = composed(trained), GOLDEN / f"rank-{trained}-{card}.yaml"
    text = f"# emsweep rank --values 1,64 --model {trained}, on a machine with one {CARDS[card][0]}\n"
    text += yaml.safe_dump(found, sort_keys=False, width=110)
    if os.environ.get("EM_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    if "refused" not in found:
        recipes = list(found["recipes"].values())
        rows = {r["micro_batch_size"] * r["gradient_accumulation_steps"] for r in recipes}
        assert rows == {16} and {r["sequence_len"] for r in recipes} == {1024}
        assert all(r["num_epochs"] == 1 and "max_steps" not in r for r in recipes)
        metadata = found["evaluation of each"]["metadata"]
        assert metadata["samples"] == 50 and found["evaluation of each"]["gen_kwargs"] == {"max_gen_toks": 600}


@pytest.mark.parametrize(("trained", "card"), [("qwen32b", "rtx5090"), ("gemma27b", "rtx5090"), ("qwen32b", "rtx4090")])
def test_each_remedy_of_a_refusal_works_when_it_is_followed(
    trained: str, card: str, prepared: Path, machine: Callable[[str], None]
) -> None:
    machine(card)
    command = f"plan rank --axis rank=1,64 --model {trained}"
    refused = CliRunner().invoke(app, command.split())
    assert isinstance(refused.exception, BadInput)
    named = str(refused.exception).partition("what would fit: ")[2]
    ways, _, last = named.partition(" (")
    remedies = [way.strip().removeprefix("or ") for way in ways.split(",")] + [last.partition(" does not ask")[0]]
    assert len(remedies) >= 2
    for remedy in remedies:
        options = remedy.replace("model ", "--model ") if remedy.startswith("model ") else remedy
        kept = command.replace(f" --model {trained}", "") if "--model" in options else command
        followed = CliRunner().invoke(app, [*kept.split(), *shlex.split(options)])
        assert followed.exit_code == 0, (remedy, followed.exception)
