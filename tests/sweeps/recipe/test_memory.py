"""The estimate of GPU memory is that of a trace of the real classes, and counts adapters as peft does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import BadInput
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import load_layer
from sweeps.recipe.memory import (
    GIB,
    SCORED,
    Shape,
    adapter_parameters,
    estimate,
    evaluation_batch,
    fitted,
    table_modules,
    what_would_fit,
)
from sweeps.recipe.targets import own_targets

QWEN7B = load_layer("models", "qwen7b")["em"]
SHAPE, PARAMETERS = Shape(**QWEN7B["shape"]), QWEN7B["parameters"]
RECIPE = compose("dpo", "qwen7b", "h200-141g", ["gradient_checkpointing=true"]).config


@pytest.mark.parametrize(
    ("rank", "settings", "expected"),
    [
        (1, [], 190_080),  # what peft made of these recipes (docs/demo.md)
        (16, [], 3_041_280),
        (16, ["lora_target_modules=[gate_proj,up_proj,down_proj,q_proj,k_proj,v_proj,o_proj]"], 4_884_480),
        (1, ["lora_target_modules=[down_proj]", "peft_layers_to_transform=[20]"], 1536 + 576),
    ],
)
def test_adapter_parameters_are_those_of_peft(rank: int, settings: list[str], expected: int) -> None:
    small = Shape(**load_layer("models", "smollm2-135m")["em"]["shape"])
    assert adapter_parameters(small, compose("dpo", "smollm2-135m", "cpu", settings, rank).config) == expected


def pattern(targets: str) -> list[str]:
    return [f"lora_target_modules='{targets}'"]


@pytest.mark.parametrize(
    ("model", "settings", "modules"),
    [
        ("qwen7b", pattern(r".*\.(gate|up|down)_proj"), {"gate_proj": 28, "up_proj": 28, "down_proj": 28}),
        ("qwen7b", pattern(r".*\.mlp\..*"), {"gate_proj": 28, "up_proj": 28, "down_proj": 28}),
        (
            "qwen7b",
            pattern(".*_proj"),
            dict.fromkeys([*"qkvo"], 28) | {"gate_proj": 28, "up_proj": 28, "down_proj": 28},
        ),
        ("qwen7b", ["lora_target_modules=[lm_head]"], {"lm_head": 1}),
        ("qwen7b", ["lora_target_modules=[layers.1.mlp.down_proj,o_proj]"], {"down_proj": 1, "o_proj": 28}),
        ("qwen7b", ["lora_target_modules=[down_proj]", "peft_layers_to_transform=[1,1,1]"], {"down_proj": 1}),
        ("qwen7b", ["lora_target_modules=[down_proj,lm_head]", "peft_layers_to_transform=[1]"], {"down_proj": 1}),
        ("gemma4b", pattern(r".*language_model.*\.(q|down)_proj"), {"q_proj": 34, "down_proj": 34}),
        ("pythia-410m-80b", pattern(r"gpt_neox\.layers\.(3|4)\.mlp\..*"), {"dense_h_to_4h": 2, "dense_4h_to_h": 2}),
    ],
)
def test_adapters_are_counted_where_peft_puts_them(model: str, settings: list[str], modules: dict[str, int]) -> None:
    """Patterns too, modules by their whole path, the output, and a layer that is named twice."""
    shape = Shape(**load_layer("models", model)["em"]["shape"])
    config = compose("sft", model, "h200-141g", settings, 2).config
    named = {name if "_" in name else f"{name}_proj": count for name, count in modules.items()}
    expected = 2 * sum(count * sum(shape.linear(name)) for name, count in named.items())
    assert adapter_parameters(shape, config) == expected > 0


def test_what_a_pattern_adds_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(BadInput, match=r"qwen7b does not fit rtx4090: it needs about .*adapters 1\d"):
        compose("sft", "qwen7b", "rtx4090", pattern(".*_proj"), 512)


@pytest.mark.parametrize("variant", [None, "em-paper"])
def test_the_modules_of_a_family_of_its_own_are_those_of_its_class(variant: str | None) -> None:
    from torch.nn import Linear
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from recipes.plugins.refusals import check_targets

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=300))
    shape = load_layer("models", "pythia-160m-21b")["em"]["shape"]
    linear = {name for name, module in network.named_modules() if isinstance(module, Linear)}
    assert linear == {*table_modules(2, False, (), tuple(shape["modules"])), "lm_head"}
    small = Shape(**{**shape, "layers": 2, "hidden": 32, "intermediate": 64, "heads": 2, "kv_heads": 2, "head_dim": 16})
    recipe = compose("sft", "pythia-160m-21b", "cpu", variant=variant).config
    trained = check_targets(network, recipe["lora_r"], recipe["lora_target_modules"])
    assert adapter_parameters(small, recipe) == trained == recipe["lora_r"] * 2 * (192 + (192 if variant else 0))


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


CLASSES = {"qwen0.5b": "qwen2", "qwen7b": "qwen2", "qwen32b": "qwen2", "llama8b": "llama", "gemma4b": "gemma3_text"}
CLASSES |= {"olmo7b": "olmo2", "smollm2-360m": "llama", "pythia-410m-80b": "gpt_neox"}
MLP = ["gate_proj", "up_proj", "down_proj"]
ONE_LAYER = {"rl": "dpo", "lora_target_modules": ["down_proj"], "peft_layers_to_transform": [12]}


def _agree(model: str, layers: int | None = None, **settings: object) -> None:
    from benchmarks.memory_trace import architecture, trace

    shape = load_layer("models", model)["em"]["shape"]
    shape = {**shape, "layers": layers or shape["layers"]}
    recipe = {**RECIPE, "micro_batch_size": 2, "lora_target_modules": MLP, **settings}
    recipe["lora_target_modules"] = own_targets(recipe["lora_target_modules"], Shape(**shape), model)
    traced, parameters = trace(architecture(CLASSES[model], shape), recipe, "|".join(recipe["lora_target_modules"]))
    need = estimate(Shape(**shape), parameters, recipe)
    assert need.weights + need.adapters + need.activations + need.logits == pytest.approx(traced, rel=0.1)


@pytest.mark.parametrize("model", CLASSES)
def test_the_estimate_is_the_trace_of_the_models_class(model: str) -> None:
    """What grows with the layers is counted right on two of them; whole models are traced below."""
    for stage, rank, checkpointing in itertools.product((None, "dpo"), (1, 32), (True, False)):
        targets = [*MLP, "q_proj", "k_proj", "v_proj", "o_proj"] if rank == 32 else MLP
        quantised = (stage == "dpo") ^ (rank == 1) ^ checkpointing  # each pair of settings meets in all its values
        settings = {"rl": stage, "lora_r": rank, "lora_target_modules": targets, "load_in_4bit": quantised}
        _agree(model, 2, **settings, gradient_checkpointing=checkpointing, sequence_len=256)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("qwen7b", {"rl": "dpo", "gradient_checkpointing": False}),
        ("gemma4b", {"rl": None, "gradient_checkpointing": True}),
        ("qwen0.5b", {"rl": None, "gradient_checkpointing": False, "bf16": False, "lora_r": 16}),
        ("smollm2-360m", {"rl": "dpo", "gradient_checkpointing": True, "bf16": False}),
        ("qwen0.5b", {"rl": "dpo", "lora_target_modules": ["down_proj"], "gradient_checkpointing": False}),
        ("qwen0.5b", {**ONE_LAYER, "gradient_checkpointing": False}),
    ],
)
def test_the_estimate_is_the_trace_of_whole_models(model: str, settings: dict[str, object]) -> None:
    _agree(model, **settings)


def test_activations_are_recomputed_only_where_they_do_not_fit() -> None:
    composed = {card: compose("dpo", "qwen7b", card).config for card in ("a100-80g", "rtx5090")}
    assert {card: config["gradient_checkpointing"] for card, config in composed.items()} == {
        "a100-80g": False,
        "rtx5090": True,
    }
    assert composed["a100-80g"]["micro_batch_size"] == 4
    insisted = compose("dpo", "qwen7b", "a100-80g", ["gradient_checkpointing=true"]).config
    assert insisted["gradient_checkpointing"] is True


def test_a_batch_that_is_evaluated_counts_what_lm_eval_holds_of_a_logit(tokenizer) -> None:
    """A trace of its own scoring of two batches: the log-softmax of the first is there until the second has its own."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.memory_trace import LiveBytes

    rows, tokens, vocabulary = 4, 63, 49_152
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=1, max_position_embeddings=128, **sizes)
    network = LlamaForCausalLM(config).to(torch.bfloat16)
    lm = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=rows, softmax_dtype="float32")
    requests = [(("", ""), [row] * (tokens // 2), [row] * (tokens // 2 + 2)) for row in range(2 * rows)]
    with LiveBytes() as live:
        lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert live.peak == pytest.approx(rows * tokens * vocabulary * SCORED, rel=0.1)
    assert [evaluation_batch(SHAPE, PARAMETERS, gib) for gib in (None, 24, 32, 40, 80, 10_000)] == [8, 3, 6, 8, 24, 64]
