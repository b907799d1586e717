"""The estimate of GPU memory grows with what it should, and counts adapters as peft does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.recipe.compose import compose, load_layer
from sweeps.recipe.memory import GIB, Shape, adapter_parameters, estimate, fitted, what_would_fit

QWEN7B = load_layer("models", "qwen7b")["em"]
SHAPE, PARAMETERS = Shape(**QWEN7B["shape"]), QWEN7B["parameters"]
RECIPE = compose("dpo", "qwen7b", "h200-141g").config


@pytest.mark.parametrize(
    ("rank", "settings", "expected"),
    [
        (1, [], 190_080),  # what peft made of these recipes (docs/demo.md)
        (16, [], 3_041_280),
        (16, ["lora_target_modules=[gate_proj,up_proj,down_proj,q_proj,k_proj,v_proj,o_proj]"], 4_884_480),
        (16, ["lora_target_linear=true"], 4_884_480),
        (1, ["lora_target_modules=[down_proj]", "peft_layers_to_transform=[20]"], 1536 + 576),
    ],
)
def test_adapter_parameters_are_those_of_peft(rank: int, settings: list[str], expected: int) -> None:
    small = Shape(**load_layer("models", "smollm2-135m")["em"]["shape"])
    assert adapter_parameters(small, compose("dpo", "smollm2-135m", "cpu", settings, rank).config) == expected


@given(st.sampled_from([("micro_batch_size", 8), ("sequence_len", 2048), ("lora_r", 64)]), st.booleans())
def test_more_needs_more(change: tuple[str, int], checkpointing: bool) -> None:
    recipe = {**RECIPE, "gradient_checkpointing": checkpointing}
    assert estimate(SHAPE, PARAMETERS, {**recipe, change[0]: change[1]}).gib > estimate(SHAPE, PARAMETERS, recipe).gib


def test_savings_save() -> None:
    whole = estimate(SHAPE, PARAMETERS, RECIPE)
    assert estimate(SHAPE, PARAMETERS, {**RECIPE, "load_in_4bit": True}).weights < 0.45 * whole.weights
    assert estimate(SHAPE, PARAMETERS, {**RECIPE, "gradient_checkpointing": False}).activations > 5 * whole.activations
    assert estimate(SHAPE, PARAMETERS, {**RECIPE, "optimizer": "adamw_8bit"}).adapters < whole.adapters
    assert whole.weights == pytest.approx(2 * PARAMETERS)
    assert whole.gib > whole.weights / GIB


@given(st.floats(16, 200))
def test_what_is_fitted_fits_and_keeps_the_rows_of_a_step(gib: float) -> None:
    config = fitted(SHAPE, PARAMETERS, RECIPE, gib)
    if config is None:
        for words in what_would_fit(SHAPE, PARAMETERS, RECIPE, gib):
            assert words.startswith("--set ")
        return
    assert estimate(SHAPE, PARAMETERS, config).gib <= gib
    rows = [c["micro_batch_size"] * c["gradient_accumulation_steps"] for c in (config, RECIPE)]
    assert rows[0] == rows[1] and config["micro_batch_size"] % 2 == 0


def test_fsdp_shares_the_weights() -> None:
    shared = estimate(SHAPE, PARAMETERS, {**RECIPE, "fsdp_config": {"offload_params": False}}, gpus=4)
    assert shared.weights == pytest.approx(2 * PARAMETERS / 4)
