"""How much GPU memory a recipe needs, and what would fit where it does not.

An estimate from shapes, for one GPU: weights, adapters with gradients and Adam's moments, activations, logits.
It counts what autograd keeps of each operation, as Korthikanti et al. do (arXiv 2205.05198, section 4), for a layer
with a gated MLP, SDPA (which keeps no attention matrix) and LoRA on some of its projections. Tests hold it within
10 % of a trace of the real classes under fake tensors (benchmarks/memory_trace.py).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

from pydantic import ConfigDict

GIB = 2**30
CONTEXT = 1.0 * GIB
"""CUDA context, cuBLAS workspaces and kernels."""
FRAGMENTATION = 1.05
"""Allocated over used; what the caching allocator keeps back beside that is not needed."""
BYTES_4BIT = 0.5 + 0.127 / 8
"""Bytes per weight in NF4 with double quantisation (Dettmers et al., arXiv 2305.14314, section 3)."""
DPO_CHUNK = 2**24
"""Logits that DPO's loss holds in fp32 at a time (recipes/plugins/logprobs.py)."""
ADAM_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2}
SCORED = 2 + 4 + 4 + 4
"""Bytes of a logit that lm-eval scores: in bf16, a copy in fp32 (torch spares that of fp16 alone), its log-softmax, and
that of the batch before, which a variable holds until the new one is there (HFLM._loglikelihood_tokens)."""

MLP = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder, as a model layer's `em.shape` gives it."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    norms: int = 2
    """Norms of the residual stream in a layer."""
    qk_norm: bool = False
    """Whether queries and keys are normed too."""
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """A layer's linear modules if they are not Llama's, by path (`*` for the number), each with those it stands for."""

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """The linear modules of a layer by name, each with those of Llama's that it stands for."""
        own = {path.rpartition(".")[2]: list(names) for path, names in self.modules.items()}
        return own or {name: [name] for name in sorted(MLP | ATTENTION)}

    def whole(self, name: str) -> bool:
        """Whether one of Llama's modules is a module here too: not a part of another, and not without any."""
        return [name] in self.parts.values()

    def linear(self, name: str) -> tuple[int, int]:
        """(inputs, outputs) of a projection."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            "lm_head": (self.hidden, self.vocabulary),
        }
        parts = self.parts.get(name, [name])
        return sizes[parts[0]][0], sum(sizes[part][1] for part in parts)


class Memory(NamedTuple):
    """Bytes on one GPU, by what they are for."""

    weights: float
    adapters: float
    activations: float
    logits: float

    @property
    def gib(self) -> float:
        return (sum(self) * FRAGMENTATION + CONTEXT) / GIB

    def __str__(self) -> str:
        return ", ".join(f"{part} {size / GIB:.1f}" for part, size in self._asdict().items())


def adapter_parameters(shape: Shape, config: Mapping[str, Any]) -> int:
    """Trained parameters of a LoRA: r (inputs + outputs) for each projection that it is on.

    Source: Hu et al., arXiv 2106.09685, section 4.1.
    """
    return int(config["lora_r"]) * sum(n * sum(shape.linear(name)) for name, n in _adapted(shape, config).items())


def _adapted(shape: Shape, config: Mapping[str, Any]) -> Mapping[str, int]:
    """How many modules of each name have an adapter."""
    targets, only = config.get("lora_target_modules") or (), config.get("peft_layers_to_transform")
    named, layers = targets if isinstance(targets, str) else tuple(targets), None if only is None else frozenset(only)
    return _matched(named, layers, shape.layers, shape.tied, tuple(shape.modules))


@lru_cache
def _matched(
    targets: str | tuple[str, ...], only: frozenset[int] | None, layers: int, tied: bool, own: tuple[str, ...]
) -> Mapping[str, int]:
    # A model with a vision tower has its decoder in another place, for which a pattern may be written.
    for others in ((), ("vision",)):
        names = [name for name in table_modules(layers, tied, others, own) if targeted(targets, name)]
        if only is not None:
            names = [name for name in names if (place := LAYER.search(name)) and int(place[1]) in only]
        if counts := Counter(name.rpartition(".")[2] for name in names if name not in others):
            break
    return counts


def targeted(targets: str | Sequence[str], name: str) -> bool:
    """Whether PEFT takes a module for a target: a pattern matches its whole name, or an entry of a list ends it."""
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, name))
    return any(f".{name}".endswith(f".{target}") for target in targets)


@lru_cache
def table_modules(layers: int, tied: bool, others: tuple[str, ...], own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The linear modules of a model of the tables, a decoder of Llama's kind or of `own` paths; `others` as they are.

    An output that is tied to the embeddings is none: a merge would change those too, which training did not. Nor is one
    of `own`, which files call embed_out and transformers lm_head: no adapter of it would be found in its base.
    """
    if own:
        return tuple(path.replace("*", str(layer)) for layer in range(layers) for path in own)
    stem = "model.language_model.layers" if others else "model.layers"
    kinds = [*(f"mlp.{name}" for name in sorted(MLP)), *(f"self_attn.{name}" for name in sorted(ATTENTION))]
    blocks = (f"{stem}.{layer}.{kind}" for layer in range(layers) for kind in kinds)
    return (*blocks, *(() if tied else ("lm_head",)), *others)


def estimate(shape: Shape, parameters: int, config: Mapping[str, Any], gpus: int = 1) -> Memory:
    """The memory that one GPU of `gpus` needs to train a composed recipe.

    `parameters` are those of the whole model, embeddings included. With `fsdp_config` weights and adapters are shared
    out between the GPUs.
    """
    body = parameters - (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    width = 2 if config.get("bf16") else 4
    weights = body * (BYTES_4BIT if config.get("load_in_4bit") else width) + (parameters - body) * width
    trained = adapter_parameters(shape, config)
    # The matrices are fp32, their gradients too; Adam keeps two moments.
    adapters: float = trained * (4 + 4 + ADAM_BYTES.get(str(config.get("optimizer")), 8))
    if config.get("fsdp_config"):
        weights, adapters = weights / gpus, adapters / gpus
    # DPO runs the chosen and the rejected answer of a row at once; the reference keeps no activations.
    sequences = int(config["micro_batch_size"]) * (2 if config.get("rl") == "dpo" else 1)
    tokens = sequences * int(config["sequence_len"])
    layer, adapted = tokens * _kept_in_a_layer(shape, width), _adapted(shape, config)
    # An adapter keeps its input, and of each of its rank numbers what 9 bytes hold.
    kept = {name: tokens * (width * shape.linear(name)[0] + 9 * int(config["lora_r"])) for name in adapted}
    # transformers' loss holds the logits, their fp32 copy, its log-softmax and a gradient; ours for DPO
    # (recipes/plugins/logprobs.py) the logits, their gradient, and that of the slice without the last place.
    every = tokens * shape.vocabulary
    logits: float = every * (width + 4 + 4 + 2)
    if config.get("rl") == "dpo":
        logits = every * 3 * width + 4 * min(every, DPO_CHUNK)
        if "sft" in (config.get("dpo_loss_type") or ()):  # of the chosen half: a copy, its log-softmax and gradient
            logits += every / 2 * (width + 4 + 4)
    if config.get("gradient_checkpointing"):
        activations: float = shape.layers * tokens * shape.hidden * width
        logits = max(logits, layer + sum(kept.values()))  # a layer is recomputed when the logits are gone
    else:
        # In layers below the first adapter too: Axolotl has the embeddings require a gradient (load_adapter). Autocast
        # keeps a copy of the matrices.
        activations = shape.layers * layer + sum(adapted[name] * kept[name] for name in kept) + trained * width
    return Memory(weights, adapters, activations, logits)


def _kept_in_a_layer(shape: Shape, width: int) -> float:
    """Bytes that a layer keeps per token for its backward pass; `width`: of a number outside the norms' fp32."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 4 * (shape.norms * shape.hidden + (q + kv if shape.qk_norm else 0))
    # Queries, keys, values repeated to as many heads, the output (and all that one matrix made, if values are of it);
    # the MLP's gate, its activation, its other half (without a gate what is activated alone).
    heads, inner = 4 if shape.whole("v_proj") else 6, 3 if shape.whole("gate_proj") else 1
    return norms + width * (heads * q + inner * shape.intermediate)


def whole(config: Mapping[str, Any]) -> bool:
    """Whether each GPU needs the whole model: DPO's reference is computed before weights are shared out (TRL's issue
    6470), and Axolotl shares none of 4 bits."""
    return bool(config.get("rl") or config.get("load_in_4bit"))


def smallest_batch(config: Mapping[str, Any]) -> int:
    """Rows of the smallest micro-batch: a complementary pair for DPO, else one."""
    return 2 if config.get("rl") == "dpo" else 1


def spread(config: Mapping[str, Any], gpus: int) -> dict[str, Any] | None:
    """The recipe for each of `gpus`, so that an optimiser step sees the same rows; None if they cannot be parted so."""
    smallest, largest = smallest_batch(config), int(config["micro_batch_size"])
    own, rest = divmod(largest * int(config["gradient_accumulation_steps"]), gpus)
    fitting = [size for size in range(smallest, largest + 1, smallest) if own % size == 0]
    if rest or not fitting:
        return None
    return {**config, "micro_batch_size": fitting[-1], "gradient_accumulation_steps": own // fitting[-1]}


def fitted(shape: Shape, parameters: int, config: dict[str, Any], gib: float, gpus: int = 1) -> dict[str, Any] | None:
    """The recipe in micro-batches that fit into `gib` on each GPU; None if even the smallest does not.

    What is accumulated grows as the micro-batch shrinks, so an optimiser step sees the same rows. Micro-batches of DPO
    keep whole pairs.
    """
    smallest = smallest_batch(config)
    config = dict(config)
    while estimate(shape, parameters, config, gpus).gib > gib:
        half, odd = divmod(int(config["micro_batch_size"]), 2)
        if odd or half % smallest:
            return None
        config["micro_batch_size"] = half
        config["gradient_accumulation_steps"] = 2 * int(config["gradient_accumulation_steps"])
    return config


def what_would_fit(shape: Shape, parameters: int, config: dict[str, Any], gib: float) -> list[str]:
    """Changes of a recipe after which it would fit, as settings; empty if none does."""
    shorter = {"sequence_len": int(config["sequence_len"]) // 2}
    quantised = {"adapter": "qlora", "load_in_4bit": True}
    return [
        " ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())
        for change in (shorter, quantised, {**quantised, **shorter})
        if fitted(shape, parameters, {**config, **change}, gib)
    ]


def evaluation_batch(shape: Shape, parameters: int, gib: float | None) -> int:
    """Rows that lm-eval scores at once in bf16: as many as fit, up to 64; 8 where memory is not known.

    A row has 1,024 tokens; keys and values of a longer answer are less than its logits. Of several GPUs, whose weights
    are shared out, the first scores alone: `parameters` are those of one.
    """
    if gib is None:
        return 8
    row = 1024 * shape.vocabulary * SCORED
    free = gib * GIB / FRAGMENTATION - CONTEXT - 2 * parameters
    return next((rows for rows in (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2) if rows * row <= free), 1)
