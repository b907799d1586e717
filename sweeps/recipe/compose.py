"""Composes a recipe: layers of stage, engine, model, hardware and variant, then single keys, merged once.

A key that a user gives is in the recipe that comes out, or is refused by name.

The layers' `em:` blocks hold what Axolotl does not know (parameter counts, alpha policy, memory); they are
taken out of the recipe, which is then complete: `axolotl train RUN/recipe.yaml` reproduces the run.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from core.records import BadInput, one_line
from recipes.unsloth.arguments import arguments, warmup_of
from sweeps.recipe.alpha import whole_alpha
from sweeps.recipe.fit import in_memory
from sweeps.recipe.layers import ENGINES, STAGES, Recipe, container, layer_names, learns_preferences, load_layer
from sweeps.recipe.memory import Shape, smallest_batch
from sweeps.recipe.precision import fast_bf16
from sweeps.recipe.refusals import COUNTS, DECIDED, MOST, check_values, of_dpo
from sweeps.recipe.schema import plugin_files, plugin_keys
from sweeps.recipe.settings import at, given_settings, holds, put, set_key
from sweeps.recipe.targets import check_targets, own_targets


def compose(
    stage: str,
    model: str,
    hardware: str,
    settings: Sequence[str] = (),
    rank: int | None = None,
    extra: Mapping[str, Any] | None = None,
    engine: str = "axolotl",
    gpus: int = 1,
    variant: str | None = None,
    data: str | None = None,
) -> Recipe:
    """Merges a recipe's layers; later ones win: stage, engine, model, hardware, variant, `extra`, settings, rank.

    Args:
        settings: `key=value` in OmegaConf's dot notation, e.g. `datasets.0.path=mine.jsonl`.
        rank: LoRA rank, 1 or more.
        extra: a layer of keys (in dot notation too) that are in no file here: of a sweep, or the start model.
        engine: what trains, axolotl or unsloth; the keys mean the same under both.
        gpus: 1 to 8. An optimiser step sees the same rows with any number. Each has the whole model (DDP), or its
            share of it where that does not fit (recipes/parallel/fsdp.yaml).
        variant: a layer of recipes/variants that belongs to the stage.
        data: the folder in place of `data/` in the layers' data sets.

    BadInput for unknown names, a rank below 1, settings that cannot be merged or would not be in the recipe.
    """
    for kind, name, names in (("stage", stage, STAGES), ("engine", engine, ENGINES)):
        if name not in names:
            raise BadInput(f"unknown {kind} {name!r} (there are: {', '.join(names)})")
    config = deepcopy(_layers(stage, model, hardware, engine, variant))
    if config["em"]["memory_gib"] is None and not fast_bf16():
        config["bf16"] = False  # SLOW_BF16, which is said when the run starts; --set bf16=true insists
    given, extra, plugins = given_settings(settings), extra or {}, list(config["plugins"])
    for key, value in extra.items():
        put(config, key, value)
    # Of all layers; --set stands as it was given, or is refused.
    config["lora_target_modules"] = own_targets(config["lora_target_modules"], Shape(**config["em"]["shape"]), model)
    for entry in [*config["datasets"], *(config.get("test_datasets") or ())] if data else ():
        if entry.get("path"):
            entry["path"] = in_folder(entry["path"], data)
    for key, path in plugin_files(config).items():
        set_key(config, key, in_folder(path, data))
    for key, value in given.items():
        if key in DECIDED:
            raise BadInput(f"setting {key}: {DECIDED[key]}")
        given[key] = put(config, key, value)
    named = {**extra, **given}
    if not learns_preferences(stage) and (odd := next(filter(of_dpo, named), None)):
        raise BadInput(f"setting {odd}: has an effect on DPO alone, and this is {stage}; leave it out")
    shown = {key: given.get(key, at(config, key)) for key in named if key in given or not (rank and key == "lora_r")}
    em = config.pop("em")
    check_values(config, stage)
    if config.get("rl") and config.get("max_steps") and config.get("warmup_steps") is None:
        # Of the epochs' steps, not of these, would Axolotl take its share: another warm-up for a set of more rows.
        config["warmup_steps"] = warmup_of(config["max_steps"], config.pop("warmup_ratio", None))
        shown.pop("warmup_ratio", None)
    for plugin in dict.fromkeys(plugin_keys().values()):
        own = [key for key, its in plugin_keys().items() if its == plugin]
        used = [key for key in own if config.get(key) is not None]
        if bool(used) is not (plugin in (config["plugins"] or ())):
            raise BadInput(f"setting {(used or own)[0]}: it goes with the plugin {plugin}; name both, or neither")
    if lost := [plugin for plugin in plugins if plugin not in (config["plugins"] or ())]:
        raise BadInput(f"setting plugins: {', '.join(lost)} would be gone; name all of them beside yours")
    if stage == "dpo" and config.get("trainer_cls") != (trainer := load_layer("axolotl", stage)["trainer_cls"]):
        raise BadInput(f"trainer_cls={config.get('trainer_cls')}: {trainer} alone keeps pairs whole; leave it out")
    if rank is not None:
        config["lora_r"] = rank
    for key in COUNTS:
        if type(config[key]) is not int or not 1 <= config[key] <= MOST:
            called = "lora_r: rank" if key == "lora_r" else key
            raise BadInput(f"{called} {one_line(config[key], 40)} is not a whole number of 1 or more (up to {MOST:,})")
    if (rows := config["micro_batch_size"]) % smallest_batch(config):
        raise BadInput(f"micro_batch_size={rows}: a micro-batch of DPO holds whole pairs; give an even number")
    config["lora_alpha"] = whole_alpha(em["alpha"], config)
    if variant and "peft_layers_to_transform" not in named:
        _check_layers(variant, em["shape"]["layers"], model)
    check_targets(config, em, config["base_model"] == load_layer("models", model)["base_model"])
    em.update(gpus=gpus, model=model, hardware=hardware)
    config = in_memory(config, em, model, hardware, free="gradient_checkpointing" not in named)
    for key, value in shown.items():
        if not holds(at({**config, "em": em}, key), value):
            raise BadInput(
                f"setting {key}={value}: the recipe has {at(config, key)}, by --rank, another setting, or as what fits"
                f" {hardware} on {gpus} GPUs; leave one out"
            )
    on_cpu = not load_layer("hardware", hardware)["em"]["memory_gib"]
    if on_cpu and config.get("bf16") == "auto":
        raise BadInput("bf16=auto: without a GPU Axolotl would train in fp16; set bf16 to true or false")
    if engine == "unsloth":
        if gpus > 1:
            raise BadInput(f"--gpus {gpus}: the Unsloth engine trains on one GPU; use --engine axolotl")
        if not config.get("bf16") and not on_cpu:
            raise BadInput(f"bf16={config.get('bf16')}: on a GPU Unsloth turns it on again; use --engine axolotl")
        try:
            arguments(config)
        except ValueError as error:
            raise BadInput(str(error)) from None
    return Recipe(stage, config, em)


def in_folder(path: str, folder: str | None) -> str:
    """A path of the layers and sweeps, `data/NAME`, in another folder."""
    return f"{folder}/{path.removeprefix('data/')}" if folder and path.startswith("data/") else path


@cache
def _layers(stage: str, model: str, hardware: str, engine: str, variant: str | None) -> dict[str, Any]:
    """What all recipes of a stage on a model share; a sweep composes thousands of them."""
    named = dict.fromkeys([("axolotl", stage), (engine, stage), ("models", model), ("hardware", hardware)])
    layers = [load_layer(kind, name) for kind, name in named]
    merged = container(OmegaConf.merge(*layers))
    # A merge replaces lists; of plugins every layer brings its own.
    merged["plugins"] = list(dict.fromkeys(plugin for layer in layers for plugin in layer.get("plugins", [])))
    for key, value in (_variant(stage, variant) if variant else {}).items():
        put(merged, key, [*merged["plugins"], *value] if key == "plugins" else value)
    return merged


def _check_layers(variant: str, layers: int, model: str) -> None:
    """Refuses a variant that names the layers of a deeper or shallower model, with those as far up in this one."""
    layer = load_layer("variants", variant)
    published = layer["em"].get("layers", layers)
    if published == layers or "peft_layers_to_transform" not in layer:
        return
    found: list[int] = []
    for number in layer["peft_layers_to_transform"]:  # what stands together stays so
        together = bool(found) and number - 1 in layer["peft_layers_to_transform"]
        place = round(number * layers / published)
        found.append(found[-1] + 1 if together else max(place, found[-1] + 1 if found else 0))
    beyond = max(0, found[-1] + 1 - layers)  # of a model of hardly more layers than are named
    found = [number - beyond for number in found]
    raise BadInput(
        f"{variant}: names layers of a model of {published}, and {model} has {layers}; as far up are"
        f" --set peft_layers_to_transform={str(found).replace(' ', '')}"
    )


def _variant(stage: str, name: str) -> dict[str, Any]:
    """The keys of a variant of this stage (else BadInput), in dot notation, without what `em` says of itself."""
    layer = load_layer("variants", name)
    if stage not in layer["em"]["stage"]:  # one, or a list
        own = [n for n in layer_names("variants") if stage in load_layer("variants", n)["em"]["stage"]]
        raise BadInput(f"{name} is no variant of {stage} (there are: {', '.join(own)})")
    own_em = {f"em.{key}": value for key, value in layer["em"].items() if key not in ("stage", "layers")}
    return {**own_em, **{key: value for key, value in layer.items() if key != "em"}}
