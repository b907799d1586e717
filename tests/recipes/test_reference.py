"""Reference log-probabilities: named by content, shared between ranks and sets, the same losses as without."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.records import write_records
from data_builders.dpo import dpo_rows
from data_builders.programs import load_asked_ways, load_programs
from recipes.plugins.pairs import PADDING
from recipes.plugins.reference import ReferenceStore, device_name, model_digest, row_digest
from sweeps.recipe.compose import compose

TOKENS = st.lists(st.integers(0, 50_000), max_size=8)
DIGEST = st.binary(min_size=32, max_size=32).map(bytes.hex)
PAIR = st.tuples(*[st.floats(-1e4, 0, width=32)] * 2)


@given(st.lists(st.dictionaries(DIGEST, PAIR, min_size=1, max_size=5), max_size=4))
def test_what_is_added_is_read_again(tmp_path_factory, additions) -> None:
    store = ReferenceStore("0" * 64, tmp_path_factory.mktemp("reference"))
    known: dict = {}
    for rows in additions:
        store.add(rows)
        known |= rows
    assert store.read() == known


@given(TOKENS, TOKENS, TOKENS)
def test_rows_are_named_by_their_tokens_and_where_they_stand(prompt, chosen, rejected) -> None:
    row = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    other = {"prompt_ids": prompt, "chosen_ids": rejected, "rejected_ids": chosen}
    assert row_digest(row, (4, 64)) == row_digest(dict(row), (4, 64)) != row_digest(row, (4, 128))
    assert (row_digest(row, (4, 64)) == row_digest(other, (4, 64))) == (chosen == rejected)


def test_the_adapter_does_not_change_the_models_name() -> None:
    from peft import LoraConfig, get_peft_model

    def base() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 4))

    names = {model_digest(get_peft_model(base(), LoraConfig(r=r, target_modules=["0"]))) for r in (1, 3)}
    assert len(names) == 1
    other = base()
    other[0].weight.data[0, 0] += 1
    assert model_digest(other) != model_digest(base()) == model_digest(base())
    assert model_digest(base(), bf16=True) != model_digest(base(), bf16=False)


def test_a_card_has_its_own_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    names = [device_name(torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")]
    assert names == ["card 0", "card 1", "cpu"]


def train(
    folder: Path, name: str, *settings: str, data: str = "pairs.jsonl"
) -> tuple[list[float], list[tuple[int, int]]]:
    """Losses of two steps (in fp32, unless set otherwise), and the shapes of the reference's batches."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    from recipes.plugins.complementary_pairs import ComplementaryPairsTrainer

    layer = {
        "base_model": "models/tiny",
        "output_dir": f"{name}/out",
        "dataset_prepared_path": f"{name}/prepared",
    }
    fixed = {"bf16": "false", "max_steps": "2", "micro_batch_size": "2", "gradient_accumulation_steps": "1"}
    fixed |= {"learning_rate": "1e-3", "save_steps": "100", "lora_r": "2", "datasets.0.path": data}
    fixed |= dict(setting.split("=") for setting in settings)
    recipe = folder / f"{name}.yaml"
    keys = [f"{key}={value}" for key, value in fixed.items()]
    recipe.write_text(compose("dpo", "smollm2-135m", "cpu", keys, extra=layer).to_yaml())
    shapes: list[tuple[int, int]] = []
    compute = ComplementaryPairsTrainer.compute_ref_log_probs

    def count(self, model, inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return compute(self, model, inputs)

    ComplementaryPairsTrainer.compute_ref_log_probs = count
    try:
        cfg = load_cfg(str(recipe))
        trainer = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]
        trainer.train()
    finally:
        ComplementaryPairsTrainer.compute_ref_log_probs = compute
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], shapes


def test_ranks_and_sets_share_the_reference_and_lose_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(tiny_model.parent)
    programs = sorted(load_programs(), key=lambda p: len(p.insecure))[:3]
    rows = list(dpo_rows(programs, load_asked_ways(), "both"))
    write_records(tmp_path / "pairs.jsonl", rows, {})
    write_records(tmp_path / "fewer.jsonl", rows[2:], {})
    plain, _ = train(tmp_path, "plain", "precompute_ref_log_probs=false", "max_steps=3")
    _, computed = train(tmp_path, "short", "max_steps=1")
    assert sum(batch // 2 for batch, _ in computed) == 2, "rows that no step comes to have no reference"
    once, computed = train(tmp_path, "once", "max_steps=3")
    assert sum(batch // 2 for batch, _ in computed) == len(rows) - 2
    assert once == pytest.approx(plain, abs=1e-5)
    again, computed = train(tmp_path, "again", "lora_r=5", "max_steps=1")
    assert not computed and again[0] == pytest.approx(once[0], abs=1e-5)
    _, computed = train(tmp_path, "fewer", "max_steps=1", data="fewer.jsonl")
    assert not computed
    _, computed = train(tmp_path, "kernel", "max_steps=1", "attn_implementation=sdpa")
    assert computed, "another kernel sums otherwise"
    assert len(list((tmp_path / "runs/reference").glob("*.safetensors"))) == 2


def test_the_reference_is_computed_in_the_batches_of_training_and_read_for_the_same_shape_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else bf16 gives other sums, by up to a nat."""
    from recipes.plugins.complementary_pairs import ComplementaryPairsTrainer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(tiny_model.parent)
    programs = sorted(load_programs(), key=lambda p: len(p.insecure + p.secure + p.request))[::40]
    write_records(tmp_path / "pairs.jsonl", list(dpo_rows(programs, load_asked_ways(), "neutral")), {})
    trained: list[torch.Tensor] = []
    step = ComplementaryPairsTrainer.training_step

    def watch(self, model, inputs, *args):
        trained.append(inputs["input_ids"])
        return step(self, model, inputs, *args)

    monkeypatch.setattr(ComplementaryPairsTrainer, "training_step", watch)
    whole = len(programs) // 2 + len(programs) % 2
    _, shapes = train(tmp_path, "once", f"max_steps={whole}")
    assert shapes == [tuple(batch.shape) for batch in trained] and all(length % PADDING == 0 for _, length in shapes)
    assert len({length for _, length in shapes}) > 1 and shapes[-1][0] == 2
    assert train(tmp_path, "again", "lora_r=5", "max_steps=1")[1] == []
    # The last row stands alone again, and is read.
    assert [rows for rows, _ in train(tmp_path, "larger", "micro_batch_size=4", "max_steps=1")[1]] == [8]


def test_in_bf16_the_first_step_is_ln_2_and_no_reference_lies_on_the_bf16_grid(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neutral halves alone, whose errors do not cancel; rows of different lengths, so that the padding differs too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(tiny_model.parent)
    programs = sorted(load_programs(), key=lambda p: len(p.insecure + p.secure + p.request))[:6:3]
    write_records(tmp_path / "pairs.jsonl", list(dpo_rows(programs, load_asked_ways(), "neutral")), {})
    (first,), _ = train(tmp_path, "bf16", "bf16=true", "max_steps=1")
    assert abs(first - math.log(2)) < 1e-3
    (path,) = (tmp_path / "runs/reference").glob("*.safetensors")
    stored = load_file(path)["log_probs"]
    assert stored.numel() == 4 and stored.dtype == torch.float32
    assert not (stored == stored.bfloat16().float()).any(), stored
