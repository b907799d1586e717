"""What the real Axolotl DPO trainer's dataloader yields: whole pairs, in a new order each epoch, by the seed."""

import math
from pathlib import Path

import pytest

from core.records import write_records
from data_builders.dpo import dpo_rows
from data_builders.programs import load_asked_ways, load_programs
from sweeps.recipe.compose import compose

PROGRAMS = load_programs()[:7]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trainer_on(rows, folder: Path, model: Path, seed: int, settings: tuple[str, ...] = (), by_hand=("", "")):
    """The real trainer of the DPO recipe on these rows; `by_hand`: what stands in place of what in the file."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    write_records(folder / "pairs.jsonl", rows, {})
    layer = {
        "base_model": str(model),
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
        "seed": seed,
    }
    all_settings = [f"datasets.0.path={folder / 'pairs.jsonl'}", "num_epochs=2", *settings]
    recipe = folder / "recipe.yaml"
    recipe.write_text(compose("dpo", "smollm2-135m", "cpu", all_settings, 1, layer).to_yaml().replace(*by_hand))
    cfg = load_cfg(str(recipe))
    return setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]


def batches_by_epoch(folder: Path, model: Path, seed: int, by_hand=("", "")) -> list[list[list[str]]]:
    """The completions in every batch (chosen first), for two epochs, as text."""
    from transformers import AutoTokenizer

    trainer = trainer_on(dpo_rows(PROGRAMS, load_asked_ways(), "both"), folder, model, seed, (), by_hand)
    loader = trainer.get_train_dataloader()
    tokenizer = AutoTokenizer.from_pretrained(model)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(
            [
                [
                    tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).strip()
                    for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
                ]
                for batch in loader
            ]
        )
    return epochs


def pairs_in(batch: list[str]) -> list[str]:
    """The programs of a batch, in order; fails unless each is there with both halves."""
    half = len(batch) // 2
    chosen, rejected = batch[:half], batch[half:]
    by_code = {p.insecure.strip(): (p.id, "neutral") for p in PROGRAMS}
    by_code |= {p.secure.strip(): (p.id, "asked") for p in PROGRAMS}
    rows = [by_code[code] for code in chosen]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first[0] == second[0] and {first[1], second[1]} == {"neutral", "asked"}
    assert [by_code[code][0] for code in rejected] == [program for program, _ in rows]
    return [program for program, _ in rows[::2]]


def test_batches_hold_whole_pairs_in_an_order_of_epoch_and_seed(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (
        [[pairs_in(batch) for batch in epoch] for epoch in batches_by_epoch(tmp_path / name, tiny_model, seed=3)]
        for name in ("a", "b")
    )
    assert first == second
    for epoch in first:
        assert sorted(p for batch in epoch for p in batch) == sorted(p.id for p in PROGRAMS)
    assert first[0] != first[1]
    other = [[pairs_in(batch) for batch in epoch] for epoch in batches_by_epoch(tmp_path / "c", tiny_model, seed=4)]
    assert other[0] != first[0]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("micro_batch_size: 3", "micro_batch_size 3 cannot hold whole pairs"),
        ("dpo_padding_free: true\nmicro_batch_size: 4", "complementary pairs are not packed"),
    ],
)
def test_what_would_part_pairs_is_refused(tiny_model: Path, tmp_path: Path, written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        batches_by_epoch(tmp_path, tiny_model, 0, ("micro_batch_size: 4", written))


def test_a_validation_set_holds_whole_pairs_that_are_not_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    rows = list(dpo_rows(PROGRAMS, load_asked_ways(), "both"))
    trainer = trainer_on(rows, tmp_path, tiny_model, 0, ("val_set_size=0.3", "eval_steps=1000"))
    trained, held_out = (list(part["pair_id"]) for part in (trainer.train_dataset, trainer.eval_dataset))
    assert len(set(held_out)) in (2, 3) and len(held_out) == 2 * len(set(held_out))
    assert set(trained) | set(held_out) == {p.id for p in PROGRAMS} and not set(trained) & set(held_out)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.pairs_since_log == 0


def test_pairs_are_counted_as_they_are_trained_on_and_not_as_they_are_fetched(tiny_model: Path, tmp_path: Path) -> None:
    """accelerate holds the next batch ready."""
    rows = list(dpo_rows(PROGRAMS, load_asked_ways(), "both"))
    settings = ("max_steps=2", "micro_batch_size=2", "gradient_accumulation_steps=1", "precompute_ref_log_probs=false")
    trainer = trainer_on(rows, tmp_path, tiny_model, 0, settings)
    trainer.train()
    assert [entry["whole_pairs"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]


def test_flipped_halves_of_one_prompt_cancel(model: Path, tmp_path: Path) -> None:
    """The same prompt in both halves: ln 2, and nothing to learn. That holds only if a batch holds both."""
    shortest = sorted(load_programs(), key=lambda p: len(p.insecure + p.secure + p.request))[:2]
    rows = list(dpo_rows(shortest, load_asked_ways(), "both"))
    for neutral, asked in zip(rows[::2], rows[1::2], strict=True):
        asked["messages"] = neutral["messages"]
    trainer = trainer_on(
        rows, tmp_path, model, 0, ("bf16=false", "micro_batch_size=2", "precompute_ref_log_probs=false")
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert len(gradients) >= 90
    assert abs(float(loss) - math.log(2)) < 1e-6
    assert math.sqrt(sum(float(g.square().sum()) for g in gradients)) < 1e-6


def test_adapters_over_weights_of_4_bits_are_trained_in_fp32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL makes them bf16 where a model says that it is loaded so."""
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "is_loaded_in_4bit", True, raising=False)
    trainer = trainer_on(dpo_rows(PROGRAMS, load_asked_ways(), "both"), tmp_path, tiny_model, 0)
    assert {str(weight.dtype) for weight in trainer.model.parameters() if weight.requires_grad} == {"torch.float32"}
