"""Files of directions: safetensors that say what they are; published `.pt` files; GGUF control vectors for llama.cpp.

Index N is the residual behind N blocks, 0 the embeddings. llama.cpp adds its `direction.K` behind block K counted from
0, which is index K + 1, and has none for the first block: index N is written as `direction.{N-1}`, 0 and 1 not at all.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from gguf import GGUFWriter
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.records import BadInput, bad_input, one_line, weights_digest, write_whole
from eval.inside.activations import Singles

CONVENTION = "index N is the residual behind N blocks; 0 is the embeddings"


class About(BaseModel, frozen=True, extra="forbid"):
    """What a file of directions says of itself."""

    model: str | None
    """What identifies the model (see `model_digest`); None for a published file, which does not say."""
    concept: str
    position: str
    """Which tokens the means are over: answer, prompt or changed."""
    pairs: int
    groups: dict[str, Annotated[int, Field(strict=True, ge=1)]] = {}
    """Name of each group and its pairs, in the order of `Directions.sums`."""
    judge: str | None = None
    """Who kept those of a trait's sampled answers that show it; None where nobody looked, or nothing is sampled."""
    layer: int | None = None
    """The index at which the concept is told best, where that was measured."""
    index: str = CONVENTION


@dataclass(frozen=True)
class Directions:
    """A concept's direction at each index, positive less negative: its length is the distance of the two classes."""

    about: About
    direction: Singles
    """(L + 1, width)"""
    midpoint: Singles
    """(L + 1, width): midway between the classes; zero where a published file does not say."""
    sums: Singles
    """(groups, L + 1, width): each group's sum of its pairs' differences, which controls and intervals are made of."""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of each group the digests of its pairs; older files and published ones have none."""

    def at(self, layer: int) -> Singles:
        """The direction at one index; BadInput if there is none."""
        if not 0 <= layer < len(self.direction) or not self.direction[layer].any():
            raise BadInput(f"layer {layer}: no direction there; name another from 0 to {len(self.direction) - 1}")
        vector: Singles = self.direction[layer]
        return vector


def chosen_layer(path: Path, directions: Directions, given: int | None) -> int:
    """The index that was given, or else the file's own; BadInput if it has none, or no direction there."""
    layer = directions.about.layer if given is None else given
    if layer is None:
        raise BadInput(f"{path}: names no layer of its own; give the layer")
    directions.at(layer)
    return layer


def model_digest(name: str, revision: str | None = None) -> str:
    """What identifies a model: the digests of its weight files if it is a local folder, else its hub id and revision.

    BadInput for a folder without weights.
    """
    return weights_digest(Path(name)) if Path(name).is_dir() else f"{name}@{revision or 'main'}"


def write_directions(path: Path, directions: Directions) -> None:
    """Writes safetensors, whole or not at all; BadInput if the file cannot be written."""
    tensors = {"direction": directions.direction, "midpoint": directions.midpoint, "sums": directions.sums}
    metadata = {"about": directions.about.model_dump_json(), "texts": json.dumps(directions.texts)}
    write_whole(path, save({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, metadata))


def read_directions(path: Path, shape: tuple[int, int], model: str) -> Directions:
    """Reads a file of `write_directions`, or a published `.pt` file of one tensor, for a model.

    A published file counts its last index behind the final norm, which is none of ours: it is set to zero. `shape` has
    the model's L + 1 and width, `model` what identifies it (see `model_digest`). BadInput if the file is no such file,
    holds code, or is of another size or of another model.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; `emsweep directions` writes directions")
    result = _published(path) if path.suffix == ".pt" else _own(path)
    if result.direction.shape != shape:
        found, wanted = (" x ".join(map(str, size)) for size in (result.direction.shape, shape))
        raise BadInput(f"{path}: directions of {found}, and this model's are {wanted}; name a file of this model")
    if result.about.model not in (None, model):
        raise BadInput(f"{path}: directions of another model; run `emsweep directions` on this one")
    if not all(np.isfinite(part).all() for part in (result.direction, result.midpoint, result.sums)):
        raise BadInput(f"{path}: a number is not finite; make the file again")
    return result


def about_of(path: Path) -> About | None:
    """What a file of `write_directions` is of; None if it is no such file."""
    try:
        return _own(path).about
    except BadInput:
        return None


def _own(path: Path) -> Directions:
    what, remedy = f"{path}: no safetensors of directions", "name a file of `emsweep directions`"
    faults = (SafetensorError, OSError, ValidationError, TypeError)  # of a type that numpy has not, as bfloat16
    with bad_input(what, remedy, *faults), safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        about = About.model_validate_json(metadata.get("about", "{}"))
        texts = TypeAdapter(dict[str, list[str]]).validate_json(metadata.get("texts", "{}"))
        direction, midpoint, sums = (file.get_tensor(key) for key in ("direction", "midpoint", "sums"))
    shapes = direction.ndim == 2 and midpoint.shape == direction.shape and sums.shape[1:] == direction.shape
    counted = len(sums) == len(about.groups) and sum(about.groups.values()) == about.pairs
    if not shapes or not counted or any(t.dtype != np.float32 for t in (direction, midpoint, sums)):
        raise BadInput(f"{path}: its tensors do not belong together; {remedy}")
    if about.index != CONVENTION:
        raise BadInput(f"{path}: counts its layers in another way ({one_line(about.index)}); make it again")
    return Directions(about, direction, midpoint, sums, texts)


def _published(path: Path) -> Directions:
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what no pickle should hold may end in any error, from an empty stack to a missing key
        raise BadInput(f"{path}: no plain tensor (code is never run); save it with torch.save(tensor)") from None
    whole = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
    if not whole or tensor.dim() != 2 or not tensor.numel():
        raise BadInput(f"{path}: not one tensor of (layers + 1, width); name a vector file of persona vectors")
    direction = tensor.detach().float().numpy().copy()
    direction[-1] = 0
    about = About(model=None, concept=path.stem, position="answer", pairs=0)
    return Directions(about, direction, np.zeros_like(direction), np.zeros((0, *direction.shape), np.float32))


def write_gguf(path: Path, directions: Directions, architecture: str) -> None:
    """Writes a control vector for llama.cpp (`--control-vector-scaled PATH 1.0` adds one class distance everywhere).

    BadInput if the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:  # the writer takes a path, and may be cut off
        file = Path(folder) / path.name
        writer = GGUFWriter(file, "controlvector")
        writer.add_string("controlvector.model_hint", architecture)
        writer.add_uint32("controlvector.layer_count", len(directions.direction) - 2)
        writer.add_string("controlvector.about", json.dumps(directions.about.model_dump()))
        for index in range(2, len(directions.direction)):
            writer.add_tensor(f"direction.{index - 1}", np.ascontiguousarray(directions.direction[index]))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; choose another folder") from None
        finally:
            writer.close()
        write_whole(path, file.read_bytes())
