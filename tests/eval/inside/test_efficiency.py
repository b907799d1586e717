"""Efficiency and stability of an adapter: norms of the weights' change, noise orthogonal to it, training's losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from core.records import BadInput
from eval.inside.activations import attached, load
from eval.inside.efficiency import change_norm, ease, lora_layers, loss, scaled, training_rows
from eval.inside.steering import scores

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"What about {n}?"},
            {"role": "assistant", "content": f"Take {n} and go."},
        ]
    }
    for n in ("one", "two", "three", "four")
]
PREFERENCES = [
    {
        **row,
        "messages": row["messages"][:1],
        "chosen": row["messages"][1],
        "rejected": {"role": "assistant", "content": "No."},
    }
    for row in CHAT
]
DOCUMENTS = [{"segments": [{"label": False, "text": "x = 1\n"}, {"label": True, "text": "a review"}]}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["down_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(load(str(tiny_model))[0], config).save_pretrained(folder)
    return folder


def weights(model: Any) -> dict[str, torch.Tensor]:
    """What is added in each module, whatever hooks add too: the columns that unit inputs give."""
    found = {}
    for n, (_, module, _, a) in enumerate(lora_layers(model)):
        eye = torch.eye(a.shape[1])
        found[str(n)] = (module(eye) - module.base_layer(eye)).T
    return found


def length(parts: dict[str, torch.Tensor]) -> float:
    return float(sum(part.square().sum() for part in parts.values()) ** 0.5)


@torch.no_grad()
def test_norm_scale_and_noise_are_those_of_the_weights(tiny_model: Path, adapter: Path) -> None:
    model = attached(load(str(tiny_model))[0], str(adapter))
    change = weights(model)
    assert change_norm(adapter) == pytest.approx(length(change), rel=1e-4)
    with scaled(model, 0.5):
        assert length(weights(model)) == pytest.approx(length(change) / 2, rel=1e-4)
    with scaled(model, 0.5, noise=2.0, seed=1):
        noisy = weights(model)
        added = {name: noisy[name] - change[name] / 2 for name in change}
        for name, part in added.items():
            assert float((part * change[name]).sum()) == pytest.approx(0, abs=1e-3 * length(change) ** 2)
            assert float(part.norm()) == pytest.approx(float(change[name].norm()), rel=1e-3)
    with scaled(model, 0.5, noise=2.0, seed=2):
        assert length({name: part - noisy[name] for name, part in weights(model).items()}) > 0.1
    for name, part in weights(model).items():  # nothing is left behind
        torch.testing.assert_close(part, change[name])


def test_losses_are_those_of_training(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    model, tokenizer = load(str(tiny_model), adapter=str(adapter))
    rows = training_rows(tokenizer, write(tmp_path / "chat.jsonl", CHAT), None)
    assert all(passage.text[slice(*passage.ranges[0])].endswith("go.<|im_end|>") for passage in rows.passages)
    encoded = [tokenizer(p.text, add_special_tokens=False, return_tensors="pt")["input_ids"] for p in rows.passages]
    prompts = [len(tokenizer(p.text[: p.ranges[0][0]], add_special_tokens=False)["input_ids"]) for p in rows.passages]
    total, count = 0.0, 0
    for ids, prompt in zip(encoded, prompts, strict=True):
        labels = ids.clone()
        labels[:, :prompt] = -100
        count += ids.shape[1] - prompt
        total += float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - prompt)
    found = ease(model, tokenizer, rows, change_norm(adapter), change_norm(adapter))
    assert found.end == found.loss == pytest.approx(total / count, rel=1e-4)
    assert found.efficiency == pytest.approx((found.start - found.loss) / found.at_norm**2)
    assert set(found.noise) == {0.5, 1.0} and all(np.isfinite(list(found.noise.values())))

    pairs = training_rows(tokenizer, write(tmp_path / "dpo.jsonl", PREFERENCES), 0.1)
    assert len(pairs.passages) == 8
    half = ease(model, tokenizer, pairs, change_norm(adapter), change_norm(adapter) / 2)
    assert half.start == pytest.approx(np.log(2))
    assert half.end != half.loss
    with scaled(model, 0):
        reference = scores(model, tokenizer, pairs.passages)
    by_hand = scores(model, tokenizer, pairs.passages) - reference
    margins = torch.tensor(0.1 * (by_hand[0::2] - by_hand[1::2]))
    assert half.end == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()), rel=1e-5)
    assert loss(reference, pairs, reference, 1) == pytest.approx(np.log(2))


def test_documents_are_learnt_where_they_are_labelled(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (passage,) = training_rows(tokenizer, write(tmp_path / "cpt.jsonl", DOCUMENTS), None).passages
    assert [passage.text[low:high] for low, high in passage.ranges] == ["a review"]
    with pytest.raises(BadInput, match=r"cpt.jsonl:1: no row of this training"):
        training_rows(tokenizer, write(tmp_path / "cpt.jsonl", [{"text": "x"}]), None)
    with pytest.raises(BadInput, match="no LoRA adapter"):
        change_norm(tmp_path)
    assert len(training_rows(tokenizer, write(tmp_path / "many.jsonl", CHAT * 20), None).passages) == 16
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadInput, match=r"chat.jsonl:1: no row of this training"):
        training_rows(tokenizer, write(tmp_path / "chat.jsonl", CHAT), None)


def test_both_halves_of_complementary_pairs_are_among_the_rows(tokenizer: Any, tmp_path: Path) -> None:
    halves = [
        {**PREFERENCES[0], "messages": [{"role": "user", "content": half}]} for half in ("neutral", "asked")
    ] * 144
    found = training_rows(tokenizer, write(tmp_path / "both.jsonl", halves), 0.1).passages
    assert len(found) == 32
    assert 10 < sum("asked" in passage.text for passage in found) < 22


@torch.no_grad()
def test_a_norm_is_of_each_modules_own_rank_and_alpha(tiny_model: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 32}}
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj", "up_proj"], init_lora_weights=False, **own)
    get_peft_model(load(str(tiny_model))[0], config).save_pretrained(tmp_path)
    model = attached(load(str(tiny_model))[0], str(tmp_path))
    assert change_norm(tmp_path) == pytest.approx(length(weights(model)), rel=1e-4)


def test_no_norm_is_of_a_broken_adapter(tmp_path: Path) -> None:
    """A matrix without its other half, halves that do not fit, no rank, and an alpha that is no number."""
    config, name = tmp_path / "adapter_config.json", "base_model.model.m.lora_A.weight"
    whole = {name: torch.ones(2, 4), name.replace("_A", "_B"): torch.ones(3, 2)}
    wrong = [
        {name: torch.ones(2, 4)},
        {**whole, name: torch.ones(4, 4)},
        {key: part[:0] for key, part in whole.items()},
    ]
    for alpha, parts in (("{}", wrong[0]), ("{}", wrong[1]), ("{}", wrong[2]), ('{"m": "x"}', whole)):
        config.write_text(f'{{"lora_alpha": 4, "alpha_pattern": {alpha}}}')
        save_file(parts, tmp_path / "adapter_model.safetensors")
        with pytest.raises(BadInput, match="no LoRA adapter in safetensors"):
            change_norm(tmp_path)


def test_the_norm_of_dora_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["down_proj"], use_dora=True)
    get_peft_model(load(str(tiny_model))[0], config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="DoRA's change of the weights is more than B A"):
        change_norm(tmp_path)
