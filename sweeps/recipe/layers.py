"""The YAML layers that recipes are made of, and the recipe that comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from core.records import BadInput

RECIPES = Path(str(resources.files("recipes")))
STAGES = ("cpt", "sft", "dpo")
ENGINES = ("axolotl", "unsloth")


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
    files = {path.stem: container(OmegaConf.load(path)) for path in sorted((RECIPES / kind).glob("*.yaml"))}
    if kind != "models":
        return files
    models = {}
    for stem, family in files.items():
        for name, size in family.pop("sizes").items():
            # A row may name others: the hub's id of a model that is fetched, the family of which it is a checkpoint.
            named = {"em": {"hub_id": size["base_model"], "family": stem}}
            models[name] = container(OmegaConf.merge(named, family, size))
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


def container(layer: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(layer, resolve=True))


def lora_scale(config: Mapping[str, Any]) -> float:
    """What the product of LoRA's matrices is multiplied by: alpha/r (Hu et al., arXiv 2106.09685, section 4.1), or
    alpha/sqrt(r) with `peft_use_rslora` (Kalajdzievski, arXiv 2312.03732)."""
    rank = int(config["lora_r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("peft_use_rslora") else rank)
