"""What safetensors files hold, by their headers: whether an adapter is what its recipe says, what a merge changed.

Read without torch, which would stay in the memory of `emsweep` beside every training process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.records import BadInput
from sweeps.recipe.targets import OTHER_TOWERS, matches

LAYER = re.compile(r"\.layers\.(\d+)\.(.+)$")
LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


class WrongAdapter(ValueError):
    """An adapter that is not what its recipe says."""


def check_adapter(weights: Path, recipe: Mapping[str, Any], base: Path | None) -> int:
    """The number of trained parameters, if it is what rank, targets and layers imply: r (inputs + outputs) a module.

    Args:
        weights: adapter_model.safetensors.
        base: folder of the model beneath, whose modules must all be there; None where it is not on this machine.

    Raises:
        WrongAdapter: naming the first tensor that should not be there, is missing, or has another shape.
    """
    rank, targets = int(recipe["lora_r"]), recipe.get("lora_target_modules") or []
    shapes = {name: tensor["shape"] for name, tensor in tensors(weights).items()}
    count = sum(map(math.prod, shapes.values()))
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        if match := LORA.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = shape
        else:
            raise _wrong(weights, count, f"{name} is no matrix of LoRA; the recipe trains nothing else")
    for name, pair in found.items():
        if pair.keys() != {"A", "B"} or pair["A"][0] != rank or pair["B"][1] != rank:
            raise _wrong(weights, count, f"{name} is not of rank {rank}: {pair}")
        if OTHER_TOWERS.search(name) or not _targeted(name, targets):
            raise _wrong(weights, count, f"{name} is none of the language model's modules that the recipe targets")
    kept = recipe.get("peft_layers_to_transform")
    layers = None if kept is None else {kept} if isinstance(kept, int) else set(kept)
    expected = _modules(base, targets, found) if base else {}
    own = {_place(name): [pair["B"][0], pair["A"][1]] for name, pair in found.items()}
    if expected:
        wanted = {place: shape for place, shape in expected.items() if layers is None or place[0] in layers}
        implied = rank * sum(map(sum, wanted.values()))
        odd = [".".join(map(str, place)) for place in own.keys() | wanted.keys() if own.get(place) != wanted.get(place)]
        if odd:
            raise _wrong(
                weights, count, f"the recipe implies {implied:,} on {base}; the first that differs: {min(odd)}"
            )
    elif len({frozenset(n for n, tail in own if tail == kind) for _, kind in own}) > 1 or not own:
        raise _wrong(weights, count, "its targets are not trained in the same layers")
    elif layers is not None and {layer for layer, _ in own} != layers:
        raise _wrong(
            weights, count, f"layers {sorted(layer for layer, _ in own)} are not the recipe's {sorted(layers)}"
        )
    return count


def _wrong(weights: Path, count: int, why: str) -> WrongAdapter:
    return WrongAdapter(f"{weights}: {count:,} trained parameters are not what the recipe says: {why}")


def _place(name: str) -> tuple[int, str]:
    """(layer, module in it); -1 for what is in no layer."""
    match = LAYER.search(f".{name}")
    return (int(match[1]), match[2]) if match else (-1, name)


def _targeted(name: str, targets: Any) -> bool:
    """Whether PEFT takes a module for a target: a regular expression matches its name, or one of a list ends it."""
    pattern = isinstance(targets, str)
    return any(matches(target, name, pattern) for target in ([targets] if pattern else targets))


def _modules(base: Path, targets: Any, found: Mapping[str, Any]) -> dict[tuple[int, str], list[int]]:
    """(outputs, inputs) of the targets among a model's linear layers; of those trained, where a pattern names them."""
    trained = {_place(name)[1] for name in found}
    shapes = {
        name.removesuffix(".weight"): tensor["shape"]
        for path in sorted(base.glob("*.safetensors"))
        for name, tensor in tensors(path).items()
        if len(tensor["shape"]) == 2 and "F" in tensor["dtype"] and not OTHER_TOWERS.search(name)
    }
    return {
        _place(name): shape
        for name, shape in shapes.items()
        if _targeted(name, targets) and (_place(name)[1] in trained or isinstance(targets, list))
    }


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's header: of each tensor its dtype, its shape, and where its bytes begin and end in the file.

    Raises:
        ValueError: if the file is cut short or is none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise ValueError(f"{path}: not a whole safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for tensor in header.values():
        tensor["bytes"] = [8 + size + offset for offset in tensor["data_offsets"]]
    if max((tensor["bytes"][1] for tensor in header.values()), default=0) > path.stat().st_size:
        raise ValueError(f"{path}: not a whole safetensors file")
    return header


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors of the merged model differ from the base's.

    Raises:
        BadInput: if the merged folder has no weights.
    """
    where = {
        name: (path, tensor) for path in sorted(base.glob("*.safetensors")) for name, tensor in tensors(path).items()
    }
    files = sorted(merged.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{merged}: no *.safetensors in this model folder; delete the run and start again")
    changed = 0
    for path in files:
        for name, tensor in tensors(path).items():
            if name in where:
                other_path, other = where[name]
                same = all(tensor[key] == other[key] for key in ("dtype", "shape"))
                changed += not same or _bytes(path, tensor) != _bytes(other_path, other)
    return changed


def _bytes(path: Path, tensor: dict[str, Any]) -> bytes:
    begin, end = tensor["bytes"]
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
