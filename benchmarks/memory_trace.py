"""The peak memory of one training step, traced on the model's real class without a GPU and without its weights.

    python benchmarks/memory_trace.py --model qwen7b --stage dpo --rank 1
    python benchmarks/memory_trace.py --agreement

`--agreement` takes real steps of SmolLM2-135M on this CPU, in fp32 and bf16 at two shapes, and compares the peak of the
process's resident memory with the trace. A trace is kept in runs/traces, by what it depends on.

The step of the real architecture with LoRA and its loss runs under fake tensors; every storage that an operation
returns is counted while something holds it. The planner's formula (sweeps/recipe/memory.py) is held against this by
tests/sweeps/recipe/test_memory.py, and `benchmarks/gpu.py` holds both against a card.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.records import file_digest, write_whole
from recipes.plugins import logprobs
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import load_layer
from sweeps.recipe.memory import Shape, estimate
from sweeps.run.folder import content_digest

GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are alive; `peak` is their largest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if (key := storage._cdata) not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, key)
        return out


class Lora(nn.Module):
    """PEFT's LoRA layer: fp32 matrices, input cast to them (peft.tuners.lora.layer.Linear.forward)."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x.to(torch.float32))) * 2.0


class _Matmul4bit(torch.autograd.Function):
    """bitsandbytes' matmul_4bit: keeps the packed weight, unpacks it for a moment in each direction."""

    @staticmethod
    def forward(ctx, x, shape):  # type: ignore[no-untyped-def]
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype).t()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad @ torch.empty(ctx.shape, dtype=grad.dtype), None


class Linear4bit(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.packed = nn.Buffer(torch.empty(int(base.weight.numel() * (0.5 + 0.127 / 8)), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Matmul4bit.apply(x, (self.out_features, self.in_features))


def architecture(name: str, shape: Mapping[str, Any]) -> Any:
    """The configuration of transformers for a model layer's `em.shape`."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        name,
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocabulary"],
        tie_word_embeddings=shape["tied"],
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    return config


@contextmanager
def default_dtype(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(config: Any, recipe: Mapping[str, Any], pattern: str) -> tuple[nn.Module, int]:
    """The model with LoRA on the modules whose last name `pattern` matches, and its parameters without them."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if recipe.get("bf16") else torch.float32
    with default_dtype(dtype):
        model = AutoModelForCausalLM.from_config(config)
    model.requires_grad_(False)
    parameters = sum(weight.numel() for weight in model.parameters())
    layers = recipe.get("peft_layers_to_transform")
    for where, module in list(model.named_modules()):
        number = re.search(r"\.layers\.(\d+)\.", f".{where}.")
        here = layers is None or (number is not None and int(number[1]) in layers)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                base = Linear4bit(child) if recipe.get("load_in_4bit") else child
                adapted = here and re.fullmatch(pattern, name)
                setattr(module, name, Lora(base, int(recipe["lora_r"])) if adapted else base)
    model.train()
    model.enable_input_require_grads()  # as Axolotl does to whatever has an adapter (axolotl/loaders/adapter.py)
    if recipe.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model, parameters


def step(model: nn.Module, recipe: Mapping[str, Any]) -> None:
    """One step's forward and backward, on full rows."""
    dpo = recipe.get("rl") == "dpo"
    rows, length = int(recipe["micro_batch_size"]) * (2 if dpo else 1), int(recipe["sequence_len"])
    ids = torch.zeros(rows, length, dtype=torch.long)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bool(recipe.get("bf16"))):
        if dpo:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            loss = logprobs.token_logprobs(logits[:, :-1], ids[:, 1:]).sum()
        else:
            loss = model(input_ids=ids, labels=ids).loss
    loss.backward()


def trace(config: Any, recipe: Mapping[str, Any], pattern: str = "gate_proj|up_proj|down_proj") -> tuple[int, int]:
    """Bytes at the peak of a step (weights, adapters and Adam's moments included), and the model's parameters."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        model, parameters = build(config, recipe, pattern)
        moments = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        live.peak = live.now
        step(model, recipe)
        del moments
        return live.peak, parameters


TRACES = Path("runs/traces")
READ = (
    *("rl", "bf16", "load_in_4bit", "gradient_checkpointing", "lora_r", "peft_layers_to_transform"),
    *("micro_batch_size", "sequence_len"),
)
"""The keys of a recipe that a trace depends on, beside the model's shape and where LoRA is."""


def kept_trace(config: Any, recipe: Mapping[str, Any], pattern: str) -> tuple[int, int]:
    """`trace`, from the file of one that was made before with the same code, versions, shape and keys."""
    code = [file_digest(path) for path in (Path(__file__), Path(logprobs.__file__))]
    keys = {key: recipe.get(key) for key in READ}
    about = [code, torch.__version__, transformers.__version__, config.to_dict(), keys, pattern]
    path = TRACES / f"{content_digest(about)[:16]}.json"
    if not path.is_file():
        write_whole(path, json.dumps(trace(config, recipe, pattern)))
    peak, parameters = json.loads(path.read_text(encoding="utf-8"))
    return peak, parameters


def real(config: Any, recipe: Mapping[str, Any], pattern: str) -> int:
    """Bytes by which the resident memory of this process grows at its peak in a real step; Linux alone."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    model, _ = build(config, recipe, pattern)
    step(model, recipe)
    return _status("VmHWM") - before


SHAPES = ((4, 256), (2, 512))
"""Rows of DPO (two sequences each), and their tokens."""


def agreement(config: Any, recipe: Mapping[str, Any], pattern: str) -> Iterator[tuple[str, float]]:
    """(what, trace over real memory) for both types at both shapes; the first step of a process is not counted."""
    cases = [(bf16, rows, length) for bf16 in (False, True) for rows, length in SHAPES]
    for number, (bf16, rows, length) in enumerate([cases[-1], *cases]):
        own = {**recipe, "bf16": bf16, "micro_batch_size": rows, "sequence_len": length}
        measured = real(config, own, pattern)
        if number:
            name = f"{'bf16' if bf16 else 'fp32'}, {rows} rows of {length} tokens"
            yield name, trace(config, own, pattern)[0] / measured


def _status(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{key}:"))


MMAP, MMAP_FROM = "MALLOC_MMAP_THRESHOLD_", "65536"
"""glibc returns what is freed from so many bytes on, so that resident memory is what is alive."""
ARCHITECTURES = {"qwen": "qwen2", "llama": "llama", "smollm2": "llama", "gemma": "gemma3_text", "olmo": "olmo2"}
ARCHITECTURES |= {"pythia": "gpt_neox"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen7b")
    parser.add_argument("--hardware", default="h200-141g")
    parser.add_argument("--stage", default="dpo")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    if given.agreement and os.environ.get(MMAP) != MMAP_FROM:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, MMAP: MMAP_FROM})
    if given.agreement:
        given.model, given.hardware = "smollm2-135m", "cpu"
    settings = [f"sequence_len={given.length}", *given.settings]
    recipe = compose(given.stage, given.model, given.hardware, settings, given.rank).config
    shape = load_layer("models", given.model)["em"]["shape"]
    config = architecture(next(a for name, a in ARCHITECTURES.items() if given.model.startswith(name)), shape)
    pattern = "|".join(recipe["lora_target_modules"])
    if given.agreement:
        for name, ratio in agreement(config, recipe, pattern):
            print(f"{name}: trace over real {ratio:.3f}", flush=True)
        return
    began = time.perf_counter()
    traced, parameters = kept_trace(config, recipe, pattern)
    seconds = time.perf_counter() - began
    need = estimate(Shape(**shape), parameters, recipe)
    formula = need.weights + need.adapters + need.activations + need.logits
    print(f"trace {traced / GIB:.2f} GiB in {seconds:.1f} s; formula {formula / GIB:.2f} GiB: {formula / traced:.3f}")


if __name__ == "__main__":
    main()
