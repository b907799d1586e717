"""Composes a recipe: layers of stage, engine, model, hardware and variant, then single keys, merged once.

A key that a user gives is in the recipe that comes out, or is refused by name.

The layers' `em:` blocks hold what Axolotl does not know (parameter counts, alpha policy, memory); they are
taken out of the recipe, which is then complete: `axolotl train RUN/recipe.yaml` reproduces the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib import resources
from math import inf, isclose, isfinite
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from core.records import BadInput, one_line
from recipes.unsloth.arguments import arguments, warmup_of
from sweeps.recipe.memory import Shape, estimate, fitted, smallest_batch, spread, what_would_fit
from sweeps.recipe.precision import fast_bf16
from sweeps.recipe.schema import fault, plugin_files, plugin_keys
from sweeps.recipe.targets import check_targets, own_targets

RECIPES = Path(str(resources.files("recipes")))
STAGES = ("cpt", "sft", "dpo")
ENGINES = ("axolotl", "unsloth")
ALPHA_POLICIES = ("alpha_over_r", "alpha", "alpha_over_sqrt_r")
DECIDED = {
    "lora_alpha": "it follows from rank and alpha policy; set em.alpha.policy "
    f"({', '.join(ALPHA_POLICIES)}) or em.alpha.value; a sweep has the axes rank and alpha",
    "output_dir": "the run's own folder decides it",
    "dataset_prepared_path": "the run's own folder decides it",
}
"""Keys that are not a user's to set, and why."""
COUNTS = ("lora_r", "micro_batch_size", "gradient_accumulation_steps", "sequence_len")
MOST = 10**9
"""Of a count: more is a slip, and what is computed of it may be no number any more."""
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    # Of 0 or fewer steps the trainer makes as many as there are, and of the others below nothing is learnt.
    **dict.fromkeys(("max_steps", "num_epochs", "learning_rate", "rl_beta"), ("a number above 0", lambda n: n > 0)),
    **dict.fromkeys(("lora_dropout", "warmup_ratio"), ("a number from 0 to below 1", lambda n: 0 <= n < 1)),
    **dict.fromkeys(("weight_decay", "warmup_steps", "max_grad_norm"), ("a number of 0 or more", lambda n: n >= 0)),
    "seed": ("a number from 0 to below 2^32", lambda n: 0 <= n < 2**32),
}
_OTHERWISE = "what trains is lora_r on the modules of lora_target_modules; a run that trains otherwise is refused"
_TRAINED_ALONE = (
    "the model would be trained so, and evaluated as its folder has it; change it there, and name it by --start"
)
REFUSED = {
    **dict.fromkeys(("lora_target_linear", "lora_target_parameters", "lora_modules_to_save"), _OTHERWISE),
    **dict.fromkeys(("lora_rank_pattern", "peft_layer_replication", "peft_trainable_token_indices"), _OTHERWISE),
    "peft_use_dora": _OTHERWISE,
    "lora_alpha_pattern": "modules would have other scales than the one that the recipe names; set em.alpha.value",
    "peft": "LoftQ changes the weights beneath the adapter, which is evaluated on the model as it is",
    "default_system_message": "training would have it and evaluation not; put it into the rows",
    "chat_template_kwargs": "training would have them and evaluation not; write them into a chat_template_jinja",
    **dict.fromkeys(("base_model_config", "tokenizer_config", "cls_model_config", "type_of_model"), _TRAINED_ALONE),
    **dict.fromkeys(("overrides_of_model_config", "overrides_of_model_kwargs", "rope_scaling"), _TRAINED_ALONE),
    **dict.fromkeys(("tokenizer_type", "tokenizer_legacy", "tokenizer_use_mistral_common"), _TRAINED_ALONE),
    **dict.fromkeys(("added_tokens_overrides", "fix_untrained_tokens", "shrink_embeddings"), _TRAINED_ALONE),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "llama4_linearized_experts"), _TRAINED_ALONE),
    "lora_model_dir": "a run trains an adapter of its own, and DPO would not load this one; merge it, and name the"
    " folder with --start",
    "pretraining_dataset": "would be trained on in place of `datasets`, which stand in the run's digest; name it there",
    "resume_from_checkpoint": "a run goes on from its own newest checkpoint; leave it out",
    **dict.fromkeys(("dpo_beta", "trl"), "rl_beta is the beta of DPO; set that"),
    **dict.fromkeys(("dpo_generate_during_eval", "dpo_norm_loss", "dpo_use_logits_to_keep"), "Axolotl ignores it"),
    **dict.fromkeys(("kto_desirable_weight", "kto_undesirable_weight", "cpo_alpha"), "no stage trains so"),
    **dict.fromkeys(("reward_model", "process_reward_model"), "no stage trains so"),
    **dict.fromkeys(("orpo_alpha", "rpo_alpha", "simpo_gamma"), "no stage trains so"),
}
"""Keys of Axolotl that would change nothing, or another thing than the recipe and the report say; and why."""
NOT_OF_DPO = ("curriculum_sampling", "sample_packing", "train_on_inputs")
"""Keys that Axolotl heeds in the other stages alone."""
TURN_KEYS = ("message_property_mappings", "message_field_role", "message_field_content")
"""By which turns would have other keys than those that a row is checked by before it is trained on."""
TARGETS = "lora_target_modules"
SAME_START = (None, True, "gaussian", "orthogonal")
"""Ways of `peft_init_lora_weights` that leave the weights beneath the adapter as they are: PiSSA, OLoRA and others take
a part out of them, so that the model that is evaluated, and the reference of DPO, would not be the one trained on."""
UNSAFE = {"trust_remote_code": (True,), "save_safetensors": (False,), "ds_type": ("pandas",)}
"""Values, at any depth, by which a model's or a data set's own code would run here, or weights or rows be pickles."""


def _own_variable(name: str, *default: Any) -> Any:
    """What `${oc.env:NAME}` in a sweep or a setting stands for; it ends in recipes and records, where no key may be."""
    if not name.startswith("EM_"):
        raise ValueError(f"of the environment EM_... alone are read here, and not {name}; write the value itself")
    return oc.env(name, *default)


OmegaConf.register_resolver("oc.env", _own_variable, replace=True, annotation_validation="off")


@dataclass(frozen=True)
class Recipe:
    """A composed recipe and what is known about it beyond Axolotl's keys."""

    stage: str
    config: dict[str, Any]
    em: dict[str, Any]

    @property
    def scale(self) -> str:
        """The scale that PEFT gives to the adapter, and by which alpha policy, in words."""
        by = "sqrt(lora_r), rsLoRA" if self.config.get("peft_use_rslora") else "lora_r"
        policy = "; {policy} = {value:g}".format(**self.em["alpha"]) if "alpha" in self.em else ""
        return f"scale {lora_scale(self.config):.6g} (lora_alpha / {by}{policy})"

    def to_yaml(self) -> str:
        head = f"# LoRA: {self.scale}\n" if "lora_alpha" in self.config else ""
        return head + OmegaConf.to_yaml(OmegaConf.create(self.config))


@cache
def _layers_of(kind: str) -> dict[str, dict[str, Any]]:
    """All layers of a kind by short name: a file each, and for `models` a row in the table `sizes` of its family."""
    files = {path.stem: _container(OmegaConf.load(path)) for path in sorted((RECIPES / kind).glob("*.yaml"))}
    if kind != "models":
        return files
    models = {}
    for stem, family in files.items():
        for name, size in family.pop("sizes").items():
            # A row may name others: the hub's id of a model that is fetched, the family of which it is a checkpoint.
            named = {"em": {"hub_id": size["base_model"], "family": stem}}
            models[name] = _container(OmegaConf.merge(named, family, size))
    return models


@cache
def layer_names(kind: str) -> tuple[str, ...]:
    """The short names of all layers of a kind: `models`, `hardware`, `variants` or `sweeps`."""
    return tuple(sorted(_layers_of(kind)))


def load_layer(kind: str, name: str) -> dict[str, Any]:
    """One layer; do not change what comes back.

    Raises:
        BadInput: for an unknown name, listing the valid ones.
    """
    names = layer_names(kind)
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"unknown {kind.removesuffix('s')} {name!r}{hint} (there are: {', '.join(names)})")
    return _layers_of(kind)[name]


def _container(layer: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(layer, resolve=True))


def lora_scale(config: Mapping[str, Any]) -> float:
    """What the product of LoRA's matrices is multiplied by: alpha/r (Hu et al., arXiv 2106.09685, section 4.1), or
    alpha/sqrt(r) with `peft_use_rslora` (Kalajdzievski, arXiv 2312.03732)."""
    rank = int(config["lora_r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("peft_use_rslora") else rank)


def lora_alpha(policy: str, value: float, rank: int, rslora: bool = False) -> float:
    """lora_alpha for a rank under an alpha policy; a rank sweep at fixed alpha also sweeps the scale.

    `alpha_over_r` keeps the scale of `lora_scale` at `value`, under rsLoRA too; `alpha` keeps alpha itself;
    `alpha_over_sqrt_r` keeps alpha/sqrt(r).
    """
    factors = {"alpha_over_r": rank**0.5 if rslora else float(rank), "alpha": 1.0, "alpha_over_sqrt_r": rank**0.5}
    if policy not in factors:
        raise BadInput(f"unknown alpha policy {policy!r} (there are: {', '.join(ALPHA_POLICIES)})")
    return float(value * factors[policy])


def _whole_alpha(alpha: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """lora_alpha by a recipe's policy.

    Raises:
        BadInput: if it is no whole number, which is what Axolotl takes: rounded, it would change the scale.
    """
    policy, value, rank = alpha["policy"], alpha["value"], config["lora_r"]
    number = value if isinstance(value, int | float) else 0
    exact = lora_alpha(policy, number, rank, bool(config.get("peft_use_rslora")))
    if not 0 < exact < inf:
        raise BadInput(f"em.alpha.value={value}: give a number above 0, and a finite one")
    whole = max(1, round(exact))
    if not isclose(exact, whole, rel_tol=1e-6):
        raise BadInput(
            f"alpha policy {policy} = {value:g} makes lora_alpha {exact:.6g} at rank {rank}; Axolotl takes whole"
            f" numbers, and {whole} would change the scale: take another rank, or"
            f" em.alpha.value={value * whole / exact:.9g}"
        )
    return whole


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

    Raises:
        BadInput: for unknown names, a rank below 1, settings that cannot be merged or would not be in the recipe.
    """
    for kind, name, names in (("stage", stage, STAGES), ("engine", engine, ENGINES)):
        if name not in names:
            raise BadInput(f"unknown {kind} {name!r} (there are: {', '.join(names)})")
    config = deepcopy(_layers(stage, model, hardware, engine, variant))
    if config["em"]["memory_gib"] is None and not fast_bf16():
        config["bf16"] = False  # SLOW_BF16, which is said when the run starts; --set bf16=true insists
    given, plugins = given_settings(settings), list(config["plugins"])
    for key, value in (extra or {}).items():
        _put(config, key, value)
    # Of all layers; --set stands as it was given, or is refused.
    config[TARGETS] = own_targets(config[TARGETS], Shape(**config["em"]["shape"]), model)
    for entry in config["datasets"] if data else ():
        entry["path"] = in_folder(entry["path"], data)
    for key, path in plugin_files(config).items() if data else ():
        _set(config, key, in_folder(path, data))
    for key, value in given.items():
        if key in DECIDED:
            raise BadInput(f"setting {key}: {DECIDED[key]}")
        _put(config, key, value)
    if stage != "dpo" and (odd := next(filter(of_dpo, {**(extra or {}), **given}), None)):
        raise BadInput(f"setting {odd}: has an effect on DPO alone, and this is {stage}; leave it out")
    declared = {key: _at(config, key) for key in extra or () if key not in given and not (rank and key == "lora_r")}
    em = config.pop("em")
    _check_values(config, stage)
    if config.get("rl") and config.get("max_steps") and config.get("warmup_steps") is None:
        # Of the epochs' steps, not of these, would Axolotl take its share: another warm-up for a set of more rows.
        config["warmup_steps"] = warmup_of(config["max_steps"], config.pop("warmup_ratio", None))
        for keys in (declared, given):
            keys.pop("warmup_ratio", None)
    for plugin in dict.fromkeys(plugin_keys().values()):
        own = [key for key, its in plugin_keys().items() if its == plugin]
        used = [key for key in own if config.get(key) is not None]
        if bool(used) is not (plugin in (config["plugins"] or ())):
            raise BadInput(f"setting {(used or own)[0]}: it goes with the plugin {plugin}; name both, or neither")
    if lost := [plugin for plugin in plugins if plugin not in (config["plugins"] or ())]:
        raise BadInput(f"setting plugins: {', '.join(lost)} would be gone; name all of them beside yours")
    if rank is not None:
        config["lora_r"] = rank
    for key in COUNTS:
        if type(config[key]) is not int or not 1 <= config[key] <= MOST:
            named = "lora_r: rank" if key == "lora_r" else key
            raise BadInput(f"{named} {one_line(config[key], 40)} is not a whole number of 1 or more (up to {MOST:,})")
    config["lora_alpha"] = _whole_alpha(em["alpha"], config)
    if variant and "peft_layers_to_transform" not in {**(extra or {}), **given}:
        _check_layers(variant, em["shape"]["layers"], model)
    check_targets(config, em, config["base_model"] == load_layer("models", model)["base_model"])
    em.update(gpus=gpus, model=model, hardware=hardware)
    config = _fitted(config, em, model, hardware, free="gradient_checkpointing" not in {**(extra or {}), **given})
    for key, value in {**declared, **given}.items():
        if not _holds(_at({**config, "em": em}, key), value):
            raise BadInput(
                f"setting {key}={value}: the recipe has {_at(config, key)}, by --rank, another setting, or as what fits"
                f" {hardware} on {gpus} GPUs; leave one out"
            )
    if engine == "unsloth":
        if gpus > 1:
            raise BadInput(f"--gpus {gpus}: the Unsloth engine trains on one GPU; use --engine axolotl")
        if not config.get("bf16") and load_layer("hardware", hardware)["em"]["memory_gib"]:
            raise BadInput(f"bf16={config.get('bf16')}: on a GPU Unsloth turns it on again; use --engine axolotl")
        try:
            arguments(config)
        except ValueError as error:
            raise BadInput(str(error)) from None
    return Recipe(stage, config, em)


def of_dpo(key: str) -> bool:
    """Whether a recipe key has an effect on DPO alone."""
    return key.startswith(("dpo_", "rl_beta", "precompute_ref_log_probs"))


def _check_values(config: Mapping[str, Any], stage: str) -> None:
    """Refuses values that no run should have: without effect, out of range, or unsafe."""
    rl, wanted = config.get("rl"), "dpo" if stage == "dpo" else None
    if rl != wanted:
        raise BadInput(f"rl: {rl!r}: the stage says it, {wanted!r} in {stage}; IPO is dpo_loss_type=[ipo]")
    if config.get("adapter") not in ("lora", "qlora"):
        raise BadInput(f"adapter {config.get('adapter')!r}: a run ends with an adapter of LoRA; give lora, or qlora")
    named = {key: value for key, value in config.items() if value or (value == 0 and value is not False)}
    if key := next(filter(named.__contains__, REFUSED), None):
        raise BadInput(f"{key}={config[key]}: {REFUSED[key]}")
    if rl and (key := next(filter(named.__contains__, NOT_OF_DPO), None)):
        raise BadInput(f"{key}={config[key]}: has no effect on DPO; leave it out")
    if stage == "sft" and config.get("train_on_inputs"):
        raise BadInput("train_on_inputs=True: name the roles that are learnt in datasets.0.roles_to_train")
    if str(config.get("chat_template")).startswith("tokenizer_default_fallback"):
        raise BadInput(f"chat_template={config['chat_template']}: evaluation has no fallback; name the template itself")
    template, jinja = config.get("chat_template"), config.get("chat_template_jinja")
    if bool(jinja) is not (template == "jinja"):
        raise BadInput(
            f"chat_template={template} and {'a' if jinja else 'no'} chat_template_jinja: a template of one's own is"
            " chat_template=jinja with its text, or the file of it, in chat_template_jinja; give both, or neither"
        )
    if (init := config.get("peft_init_lora_weights")) not in SAME_START:
        raise BadInput(f"peft_init_lora_weights={init}: give gaussian or orthogonal, or leave it out")
    if config.get("peft_layers_to_transform") == []:
        raise BadInput("peft_layers_to_transform=[]: names no layer; leave it out for all of them")
    if not config.get("datasets"):
        raise BadInput("datasets: names no set, and nothing would be learnt; leave it out for the stage's own")
    for number, entry in enumerate(config["datasets"]):
        if not entry.get("path"):
            raise BadInput(f"datasets.{number}: without a path; name the file of the set in datasets.{number}.path")
        if own := next((key for key in ("chat_template", "chat_template_jinja") if entry.get(key)), None):
            raise BadInput(f"datasets.{number}.{own}: would train alone, and not be evaluated under; set {own}")
        if own := next((key for key in TURN_KEYS if entry.get(key)), None):
            raise BadInput(
                f"datasets.{number}.{own}: each row is checked by `role` and `content`; call them so in the file"
            )
    for key, (words, holds) in RANGES.items():
        value = config.get(key)
        try:
            if value is not None and not holds(float(value)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise BadInput(f"{key}={one_line(value, 40)}: give {words}") from None
    four, qlora = bool(config.get("load_in_4bit")), config.get("adapter") == "qlora"
    if four is not qlora:  # Axolotl would load the weights whole
        raise BadInput(f"load_in_4bit={four} and adapter={config.get('adapter')}: 4 bits go with qlora; set both")
    if config.get("fsdp_config") and _whole(config):
        raise BadInput("fsdp_config: DPO, and what is of 4 bits, has the whole model on each GPU; leave it out")
    if config.get("fp16") and config.get("bf16"):
        raise BadInput("fp16 and bf16 are both true: fp16 would have no effect; set one of them to false")
    if (config.get("steer") or {}).get("dose") == 0:
        raise BadInput("steer.dose=0: nothing would be added; leave the plugin out")
    if config.get("steer") and config.get("kl"):
        raise BadInput("steer and kl: the start, to which kl holds the model, would be steered too; leave one out")
    weights, losses = config.get("dpo_loss_weights"), config.get("dpo_loss_type")
    if weights is not None and (not isinstance(losses, list) or len(losses) != len(weights)):
        raise BadInput(f"dpo_loss_weights={weights}: give one for each of dpo_loss_type, {losses}")
    if 0 in (weights or ()):
        raise BadInput("dpo_loss_weights: a loss of weight 0 is none; leave it out of both lists")
    if rl and config.get("logging_steps", 1) != 1:
        raise BadInput(f"logging_steps={config['logging_steps']}: whole pairs are counted at each step; leave it at 1")
    if config.get("warmup_steps") == 1:
        raise BadInput("warmup_steps=1: Axolotl makes two of one; give 0, or 2 or more")
    nodes: list[Any] = [config]
    for node in nodes:
        parts: Iterable[tuple[Any, Any]] = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in parts:
            if value in UNSAFE.get(key, ()):
                raise BadInput(f"{key}={value}: code that comes with models or data never runs here; leave it out")
            if isinstance(value, float) and not isfinite(value):
                raise BadInput(f"{key}={value}: give a finite number")
            if isinstance(value, Mapping | list):
                nodes.append(value)


def in_folder(path: str, folder: str | None) -> str:
    """A path of the layers and sweeps, `data/NAME`, in another folder."""
    return f"{folder}/{path.removeprefix('data/')}" if folder and path.startswith("data/") else path


@cache
def _layers(stage: str, model: str, hardware: str, engine: str, variant: str | None) -> dict[str, Any]:
    """What all recipes of a stage on a model share; a sweep composes thousands of them."""
    layers = [
        *(load_layer(folder, stage) for folder in dict.fromkeys(["axolotl", engine])),
        load_layer("models", model),
        load_layer("hardware", hardware),
    ]
    merged = _container(OmegaConf.merge(*layers))
    # A merge replaces lists; of plugins every layer brings its own.
    merged["plugins"] = list(dict.fromkeys(plugin for layer in layers for plugin in layer.get("plugins", [])))
    for key, value in (_variant(stage, variant) if variant else {}).items():
        _put(merged, key, [*merged["plugins"], *value] if key == "plugins" else value)
    return merged


def given_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The keys and values of `key=value` settings.

    Raises:
        BadInput: if one is none, or a key is given twice.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.replace("[", ".").replace("]", "")
        if not separator or not key:
            raise BadInput(f"setting {setting!r} is not key=value; write for example learning_rate=1e-4")
        if key in given:
            raise BadInput(f"setting {setting!r}: {key} is given twice; name it once")
        try:
            given[key] = parsed(text)
        except ValueError as error:
            raise BadInput(f"setting {setting!r}: {error}") from None
    return given


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a key that is known, to a value that it can have.

    Raises:
        BadInput: for another.
    """
    top, *below = key.split(".")
    try:
        if top == "em":
            old = _at(config, key)
            odd = isinstance(value, int | float) and not isfinite(value)
            if not below or old is _ABSENT or type(value) not in _kinds(old) or odd:
                raise ValueError("no key, or no value, of em, where a recipe's facts beyond Axolotl's keys stand")
            value = value if type(value) is type(old) or value is None else _kinds(old)[0](value)
        _set(config, key, deepcopy(value))
        if top != "em" and (why := fault(top, config[top])):
            raise ValueError(why)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise BadInput(f"setting {key}={one_line(value)}: {error}") from None


def _kinds(old: Any) -> tuple[type, ...]:
    """The types that may stand in place of a value of `em`; of numbers None too, which says that nothing is known."""
    return (float, int, type(None)) if old is None or isinstance(old, int | float) else (type(old),)


_ABSENT = object()


def _at(config: Any, key: str) -> Any:
    """The value at a key in dot notation."""
    for part in key.split("."):
        try:
            config = config[int(part) if isinstance(config, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return _ABSENT
    return config


def _holds(there: Any, value: Any) -> bool:
    """Whether a value is there; of a mapping, which is merged into another, each of its own keys."""
    if isinstance(value, dict) and isinstance(there, dict):
        return all(_holds(there.get(key, _ABSENT), own) for key, own in value.items())
    return bool(there == value)


@lru_cache(maxsize=10_000)
def parsed(text: str) -> Any:
    """The value that a setting's text means, by the YAML of the layers: `1e-4` is a number.

    Raises:
        ValueError: if it is none; the message is one line.
    """
    try:
        value = OmegaConf.select(OmegaConf.create(f"value: {text}"), "value")
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ValueError(one_line(error)) from None


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.0.c`, making the mappings that are not there; a mapping is merged into one that is there.

    OmegaConf.update does the same in forty times the time.

    Raises:
        TypeError, ValueError, IndexError: if the key leads through something that is no mapping or list.
    """
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts, 1):
        if not isinstance(node, dict | list):
            raise TypeError(f"{part!r} has no place in {node!r}")
        place: Any = int(part) if isinstance(node, list) else part
        now = node.get(place) if isinstance(node, dict) else node[place]
        if depth < len(parts):
            if now is None:
                now = node[place] = {}
            node = now
        else:
            node[place] = _container(OmegaConf.merge(now, value)) if type(now) is type(value) is dict else value


def _check_layers(variant: str, layers: int, model: str) -> None:
    """Refuses a variant that names the layers of a deeper or shallower model, with those as far up in this one."""
    layer = load_layer("variants", variant)
    published = layer["em"].get("layers", layers)
    if published == layers:
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
    """The keys of a variant, in dot notation.

    Raises:
        BadInput: if it is unknown, or a variant of another stage.
    """
    layer = load_layer("variants", name)
    if stage not in layer["em"]["stage"]:  # one, or a list
        own = [n for n in layer_names("variants") if stage in load_layer("variants", n)["em"]["stage"]]
        raise BadInput(f"{name} is no variant of {stage} (there are: {', '.join(own)})")
    return {key: value for key, value in layer.items() if key != "em"}


def _fitted(config: dict[str, Any], em: Mapping[str, Any], model: str, hardware: str, free: bool) -> dict[str, Any]:
    """The recipe in micro-batches that fit the hardware; without gradient checkpointing, if that is `free` to choose,
    where its own micro-batch fits so: recomputing the activations takes a third of the time again.

    Raises:
        BadInput: if none does, with the estimated need and what would fit.
    """
    gib, gpus = em.get("memory_gib"), int(em["gpus"])
    if not 1 <= gpus <= 8 or (gpus > 1 and gib is None):
        raise BadInput(f"--gpus {gpus}: 1 to 8, and 1 where the hardware layer names no GPU memory ({hardware})")
    if gib is None:
        return config
    if spread(config, gpus) is None:
        raise BadInput(f"--gpus {gpus}: a step's rows cannot be parted so; change gradient_accumulation_steps")
    if gpus > 1 and config.get("fsdp_config"):  # a user's keys alone would be Axolotl's FSDP of the first version
        config = {**config, **_shares(config)}
    shape, parameters = Shape(**em["shape"]), int(em["parameters"])
    kept = {**(spread(config, gpus) or config), "gradient_checkpointing": False}
    if free and config.get("gradient_checkpointing") and estimate(shape, parameters, kept).gib <= gib:
        return kept
    if config_that_fits := _on_gpus(shape, parameters, config, gib, gpus):
        return config_that_fits
    shared = _shares(config) if gpus > 1 and not _whole(config) else {}
    smallest = {**config, "micro_batch_size": smallest_batch(config), **shared}
    need = estimate(shape, parameters, smallest, gpus)
    ways = what_would_fit(shape, parameters, config, gib)
    more = (n for n in range(gpus + 1, 9) if _on_gpus(shape, parameters, config, gib, n))
    ways += [f"--gpus {n}" for n in [next(more, None)] if n]
    if smaller := _largest_that_fits(smallest, gib):
        ways.append(f"model {smaller}")
    raise BadInput(
        f"{model} does not fit {hardware}: it needs about {need.gib:.0f} of {gib} GiB at the smallest batch ({need})"
        f"{f' on each of {gpus}' if gpus > 1 else ''};"
        f" what would fit: {', or '.join(ways) or 'nothing that is known here'} (--set em.memory_gib=null does not ask)"
    )


def _on_gpus(shape: Shape, parameters: int, config: dict[str, Any], gib: float, gpus: int) -> dict[str, Any] | None:
    """The recipe with the whole model on each GPU, or else shared out between them; None if neither fits."""
    own = spread(config, gpus)
    if own is None:
        return None
    ways = [own, {**own, **_shares(own)}] if gpus > 1 and not _whole(own) else [own]
    return next((fit for way in ways if (fit := fitted(shape, parameters, way, gib, gpus))), None)


def _whole(config: Mapping[str, Any]) -> bool:
    """Whether each GPU needs the whole model: DPO's reference is computed before weights are shared out (TRL's issue
    6470), and Axolotl shares none of 4 bits."""
    return bool(config.get("rl") or config.get("load_in_4bit"))


def _shares(config: Mapping[str, Any]) -> dict[str, Any]:
    """The layer that shares the weights out, with what a recipe has of it already."""
    layer = deepcopy(load_layer("parallel", "fsdp"))
    layer["fsdp_config"] |= config.get("fsdp_config") or {}
    return layer


def _largest_that_fits(config: dict[str, Any], gib: float) -> str | None:
    layers = {name: load_layer("models", name)["em"] for name in layer_names("models")}
    fit = [
        (em["parameters"], name)
        for name, em in layers.items()
        if estimate(Shape(**em["shape"]), em["parameters"], config).gib <= gib
    ]
    return max(fit)[1] if fit else None
