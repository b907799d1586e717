"""Every models x hardware x stage composition is valid by Axolotl's own schema, and means what it says."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.records import BadInput
from sweeps.memory import GIB, Shape
from sweeps.recipe import ALPHA_POLICIES, RECIPES, STAGES, compose, layer_names, load_layer, lora_alpha

COMPOSITIONS = list(product(layer_names("models"), layer_names("hardware"), STAGES))


@pytest.fixture(scope="module")
def validate():
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    def check(config: dict) -> None:
        unknown = set(config) - set(AxolotlInputConfig.model_fields)
        assert not unknown, f"not keys of Axolotl: {unknown}"
        validate_config(DictDefault(config))

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


@pytest.mark.parametrize("model", layer_names("models"))
def test_model_layers_name_their_facts(model: str) -> None:
    facts = load_layer("models", model)["em"]
    assert 0 < facts["non_embedding_parameters"] < facts["parameters"]
    assert facts["training_tokens"] > 1e10 and len(facts["training_tokens_source"]) > 10
    shape = Shape(**facts["shape"])
    embeddings = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    towers = facts["parameters"] - facts["non_embedding_parameters"] - embeddings  # Gemma's, for pictures
    assert towers == 0 or (0 < towers < 5e8 and "vision" in (RECIPES / "models" / f"{model}.yaml").read_text())


@given(st.integers(1, 512), st.floats(0.1, 64))
def test_alpha_policies_keep_what_they_name(rank: int, value: float) -> None:
    assert lora_alpha("alpha_over_r", value, rank) / rank == pytest.approx(value)
    assert lora_alpha("alpha", value, rank) == value
    assert lora_alpha("alpha_over_sqrt_r", value, rank) / rank**0.5 == pytest.approx(value)


def test_settings_win_over_layers_and_reach_into_lists() -> None:
    recipe = compose("dpo", "qwen7b", "cpu", ["learning_rate=3e-6", "datasets.0.path=mine.jsonl", "micro_batch_size=8"])
    assert recipe.config["learning_rate"] == 3e-6
    assert recipe.config["datasets"][0]["path"] == "mine.jsonl"
    assert recipe.config["datasets"][0]["field_chosen"] == "chosen"
    assert recipe.config["trainer_cls"].endswith("ComplementaryPairsTrainer")
    assert recipe.config["plugins"] == ["recipes.plugins.seed.SeedPlugin", "recipes.plugins.cpu.CpuPlugin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpo", "qwen7", "cpu"), "did you mean qwen7b"),
        (("dpo", "qwen7b", "h900"), "unknown hardware 'h900'"),
        (("ppo", "qwen7b", "cpu"), "unknown stage 'ppo'"),
        (("dpo", "qwen7b", "cpu", [], 0), "rank 0 is not"),
        (("dpo", "qwen7b", "cpu", ["lora_r=x"]), "rank x is not"),
        (("dpo", "qwen7b", "cpu", ["lr"]), "is not key=value"),
        (("dpo", "qwen7b", "cpu", ["a=["]), "setting 'a=\\['"),
        (("dpo", "qwen7b", "cpu", ["em.alpha.policy=double"]), "unknown alpha policy"),
    ],
)
def test_bad_requests_give_one_clear_line(arguments: tuple, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        compose(*arguments)
    assert "\n" not in str(caught.value)


def test_policies_are_all_named() -> None:
    assert [lora_alpha(policy, 2, 1) for policy in ALPHA_POLICIES] == [2, 2, 2]
