"""Axolotl's schema, with unknown keys refused: Axolotl drops a key that it does not know without a word.

It stands in a file, for Axolotl takes seconds to import: `python -m sweeps.recipe.schema` writes it anew.
"""

import json
from collections.abc import Mapping, Set
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, cast

FILE = Path(__file__).with_name("axolotl_schema.json")
PLUGINS = (
    *("recipes.plugins.kl.KlPlugin", "recipes.plugins.steer.SteerPlugin"),
    "axolotl.integrations.liger.LigerPlugin",  # no recipe names it: benchmarks/gpu.py tries what it gains
)
"""Plugins that have recipe keys of their own: Axolotl knows those where it is told of the plugin, nowhere else."""
LEFT_OUT = {"title", "description", "default", "examples", "deprecated", "required"}
"""A part of a recipe is checked too, so that nothing is required."""


@cache
def _schema() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def keys() -> Set[str]:
    """The keys at the top of a recipe."""
    return cast("Set[str]", _schema()["properties"].keys())


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # imported here and below: most commands need it not

    return Draft202012Validator(_schema())


def plugin_keys() -> dict[str, str]:
    """The plugin, by each recipe key that is its own."""
    return cast("dict[str, str]", _schema()["x-plugins"])


def plugin_files(config: Mapping[str, Any]) -> dict[str, str]:
    """The files that keys of our plugins name in a recipe, by key in dot notation."""
    schema, found = _schema(), dict[str, str]()
    for key in sorted(plugin_keys().keys() & config.keys()):
        for option in schema["properties"][key]["anyOf"]:
            parts = schema["$defs"].get(option.get("$ref", "").rpartition("/")[2], {}).get("properties", {})
            paths = [name for name, about in parts.items() if about.get("format") == "path"]
            found |= {f"{key}.{name}": str(config[key][name]) for name in paths if (config[key] or {}).get(name)}
    return found


def fault(key: str, value: Any) -> str | None:
    """What Axolotl's schema has against a key at the top of a recipe, or its value; None for nothing."""
    if key not in keys():
        near = get_close_matches(key, keys(), n=1)
        return f"unknown to Axolotl's schema{f'; did you mean {near[0]}?' if near else ''}"
    return _fault(key, json.dumps(value))


@lru_cache(maxsize=10_000)
def _fault(key: str, value: str) -> str | None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors({key: json.loads(value)}))
    if error is None:
        return None
    why = f": {error.message}" if error.validator == "additionalProperties" else ""
    return f"no key, or no value, that Axolotl's schema has{why}"


def axolotl_schema() -> dict[str, Any]:
    """The schema as this version of Axolotl has it."""
    from axolotl.integrations.base import load_plugin
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from pydantic import create_model
    from pydantic.json_schema import GenerateJsonSchema
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    class Named(GenerateJsonSchema):
        def enum_schema(self, schema: Any) -> dict[str, Any]:
            """By names, for some values are types of torch."""
            return {"enum": [str(member.value).removeprefix("torch.") for member in schema["members"]]}

    def bare(node: Any, names: bool = False) -> Any:
        if isinstance(node, list):
            return [bare(item) for item in node]
        if not isinstance(node, dict):
            return node
        kept = {k: bare(v, k in ("properties", "$defs")) for k, v in node.items() if names or k not in LEFT_OUT}
        return kept if names or "properties" not in kept else {**kept, "additionalProperties": False}

    own: dict[str, Any] = {name: locate(load_plugin(name).get_input_args()) for name in PLUGINS}
    # Axolotl takes any word for these two, and transformers stops at it when the model has been loaded.
    named: dict[str, Any] = {
        "optimizer": (OptimizerNames | CustomSupportedOptimizers | None, None),
        "lr_scheduler": (SchedulerType | Literal["one_cycle", "rex"] | None, None),
    }
    whole = create_model("Recipe", __base__=(AxolotlInputConfig, *own.values()), **named)
    keys_of = {key: name for name, arguments in own.items() for key in arguments.model_fields}
    return {**bare(whole.model_json_schema(by_alias=False, schema_generator=Named)), "x-plugins": keys_of}


if __name__ == "__main__":
    FILE.write_text(json.dumps(axolotl_schema(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
