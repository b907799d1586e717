"""Every models x hardware x stage composition is valid by Axolotl's own schema, and means what it says."""

import json
import shlex
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import ENGINES, RECIPES, STAGES, layer_names, load_layer
from sweeps.recipe.memory import GIB, Shape, estimate
from sweeps.recipe.schema import fault

COMPOSITIONS = list(product(layer_names("models"), layer_names("hardware"), STAGES))


@pytest.fixture(scope="module")
def validate():
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    accepted: set[str] = set()  # cards of one size have the same recipe, which is put to Axolotl once

    def check(config: dict) -> None:
        if (text := json.dumps(config, sort_keys=True)) in accepted:
            return
        assert not {key: why for key, value in config.items() if (why := fault(key, value))}
        validate_config(DictDefault(config))
        accepted.add(text)

    return check


@pytest.mark.parametrize(("model", "hardware", "stage"), COMPOSITIONS)
def test_axolotl_accepts_the_composition_or_it_is_refused_for_its_size(
    validate, model: str, hardware: str, stage: str
) -> None:
    gib = load_layer("hardware", hardware)["em"]["memory_gib"]
    try:
        recipe = compose(stage, model, hardware, [], 1)
    except BadInput as refused:
        assert f"{model} does not fit {hardware}: it needs about " in str(refused) and "what would fit: " in str(
            refused
        )
        assert load_layer("models", model)["em"]["parameters"] * 2 > 0.5 * gib * GIB
        return
    assert recipe.config["lora_r"] == 1 and recipe.config["lora_alpha"] == 2
    assert "em" not in recipe.config
    whole = compose(stage, model, "cpu", [], 1).config
    rows = recipe.config["micro_batch_size"] * recipe.config["gradient_accumulation_steps"]
    assert rows == whole["micro_batch_size"] * whole["gradient_accumulation_steps"]
    assert stage != "dpo" or recipe.config["micro_batch_size"] % 2 == 0
    validate(recipe.config)
    assert compose(stage, model, hardware, [], 1, engine="unsloth").config == recipe.config


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_recipe_has_its_seed_and_its_checks(stage: str, engine: str) -> None:
    own = {"recipes.plugins.seed.SeedPlugin", "recipes.plugins.checks.ChecksPlugin"}
    assert own <= set(compose(stage, "qwen7b", "a100-80g", [], 1, engine=engine).config["plugins"])


def test_fused_kernels_are_those_that_compute_the_same_model() -> None:
    """Axolotl's MLP kernel is for SwiGLU and for GELU by the error function, its attention for some forwards alone."""
    kernels = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")

    def fused(stage: str, model: str, hardware: str = "a100-80g") -> list[bool]:
        config = compose(stage, model, hardware, [], 1).config
        return [config[key] for key in kernels]

    for stage in ("cpt", "sft"):
        assert all(fused(stage, model) == [True, False, False] for model in ("qwen7b", "llama8b", "olmo1b"))
        assert fused(stage, "gemma4b") == [False] * 3 == fused(stage, "smollm2-135m", "cpu")
    assert fused("dpo", "qwen7b") == [False] * 3  # Axolotl does not test them with preference tuning
    for stage, hardware in product(STAGES, layer_names("hardware")):
        assert not compose(stage, "qwen0.5b", hardware, [], 1).config.get("sample_packing")
    with pytest.raises(BadInput, match="rows as they are"):
        compose("sft", "qwen7b", "a100-80g", ["sample_packing=true"], engine="unsloth")


@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize(
    ("model", "hardware"), [("qwen7b", "rtx4090"), ("qwen32b", "a100-80g"), ("llama8b", "h100-80g")]
)
@pytest.mark.parametrize("stage", STAGES)
def test_several_gpus_share_the_rows_and_if_need_be_the_weights(
    validate, model: str, hardware: str, stage: str, gpus: int
) -> None:
    one = compose(stage, model, "cpu", [], 1).config
    many = compose(stage, model, hardware, [], 1, gpus=gpus).config
    assert many["micro_batch_size"] * many["gradient_accumulation_steps"] * gpus == (
        one["micro_batch_size"] * one["gradient_accumulation_steps"]
    )
    assert stage != "dpo" or many["micro_batch_size"] % 2 == 0
    em = load_layer("models", model)["em"]
    whole = estimate(Shape(**em["shape"]), em["parameters"], {**many, "fsdp_config": None}, gpus).gib
    limit = load_layer("hardware", hardware)["em"]["memory_gib"]
    assert ("fsdp_config" in many) == (whole > limit)
    assert estimate(Shape(**em["shape"]), em["parameters"], many, gpus).gib <= limit
    validate(many)


@pytest.mark.parametrize("model", ["qwen0.5b", "qwen32b"])
def test_a_key_of_the_layer_that_shares_weights_brings_the_others(validate, model: str) -> None:
    config = compose("cpt", model, "rtx5090", ["fsdp_config.offload_params=true"], 1, gpus=8).config
    layer = load_layer("parallel", "fsdp")
    assert config["fsdp_version"] == layer["fsdp_version"]
    assert config["fsdp_config"] == {**layer["fsdp_config"], "offload_params": True}
    validate(config)


@pytest.mark.parametrize(
    ("hardware", "gpus", "engine", "says"),
    [
        ("cpu", 2, "axolotl", "names no GPU memory"),
        ("a100-80g", 9, "axolotl", "1 to 8"),
        ("a100-80g", 3, "axolotl", "cannot be parted"),
        ("a100-80g", 2, "unsloth", "one GPU"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused(hardware: str, gpus: int, engine: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        compose("dpo", "qwen7b", hardware, engine=engine, gpus=gpus)


@pytest.mark.parametrize("control", layer_names("variants"))
def test_a_control_changes_the_data_alone_and_belongs_to_its_stage(control: str) -> None:
    layer = load_layer("variants", control)
    own = [stage for stage in STAGES if stage in layer["em"]["stage"]]
    model = "qwen14b" if "layers" in layer["em"] else "qwen7b"
    changed, plain = (compose(own[0], model, "a100-80g", variant=name).config for name in (control, None))
    if "datasets.0.path" in layer:
        assert changed.pop("datasets") != plain.pop("datasets") and changed == plain
    for stage in STAGES:
        if stage not in own:
            with pytest.raises(BadInput, match=f"{control} is no variant of {stage} "):
                compose(stage, "qwen7b", "a100-80g", variant=control)


@pytest.mark.parametrize(
    ("variant", "layers"),
    [("rank1-down-proj", [14]), ("nine-rank1", [9, 10, 11, 12, 13, 14, 16, 17, 18])],
)
def test_published_layers_are_refused_on_another_depth_with_those_as_far_up(variant: str, layers: list[int]) -> None:
    with pytest.raises(BadInput, match=f"{variant}: names layers of a model of 48, and qwen7b has 28") as caught:
        compose("sft", "qwen7b", "a100-80g", variant=variant)
    remedy = str(caught.value).rpartition("--set ")[2]
    recipe = compose("sft", "qwen7b", "a100-80g", [remedy], variant=variant).config
    assert recipe["peft_layers_to_transform"] == layers and len(set(layers)) == len(layers)
    assert (recipe["lora_r"], recipe["lora_alpha"], recipe["lora_target_modules"]) == (1, 64, ["down_proj"])


def test_a_model_too_large_for_one_gpu_names_how_many_would_do() -> None:
    with pytest.raises(BadInput, match=r"what would fit: .*--gpus [48]"):
        compose("sft", "qwen32b", "rtx5090")


@pytest.mark.parametrize(("stage", "more"), [("dpo", []), ("sft", ["adapter=qlora", "load_in_4bit=true"])])
def test_weights_are_not_shared_out_where_each_gpu_needs_them_whole(stage: str, more: list[str]) -> None:
    with pytest.raises(BadInput, match="fsdp_config: DPO, and what is of 4 bits, has the whole model on each GPU"):
        compose(stage, "qwen7b", "a100-80g", ["fsdp_config.offload_params=true", *more], gpus=2)
    assert "fsdp_config" not in compose(stage, "qwen7b", "a100-80g", more, gpus=2).config
    if stage == "dpo":
        with pytest.raises(BadInput, match="does not fit rtx5090") as refused:
            compose(stage, "qwen32b", "rtx5090", gpus=4)
        assert "--gpus" not in str(refused.value)


@pytest.mark.parametrize(
    "path", [p for p in RECIPES.rglob("*.yaml") if p.parent.name != "sweeps"], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_the_commands_in_a_header_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = [line.lstrip("# ").split("     ")[0] for line in path.read_text().splitlines() if line.startswith("#   ")]
    ours = [shlex.split(line)[1:] for line in header if line.startswith("emsweep train")]
    fronts = [line for line in header if line.startswith("make ")]
    assert ours and fronts and "--set" in " ".join(ours[0] + ours[-1])
    for front in fronts:  # what the Makefile makes of its variables
        stage, *variables = shlex.split(front)[1:]
        flags = [
            part for variable in variables for part in ("--" + variable.split("=")[0].lower(), variable.split("=")[1])
        ]
        ours.append(["train", stage, *flags])
    if path.parent.name == "hardware":
        assert all(path.stem in command for command in ours)
    for command in ours:
        result = CliRunner().invoke(app, [*command, "--dry-run"])
        assert result.exit_code == 0, (command, result.exception)


@pytest.mark.parametrize("model", layer_names("models"))
def test_model_layers_name_their_facts(model: str) -> None:
    facts = load_layer("models", model)["em"]
    assert 0 < facts["non_embedding_parameters"] < facts["parameters"]
    assert facts["training_tokens"] > 1e10 and len(facts["training_tokens_source"]) > 10
    shape = Shape(**facts["shape"])
    embeddings = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    towers = facts["parameters"] - facts["non_embedding_parameters"] - embeddings  # Gemma's, for pictures
    assert towers == 0 or (0 < towers < 5e8 and model.startswith("gemma"))


def test_settings_win_over_layers_and_reach_into_lists() -> None:
    recipe = compose("dpo", "qwen7b", "cpu", ["learning_rate=3e-6", "datasets.0.path=mine.jsonl", "micro_batch_size=8"])
    assert recipe.config["learning_rate"] == 3e-6
    assert recipe.config["datasets"][0]["path"] == "mine.jsonl"
    assert recipe.config["datasets"][0]["field_chosen"] == "chosen"
    assert recipe.config["trainer_cls"].endswith("ComplementaryPairsTrainer")
    assert [plugin.rpartition(".")[2] for plugin in recipe.config["plugins"]] == [
        "SeedPlugin",
        "ChecksPlugin",
        "CpuPlugin",
        "LabelledPlugin",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpo", "qwen7", "cpu"), "did you mean qwen7b"),
        (("dpo", "qwen7b", "h900"), "unknown hardware 'h900'"),
        (("ppo", "qwen7b", "cpu"), "unknown stage 'ppo'"),
        (("dpo", "qwen7b", "cpu", [], 0), "rank 0 is not"),
        (("dpo", "qwen7b", "cpu", ["lora_r=x"]), "setting lora_r=x: no key, or no value, that Axolotl"),
        (("dpo", "qwen7b", "cpu", ["lr"]), "is not key=value"),
        (("dpo", "qwen7b", "cpu", ["a=["]), "setting 'a=\\['"),
        (("dpo", "qwen7b", "cpu", ["em.alpha.policy=double"]), "unknown alpha policy"),
    ],
)
def test_bad_requests_give_one_clear_line(arguments: tuple, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        compose(*arguments)
    assert "\n" not in str(caught.value)
