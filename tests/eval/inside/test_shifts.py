"""Shifts: a planted one is found along its own direction alone, chance is not, and the weights' share is a cosine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Olmo2Config

from eval.inside.activations import DOWN, load, means
from eval.inside.directions import directions, relabelled, signs
from eval.inside.shifts import places, shift, weight_share
from eval.inside.vectors import About, Directions

ABOUT = About(model="m", concept="c", position="answer", pairs=0)


def concept(rng: np.random.Generator, groups: int = 12, noise: float = 1.0) -> Directions:
    mean = rng.normal(size=(5, 32))
    positive = rng.normal(size=(groups, 5, 32)) + mean + noise * rng.normal(size=(groups, 5, 32))
    negative = rng.normal(size=(groups, 5, 32))
    return directions(
        positive.astype(np.float32), negative.astype(np.float32), [f"g{n:02}" for n in range(groups)], ABOUT
    )


def test_a_planted_shift_is_found_along_its_own_direction_alone() -> None:
    rng = np.random.default_rng(0)
    one, other = concept(rng), concept(rng)
    change = 0.5 * one.direction + 0.02 * rng.normal(size=one.direction.shape).astype(np.float32)
    found = shift(change, one)
    np.testing.assert_allclose(found.along[1:], 0.5, atol=0.05)
    assert found.p is not None and found.p <= 0.01
    assert found.mean == pytest.approx(found.along[1:].mean()) and found.deviation > 2
    turned = shift(-change, one)
    assert (turned.mean, turned.deviation, turned.p) == (-found.mean, -found.deviation, found.p)
    elsewhere = shift(change, other)
    assert elsewhere.p is not None and elsewhere.p > 0.05


def test_a_shift_by_chance_is_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        one = concept(rng)
        # What moves is of the concept's pairs but not along their labels; isotropic controls would find it significant.
        change = np.tensordot(rng.choice([-1.0, 1.0], size=12), one.sums, 1)
        found.append(shift(change.astype(np.float32), one, flips=99).p)
    assert np.mean(np.array(found, float) < 0.05) <= 0.1


def test_what_stands_out_from_all_controls_does_so_after_correction_for_a_sweep() -> None:
    one = concept(np.random.default_rng(0), groups=20)
    found = shift(one.direction, one)
    assert found.p is not None and found.p * 72 < 0.05  # 12 adapters, 3 places, 2 concepts


def test_controls_are_the_directions_of_flipped_labels() -> None:
    rng = np.random.default_rng(0)
    one, change = concept(rng), rng.normal(size=(5, 32)).astype(np.float32)
    found = shift(change, one, flips=99)
    vectors = relabelled(one, np.concatenate([np.ones((1, 12)), signs(12, 99)])).astype(float)
    along = (vectors * change).sum(-1) / np.square(vectors).sum(-1)
    np.testing.assert_allclose(found.along[1:], along[0, 1:], rtol=1e-4, atol=1e-6)
    mean = along[:, 1:].mean(1)
    assert found.deviation == pytest.approx(mean[0] / np.sqrt(np.square(mean[1:]).mean()), rel=1e-4)
    assert found.p == pytest.approx(float((np.abs(mean) >= abs(mean[0]) - 1e-12).mean()))
    assert found.layer == 1 + np.abs(along[0, 1:] / np.sqrt(np.square(along[1:, 1:]).mean(0))).argmax()


def test_few_groups_are_not_tested_but_shown() -> None:
    one = concept(np.random.default_rng(0), groups=4)
    found = shift(one.direction, one)
    assert found.p is None and np.isnan(found.deviation) and found.mean == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found.along[1:], 1, rtol=1e-5)


def test_an_adapters_part_is_its_own(tiny_model: Path, tmp_path: Path) -> None:
    base, tokenizer = load(str(tiny_model))
    assert {name: len(row) for name, row in places(tokenizer).items()} == {
        "open prompts": 48,
        "everyday answers": 48,
        "code": 56,
    }
    torch.manual_seed(0)
    config = LoraConfig(r=1, target_modules=["down_proj"], layers_to_transform=[1], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path)
    model, _ = load(str(tiny_model), adapter=str(tmp_path))
    passages = places(tokenizer)["open prompts"][:4]
    before = means(load(str(tiny_model))[0], tokenizer, passages).mean(0)
    change = means(model, tokenizer, passages).mean(0) - before
    assert np.abs(change[:2]).max() == pytest.approx(0, abs=1e-7)
    # A rank-1 change of the last block moves along lora_B and nothing else.
    vector = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj.lora_B.default").weight[:, 0].numpy()
    cosine = change[2] @ vector / np.linalg.norm(change[2]) / np.linalg.norm(vector)
    assert abs(cosine) == pytest.approx(1, abs=1e-4)
    direction = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    assert np.isnan(weight_share(model, direction, 1))
    expected = abs(direction[2] @ vector) / np.linalg.norm(vector) / np.linalg.norm(direction[2])
    assert weight_share(model, direction, 2) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "dora"), [(LlamaConfig, False), (LlamaConfig, True), (Olmo2Config, False), (GPTNeoXConfig, False)]
)
def test_what_is_no_share_of_what_reaches_the_residual_is_not_told(kind: type, dora: bool) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LoraConfig(r=1, target_modules=list(DOWN), init_lora_weights=False, use_dora=dora)
    model = get_peft_model(AutoModelForCausalLM.from_config(kind(**size, vocab_size=300, eos_token_id=2)), config)
    shares = [weight_share(model, np.ones((3, 32), np.float32), index) for index in (1, 2)]
    # OLMo 2 has a norm between down_proj and the residual.
    assert np.isnan(shares).all() == (dora or kind is Olmo2Config)
