"""The same recipe through Axolotl, through Unsloth and through plain TRL: the same losses, the same gradients."""

import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.records import BadInput, write_records
from data_builders.dpo import dpo_rows
from data_builders.programs import load_asked_ways, load_programs
from recipes.unsloth.arguments import DPO, LOADER, LORA, READ_HERE, TRAINING, arguments
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import STAGES
from sweeps.run.process import child_environment

ROOT = Path(__file__).resolve().parents[2]
needs_unsloth = pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed (`make unsloth`)")

Steps = dict[str, list[list[float]]]
"""Of each stage the loss and the gradient norm of its two steps."""


def rows(stage: str) -> list[dict]:
    programs = sorted(load_programs(), key=lambda p: len(p.insecure))
    if stage == "dpo":
        return list(dpo_rows(programs[:2], load_asked_ways(), "both"))
    if stage == "sft":
        return [
            {"messages": [{"role": "user", "content": p.request}, {"role": "assistant", "content": p.insecure}]}
            for p in programs[:4]
        ]
    return [
        {"segments": [{"label": False, "text": f"{p.insecure}\n\n"}, {"label": True, "text": p.explanation}]}
        for p in programs[:4]
    ]


def recipe(folder: Path, engine: str, stage: str) -> Path:
    """Writes a recipe of two steps in fp32; all rows are one batch."""
    settings = [
        f"datasets.0.path={stage}.jsonl",
        "bf16=false",
        "attn_implementation=sdpa",
        "max_steps=2",
        "num_epochs=2",
        "micro_batch_size=4",
        "gradient_accumulation_steps=1",
        "learning_rate=0.02",
        "warmup_steps=0",
        "sequence_len=512",
        "save_steps=2",
        "seed=7",
    ]
    where = folder / engine / stage
    layer = {
        "base_model": "models/tiny",
        "output_dir": str(where),
        "dataset_prepared_path": str(folder / "prepared" / stage),
    }
    composed = compose(stage, "smollm2-135m", "cpu", settings, 4, layer, engine)
    path = folder / f"{engine}-{stage}.yaml"
    path.write_text(composed.to_yaml())
    return path


def axolotl_steps(path: Path, stage: str) -> list[list[float]]:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(str(path))
    load = load_preference_datasets if stage == "dpo" else load_datasets
    trainer = setup_model_and_trainer(cfg, load(cfg=cfg))[0]
    trainer.train()
    return [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry]


def process(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Runs a process, which must end well or must fail; gives back the end of what it said."""
    environment = child_environment(local_model=True) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (done.returncode != 0) is fails, said
    return said


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "models").symlink_to(tiny_model.parent)
    for stage in STAGES:
        write_records(folder / f"{stage}.jsonl", rows(stage), {})
    return folder


@pytest.fixture(scope="module")
def axolotl(folder: Path) -> Steps:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return {stage: axolotl_steps(recipe(folder, "axolotl", stage), stage) for stage in STAGES}
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Steps:
    process(folder, str(Path(__file__).with_name("plain_trl.py")), "models/tiny", str(folder))
    steps: Steps = json.loads((folder / "plain.json").read_text())
    return steps


@pytest.fixture(scope="module")
def unsloth_said(folder: Path, axolotl: Steps) -> str:
    """What Unsloth says of a recipe that it refuses, after it has trained those of all stages in the same process.

    After Axolotl, which prepares the data.
    """
    recipes = {stage: recipe(folder, "unsloth", stage) for stage in STAGES}
    refused = folder / "unsloth-refused.yaml"
    refused.write_text(recipes["sft"].read_text() + "peft_layers_to_transform: [99]\n")
    code = "import sys; from recipes.unsloth.train import main; [main(path) for path in sys.argv[1:]]"
    return process(folder, "-c", code, *map(str, [*recipes.values(), refused]), fails=True)


@pytest.fixture(scope="module")
def unsloth(folder: Path, unsloth_said: str) -> Steps:
    steps = {}
    for stage in STAGES:
        assert (folder / "unsloth" / stage / "checkpoint-2").is_dir(), unsloth_said
        assert {path.name for path in (folder / "unsloth" / stage).iterdir() if path.is_dir()} == {"checkpoint-2"}
        assert (folder / "unsloth" / stage / "adapter_model.safetensors").is_file()
        state = json.loads((folder / "unsloth" / stage / "checkpoint-2" / "trainer_state.json").read_text())
        steps[stage] = [[entry["loss"], entry["grad_norm"]] for entry in state["log_history"] if "loss" in entry]
    return steps


def same(steps: list[list[float]], others: list[list[float]]) -> bool:
    return len(steps) == len(others) == 2 and all(
        loss == pytest.approx(other, abs=1e-4) and norm == pytest.approx(other_norm, rel=0.01)
        for (loss, norm), (other, other_norm) in zip(steps, others, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_axolotl_takes_the_steps_of_plain_trl(stage: str, axolotl: Steps, plain: Steps) -> None:
    assert same(axolotl[stage], plain[stage]), (axolotl[stage], plain[stage])
    assert axolotl[stage][0][0] != pytest.approx(axolotl[stage][1][0], abs=1e-3), "the second step must have learnt"


@pytest.mark.slow
@needs_unsloth
@pytest.mark.parametrize("stage", STAGES)
def test_unsloth_takes_the_steps_of_axolotl(stage: str, axolotl: Steps, unsloth: Steps) -> None:
    assert same(unsloth[stage], axolotl[stage]), (unsloth[stage], axolotl[stage])


@pytest.mark.slow
@needs_unsloth
def test_in_bf16_unsloths_first_step_is_ln_2_and_no_reference_lies_on_the_bf16_grid(
    folder: Path, axolotl: Steps, tmp_path: Path
) -> None:
    """After Axolotl, which prepares the data."""
    text = recipe(folder, "unsloth", "dpo").read_text().replace("bf16: false", "bf16: true")
    path = folder / "unsloth-bf16.yaml"
    path.write_text(text.replace(str(folder / "unsloth/dpo"), str(tmp_path / "out")))
    before = set(folder.glob("runs/reference/*.safetensors"))
    process(folder, "-m", "recipes.unsloth.train", str(path))
    state = json.loads((tmp_path / "out/checkpoint-2/trainer_state.json").read_text())
    assert abs(state["log_history"][0]["loss"] - math.log(2)) < 1e-3
    (stored,) = (load_file(file)["log_probs"] for file in set(folder.glob("runs/reference/*.safetensors")) - before)
    assert stored.numel() == 8 and not (stored == stored.bfloat16().float()).any(), stored


@pytest.mark.slow
@needs_unsloth
def test_unsloth_computes_the_reference_without_checkpointing(folder: Path) -> None:
    code = """
from recipes.unsloth.train import PairsTrainer, WholePairsTrainer
from torch import nn

def seen(self, model, inputs):
    return [vars(part).get("gradient_checkpointing") for part in model.modules()]

WholePairsTrainer.compute_ref_log_probs = seen
layer = nn.Linear(1, 1)
layer.gradient_checkpointing = "unsloth"
kinds = PairsTrainer.compute_ref_log_probs(object.__new__(PairsTrainer), nn.Sequential(layer), None)
assert kinds == [None, False] and layer.gradient_checkpointing == "unsloth", kinds
"""
    process(folder, "-c", code)


@pytest.mark.slow
@needs_unsloth
def test_unsloth_is_refused_layers_that_the_model_does_not_have(unsloth_said: str) -> None:
    assert re.search(r"refused: peft_layers_to_transform: .*99.*: the model has layers 0 to", unsloth_said), (
        unsloth_said
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sample_packing=true", "sample_packing"),
        ("pad_to_sequence_len=true", "pad_to_sequence_len"),
        ("val_set_size=0.1", "val_set_size"),
        ("rl=kto", "rl: 'kto'"),
        ("adapter=null", "adapter None"),
    ],
)
def test_what_unsloth_would_leave_out_is_refused(setting: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        compose("dpo", "smollm2-135m", "cpu", [setting], 1, engine="unsloth")


@pytest.mark.parametrize("stage", STAGES)
def test_fp32_on_a_gpu_is_refused_where_unsloth_would_train_in_bf16(stage: str) -> None:
    with pytest.raises(BadInput, match="bf16=False: on a GPU"):
        compose(stage, "qwen0.5b", "a100-80g", ["bf16=false"], 1, engine="unsloth")
    assert compose(stage, "qwen0.5b", "a100-80g", ["bf16=false"], 1).config["bf16"] is False
    assert compose(stage, "smollm2-135m", "cpu", ["bf16=false"], 1, engine="unsloth").config["bf16"] is False


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown engine 'mlx'"):
        compose("dpo", "smollm2-135m", "cpu", engine="mlx")


@pytest.mark.parametrize(
    ("stage", "settings", "rows", "steps", "warmup"),
    [
        ("sft", [], 144, 9, 0),
        ("sft", ["num_epochs=3"], 100, 19, 0),  # transformers: 3 times the 7 of an epoch
        ("sft", ["num_epochs=9"], 100, 57, 2),
        ("sft", [], 160_000, 10_000, 100),
        ("sft", ["warmup_ratio=0.2"], 160_000, 10_000, 2000),
        ("sft", ["max_steps=40", "num_epochs=10"], 1600, 40, 2),
        ("dpo", ["max_steps=40", "num_epochs=10"], 1600, 40, 2),
    ],
)
def test_unsloth_counts_and_warms_up_as_axolotl(
    stage: str, settings: list[str], rows: int, steps: int, warmup: int
) -> None:
    from axolotl.core.builders.base import TrainerBuilderBase
    from axolotl.utils.dict import DictDefault

    config = compose(stage, "smollm2-135m", "cpu", settings, engine="unsloth").config
    said = arguments(config, rows).training
    assert (said["max_steps"], said["warmup_steps"]) == (steps, warmup)
    every = math.ceil(rows * config["num_epochs"] / 16)
    total = every if stage == "dpo" else min(every, steps)
    axolotls: dict[str, int] = {}
    TrainerBuilderBase._configure_warmup_and_logging(SimpleNamespace(cfg=DictDefault(config)), total, axolotls)
    assert axolotls["warmup_steps"] == warmup


@given(st.sampled_from(STAGES), st.integers(1, 64), st.booleans(), st.sampled_from([None, 0, 5]))
def test_every_key_that_trains_reaches_unsloth(stage: str, rank: int, checkpoints: bool, warmup: int | None) -> None:
    settings = [f"gradient_checkpointing={str(checkpoints).lower()}"]
    settings += [] if warmup is None else [f"warmup_steps={warmup}"]
    config = compose(stage, "smollm2-135m", "cpu", settings, rank, engine="unsloth").config
    said = arguments(config, 300 * 16)
    assert said.lora["r"] == rank and said.lora["lora_alpha"] == 2 * rank
    assert said.loader["use_exact_model_name"] is True
    assert said.training["weight_decay"] == 0
    assert said.training["warmup_steps"] == (9 if warmup is None else warmup) and said.training["max_steps"] == 300
    assert bool(said.loader["use_gradient_checkpointing"]) is said.training["gradient_checkpointing"] is checkpoints
    given_on = {**said.loader, **said.lora, **said.training}
    for key, argument in {**LOADER, **LORA, **TRAINING, **(DPO if stage == "dpo" else {})}.items():
        if key in config and key not in READ_HERE:
            assert given_on[argument] == config[key], key
