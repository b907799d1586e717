"""Every variant with every family under every engine: a recipe that Axolotl knows, or a refusal that says why."""

import pytest
from omegaconf import OmegaConf

from core.records import BadInput
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import ENGINES, RECIPES, STAGES, layer_names, load_layer
from sweeps.recipe.schema import fault, plugin_keys

FAMILIES = {path.stem: list(OmegaConf.load(path)["sizes"]) for path in sorted((RECIPES / "models").glob("*.yaml"))}
MODELS = [*(sizes[0] for sizes in FAMILIES.values()), "qwen14b"]  # with the layers that published variants name
VARIANTS = [
    (name, stage)
    for name in layer_names("variants")
    for stage in STAGES
    if stage in load_layer("variants", name)["em"]["stage"]
]


def refusal(variant: str, engine: str, model: str) -> str | None:
    """Why this cannot be; None if it can."""
    layer = load_layer("variants", variant)
    if engine == "unsloth" and (own := sorted(plugin_keys().keys() & layer.keys())):
        return f"the Unsloth engine does not know {', '.join(own)}; leave it out, or use ENGINE=axolotl"
    em = load_layer("models", model)["em"]
    if layer["em"].get("layers", em["shape"]["layers"]) != em["shape"]["layers"]:
        return f"{model} has {em['shape']['layers']}; as far up are --set peft_layers_to_transform="
    towers = em.get("other_modules", ())
    targets = layer.get("lora_target_modules", ())
    if any(name.rpartition(".")[2] in targets for name in towers):
        return "lora_target_modules match outside the language model"
    return None


@pytest.mark.parametrize(("variant", "stage"), VARIANTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_variant_composes_or_is_refused_with_the_reason(variant: str, stage: str, engine: str) -> None:
    composed = 0
    for model in MODELS:
        if why := refusal(variant, engine, model):
            with pytest.raises(BadInput) as caught:
                compose(stage, model, "cpu", engine=engine, variant=variant)
            assert why in str(caught.value) and "\n" not in str(caught.value)
            continue
        config = compose(stage, model, "cpu", engine=engine, variant=variant).config
        assert not {key: why for key, value in config.items() if (why := fault(key, value))}
        plain = compose(stage, model, "cpu", engine=engine).config
        assert config != plain and set(plain["plugins"]) <= set(config["plugins"])
        composed += 1
    assert composed or engine == "unsloth"


@pytest.mark.parametrize(
    ("stage", "variant", "settings", "says"),
    [
        ("cpt", "kl", [], "kl is no variant of cpt"),
        ("sft", "sft-anchor", [], "sft-anchor is no variant of sft"),
        ("sft", "kl", ["kl.weight=-1"], "setting kl.weight=-1: no key, or no value"),
        ("sft", "kl", ["kl.strength=1"], "setting kl.strength=1: no key, or no value"),
        ("sft", None, ["kl.weight=1"], "setting kl: it goes with the plugin recipes.plugins.kl.KlPlugin"),
        ("dpo", "sft-anchor", ["dpo_loss_weights.2=1"], "setting dpo_loss_weights.2=1"),
        ("dpo", "sft-anchor", ["dpo_loss_weights.1=0"], "dpo_loss_weights: a loss of weight 0 is none"),
        ("sft", "preventative-steering", ["kl={prompts: data/everyday.jsonl, weight: 1.0}"], "steer and kl: the start"),
        ("dpo", "sft-anchor", ["dpo_loss_weights=[1.0]"], "give one for each of dpo_loss_type"),
        ("dpo", None, ["dpo_loss_weights=[1.0]"], "give one for each of dpo_loss_type"),
        ("sft", "preventative-steering", ["steer.dose=0"], "steer.dose=0: nothing would be added"),
    ],
)
def test_what_would_be_lost_is_refused(stage: str, variant: str | None, settings: list[str], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        compose(stage, "smollm2-135m", "cpu", settings, variant=variant)
    assert says in str(caught.value)


@pytest.mark.parametrize("model", MODELS[:-1])
def test_the_layers_to_name_in_a_shallower_model_are_as_many(model: str) -> None:
    with pytest.raises(BadInput) as caught:
        compose("sft", model, "cpu", variant="nine-rank1")
    remedy = str(caught.value).rpartition("--set ")[2]
    config = compose("sft", model, "cpu", [remedy], variant="nine-rank1").config
    assert len(set(config["peft_layers_to_transform"])) == 9
