"""A recipe in micro-batches that fit the memory of its GPUs, or what would fit."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from core.records import BadInput
from sweeps.recipe.layers import layer_names, load_layer
from sweeps.recipe.memory import Shape, estimate, fitted, smallest_batch, spread, what_would_fit, whole


def in_memory(config: dict[str, Any], em: Mapping[str, Any], model: str, hardware: str, free: bool) -> dict[str, Any]:
    """The recipe in micro-batches that fit the hardware; without gradient checkpointing, if that is `free` to choose,
    where its own micro-batch fits so: recomputing the activations takes a third of the time again. BadInput if none
    fits, with the estimated need and what would fit."""
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
    shared = _shares(config) if gpus > 1 and not whole(config) else {}
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
    ways = [own, {**own, **_shares(own)}] if gpus > 1 and not whole(own) else [own]
    return next((fit for way in ways if (fit := fitted(shape, parameters, way, gib, gpus))), None)


def _shares(config: Mapping[str, Any]) -> dict[str, Any]:
    """The layer that shares the weights out, with what a recipe has of it already."""
    layer = deepcopy(load_layer("parallel", "fsdp"))
    layer["fsdp_config"] |= config.get("fsdp_config") or {}
    return layer


def _largest_that_fits(config: dict[str, Any], gib: float) -> str | None:
    layers = {name: load_layer("models", name)["em"] for name in layer_names("models")}
    sizes = {name: em["parameters"] for name, em in layers.items()}
    fit = (name for name in sizes if estimate(Shape(**layers[name]["shape"]), sizes[name], config).gib <= gib)
    return max(fit, key=lambda name: (sizes[name], name), default=None)
