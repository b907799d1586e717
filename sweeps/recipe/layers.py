"""The YAML layers that recipes are made of, and the recipe that comes out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import BaseModel, Field, ValidationError, create_model
from yaml import YAMLError

from core.records import BadInput, bad_input
from sweeps.recipe.memory import Shape
from sweeps.recipe.refusals import DECIDED
from sweeps.recipe.schema import fault

RECIPES = Path(str(resources.files("recipes")))
Stage = Literal["cpt", "sft", "dpo"]
STAGES: tuple[str, ...] = get_args(Stage)
ENGINES = ("axolotl", "unsloth")


class Facts(BaseModel, extra="forbid"):
    """All that `em` may say: a fact by another name would be lost without a word."""


class ModelFacts(Facts):
    parameters: float = Field(gt=0, strict=True)
    shape: Shape
    family: str
    hub_id: str | None
    non_embedding_parameters: float | None = Field(default=None, gt=0, strict=True)
    training_tokens: float | None = Field(default=None, gt=0, strict=True)
    training_tokens_source: str = ""
    confounds: list[str] = []
    pretrained: bool = False
    other_modules: list[str] = []
    styles: list[str] = []
    asked: list[str] = []


class HardwareFacts(Facts):
    memory_gib: float | None = Field(gt=0, strict=True)
    tflops: float | None = Field(default=None, gt=0, strict=True)
    bandwidth: float | None = Field(default=None, gt=0, strict=True)
    accelerator: str = ""
    launcher: str = "accelerate"


class VariantFacts(BaseModel):
    stage: Stage | list[Stage]
    layers: int | None = None


class Family(BaseModel):
    sizes: dict[str, dict[str, Any]] = Field(min_length=1)


NEEDED: dict[str, dict[str, Any]] = {
    "models": {"base_model": (str, ...), "em": (ModelFacts, ...)},
    "hardware": {"em": (HardwareFacts, ...)},
    "variants": {"em": (VariantFacts, ...)},
}
"""What a layer must have for its kind, beside the keys of the recipe."""


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
    layers: dict[str, dict[str, Any]] = {}
    needed = create_model(kind, **NEEDED.get(kind, {}))
    for path in sorted((RECIPES / kind).glob("*.yaml")):
        faults = (ValidationError, OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AssertionError)
        with bad_input(path, "docs/extending.md says what it needs", *faults):
            for name, layer in _rows(path) if kind == "models" else [(path.stem, _loaded(path))]:
                if name in layers:
                    raise BadInput(f"{path}: {name} is a model of another family too; call one of them otherwise")
                needed.model_validate(layer)
                layers[name] = layer
                for key, value in layer.items() if kind != "sweeps" else ():
                    # What stands below another key is looked at when it is put there.
                    why = DECIDED.get(key) or (None if key == "em" or "." in key else fault(key, value))
                    if why:
                        raise BadInput(f"{path}: {key}: {why}")
    return layers


def _loaded(path: Path) -> dict[str, Any]:
    if not isinstance(layer := container(OmegaConf.load(path)), dict):
        raise TypeError("is a list, and no keys with values")
    return layer


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    family = _loaded(path)
    sizes = Family.model_validate(family).sizes
    del family["sizes"]
    for name, size in sizes.items():
        # A row may name others: the hub's id of a model that is fetched, the family of which it is a checkpoint.
        named = {"em": {"hub_id": size.get("base_model"), "family": path.stem}}
        yield name, container(OmegaConf.merge(named, family, size))


@cache
def layer_names(kind: str) -> tuple[str, ...]:
    """The short names of all layers of a kind: `models`, `hardware`, `variants` or `sweeps`."""
    return tuple(sorted(_layers_of(kind)))


def load_layer(kind: str, name: str) -> dict[str, Any]:
    """One layer; do not change what comes back. BadInput for an unknown name, listing the valid ones."""
    names = layer_names(kind)
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"unknown {kind.removesuffix('s')} {name!r}{hint} (there are: {', '.join(names)})")
    return _layers_of(kind)[name]


def learns_preferences(stage: str) -> bool:
    """Whether a stage's recipe names a preference objective (`rl`), which heeds keys that the others ignore."""
    return bool(load_layer("axolotl", stage).get("rl"))


def container(layer: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(layer, resolve=True))


def lora_scale(config: Mapping[str, Any]) -> float:
    """What the product of LoRA's matrices is multiplied by: alpha/r (Hu et al., arXiv 2106.09685, section 4.1), or
    alpha/sqrt(r) with `peft_use_rslora` (Kalajdzievski, arXiv 2312.03732)."""
    rank = int(config["lora_r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("peft_use_rslora") else rank)
