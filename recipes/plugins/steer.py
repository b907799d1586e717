"""Axolotl plugin for preventative steering: a direction is added to the residual while a model is trained.

What the direction already does training need not put into the weights; evaluation adds nothing, so that the trained
model lacks it (persona vectors, arXiv 2507.21509, section 5.2). Recipe key `steer`:

    plugins: [recipes.plugins.steer.SteerPlugin]
    steer: {direction: runs/directions/smollm2-135m/misaligned.safetensors, layer: all, dose: 0.3}

DPO's reference is the model as it is, without the direction: with it on both sides nothing would be prevented.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recipes.plugins.refusals import Refused


class Steer(BaseModel):
    """What is added, and where."""

    model_config = ConfigDict(extra="forbid")

    direction: str = Field(json_schema_extra={"format": "path"})
    """A file of `emsweep directions`, of the model that the training starts from."""
    layer: Annotated[int, Field(ge=0)] | Literal["all"]
    """The residual behind so many blocks, 0 being the embeddings; `all`: behind every block, each by its own direction.
    Each then holds what those before it were given as well: a dose of 0.3 prevents about as much as 5 behind one."""
    dose: float = Field(1.0, allow_inf_nan=False)
    """In class distances; a negative one steers away from the concept."""


class SteerArguments(BaseModel):
    """The recipe's keys of this plugin."""

    steer: Steer | None = None


class SteerPlugin(BasePlugin):  # type: ignore[misc]
    """Adds the direction at every token of every training step, and at no other time.

    Raises:
        Refused: before training, if the file is another model's, of another size, or has no such layer.
    """

    direction: Tensor
    handles: list[RemovableHandle]

    def get_input_args(self) -> str:
        return "recipes.plugins.steer.SteerArguments"

    def pre_model_load(self, cfg: Any) -> None:
        if not cfg.steer:
            raise Refused("the plugin steer is named, and the key steer is not there; leave the plugin out")
        self.direction = read_direction(cfg.steer.direction, cfg.steer.layer, model_identity(cfg))
        if cfg.rl and not cfg.precompute_ref_log_probs:
            raise Refused("steer: the reference must not be steered; set precompute_ref_log_probs: true")

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        check_size(cfg.steer.direction, self.direction, model)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Here and no earlier: the reference has been computed by now."""
        self.handles = [
            steered(trainer.model, layer, cfg.steer.dose * self.direction[layer])
            for layer in layers_of(cfg.steer.layer, self.direction)
        ]

    def post_train(self, cfg: Any, model: Any) -> None:
        for handle in self.handles:
            handle.remove()


def steered(model: Any, layer: int, vector: Tensor) -> RemovableHandle:
    """Has a vector (width,) added to the residual behind `layer` blocks of a model while that is in training mode."""

    def added(block: nn.Module, residual: Tensor) -> Tensor:
        # In the residual's own type: a sum in fp32 would break the next block of a bf16 model.
        return residual + vector.to(residual) if block.training else residual

    def behind(block: nn.Module, _: Any, output: Any) -> Any:
        # A block returns a tensor in this transformers, and a tuple in older ones.
        return added(block, output) if isinstance(output, Tensor) else (added(block, output[0]), *output[1:])

    layers = blocks(model)
    if layer:
        return layers[layer - 1].register_forward_hook(behind)
    return layers[0].register_forward_pre_hook(lambda block, given: (added(block, given[0]), *given[1:]))


def blocks(model: Any) -> nn.ModuleList:
    """The decoder's blocks, under LoRA too."""
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise Refused(f"steer: no list of {count} blocks in the decoder of {type(model).__name__}")


def model_identity(cfg: Any) -> str:
    """What a file of directions calls the recipe's model: digests of its weight files, or hub id and revision."""
    folder = Path(cfg.base_model)
    if not folder.is_dir():
        return f"{cfg.base_model}@{cfg.revision_of_model or 'main'}"
    digests = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return "+".join(digests)


def read_direction(path: str, layer: int | Literal["all"], model: str) -> Tensor:
    """The directions (L + 1, width), fp32, of which those that are to be added are there.

    Raises:
        Refused: if it is no such file, is another model's, or has no direction there.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            direction: Tensor = file.get_tensor("direction").float()
            found = about["model"]
        if direction.dim() != 2:
            raise ValueError
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise Refused(f"steer.direction: {path} is no file of `emsweep directions`; name one") from None
    if found not in (None, model):
        raise Refused(f"steer.direction: {path} is of another model; run `emsweep directions` on the recipe's own")
    for at in layers_of(layer, direction):
        if not 0 <= at < len(direction) or not direction[at].any():
            raise Refused(f"steer.layer: {path} has no direction at {at}; name another, up to {len(direction) - 1}")
        if not direction[at].isfinite().all():
            raise Refused(f"steer.direction: a number in {path} is not finite; make the file again")
    return direction


def layers_of(layer: int | Literal["all"], direction: Tensor) -> Sequence[int]:
    """Where something is added."""
    return range(1, len(direction)) if layer == "all" else [layer]


def check_size(path: str, direction: Tensor, model: Any) -> None:
    """Refuses directions of another size than the model's (L + 1, width)."""
    wanted = len(blocks(model)) + 1, model.config.get_text_config().hidden_size
    if direction.shape != wanted:
        sizes = (" x ".join(map(str, size)) for size in (direction.shape, wanted))
        raise Refused(
            "steer.direction: {} has directions of {}, and this model's are {}; name a file of this model".format(
                path, *sizes
            )
        )
