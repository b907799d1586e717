"""What safetensors files hold, by their headers: whether an adapter is what its recipe says, what a merge changed.

Read without torch, which would stay in the memory of `emsweep` beside every training process.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.records import BadInput
from sweeps.recipe.headers import stored, tensors
from sweeps.recipe.memory import LAYER, targeted
from sweeps.recipe.targets import OTHER_TOWERS

LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def check_adapter(weights: Path, recipe: Mapping[str, Any], base: Path | None) -> int:
    """The number of trained parameters, if it is what rank, targets and layers imply: r (inputs + outputs) a module.

    `weights` is adapter_model.safetensors; `base` the folder of the model beneath, whose modules must all be there;
    None where it is not on this machine. ValueError names the first tensor that should not be there, is missing, or has
    another shape.
    """
    shapes = {name: tensor["shape"] for name, tensor in tensors(weights).items()}
    count = sum(map(math.prod, shapes.values()))
    if why := _difference(shapes, recipe, base):
        raise ValueError(f"{weights}: {count:,} trained parameters are not what the recipe says: {why}")
    return count


def _difference(shapes: Mapping[str, list[int]], recipe: Mapping[str, Any], base: Path | None) -> str:
    """What of an adapter is not as its recipe says; empty if all is."""
    rank, targets = int(recipe["lora_r"]), recipe.get("lora_target_modules") or []
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        if not (match := LORA.fullmatch(name)):
            return f"{name} is no matrix of LoRA; the recipe trains nothing else"
        found.setdefault(match[1], {})[match[2]] = shape
    for name, pair in found.items():
        if pair.keys() != {"A", "B"} or pair["A"][0] != rank or pair["B"][1] != rank:
            return f"{name} is not of rank {rank}: {pair}"
        if OTHER_TOWERS.search(name) or not targeted(targets, name):
            return f"{name} is none of the language model's modules that the recipe targets"
    layers = recipe.get("peft_layers_to_transform")
    own = {_place(name): [pair["B"][0], pair["A"][1]] for name, pair in found.items()}
    if expected := _modules(base, targets, found) if base else {}:
        wanted = {place: shape for place, shape in expected.items() if layers is None or place[0] in layers}
        implied = rank * sum(map(sum, wanted.values()))
        odd = [".".join(map(str, place)) for place in own.keys() | wanted.keys() if own.get(place) != wanted.get(place)]
        return f"the recipe implies {implied:,} on {base}; the first that differs: {min(odd)}" if odd else ""
    if len({frozenset(n for n, tail in own if tail == kind) for _, kind in own}) > 1 or not own:
        return "its targets are not trained in the same layers"
    trained = {layer for layer, _ in own}
    if layers is not None and trained != set(layers):
        return f"layers {sorted(trained)} are not the recipe's {sorted(set(layers))}"
    return ""


def _place(name: str) -> tuple[int, str]:
    """(layer, module in it); -1 for what is in no layer."""
    match = LAYER.search(dotted := f".{name}")
    return (int(match[1]), dotted[match.end() :]) if match else (-1, name)


def _modules(base: Path, targets: Any, found: Mapping[str, Any]) -> dict[tuple[int, str], list[int]]:
    """(outputs, inputs) of the targets among a model's linear layers; of those trained, where a pattern names them."""
    trained = {_place(name)[1] for name in found}
    shapes = {
        name.removesuffix(".weight"): tensor["shape"]
        for name, (_, tensor) in stored(base).items()
        if len(tensor["shape"]) == 2 and "F" in tensor["dtype"] and not OTHER_TOWERS.search(name)
    }
    return {
        _place(name): shape
        for name, shape in shapes.items()
        if targeted(targets, name) and (_place(name)[1] in trained or isinstance(targets, list))
    }


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors of the merged model differ from the base's; BadInput if the merged folder has no weights."""
    before, after = stored(base), stored(merged)
    if not after:
        raise BadInput(f"{merged}: no *.safetensors in this model folder; delete the run and start again")
    return sum(_content(*before[name]) != _content(*after[name]) for name in before.keys() & after.keys())


def _content(path: Path, tensor: dict[str, Any]) -> tuple[str, list[int], bytes]:
    begin, end = tensor["bytes"]
    with path.open("rb") as file:
        file.seek(begin)
        return tensor["dtype"], tensor["shape"], file.read(end - begin)
