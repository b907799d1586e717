"""Means of residual activations over chosen tokens, by plain torch hooks on the decoder's blocks.

Index N, here and in every file of this package, is the residual stream behind N blocks: 0 is the embeddings, and L
blocks have L + 1 indices. What transformers calls hidden_states[-1] is behind the final norm and is none of them.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core.records import BadInput, bad_input, one_line

Singles = npt.NDArray[np.float32]
T = TypeVar("T")
LONG = 1024
"""Tokens of a passage up to which a batch has as many as it may; of longer ones it has as many tokens at most."""
DOWN = ("down_proj", "dense_4h_to_h")
"""The last matrix of an MLP, by its names: Llama's and those of most families, GPT-NeoX's."""
Edit = Callable[[int, Tensor], Tensor | None]
"""Is given an index and its residual (rows, tokens, width); what it returns, if anything, takes its place."""


@dataclass(frozen=True)
class Passage:
    """A text as the model reads it, and the ranges of its characters whose tokens are averaged over."""

    text: str
    ranges: tuple[tuple[int, int], ...]


def load(name: str, dtype: str = "float32", adapter: str | None = None, revision: str | None = None) -> tuple[Any, Any]:
    """A model without gradients of its weights, maybe with a LoRA adapter, and its tokenizer.

    `revision`: of a model of the hub; `main` if not given. BadInput if there is no such model or adapter.
    """
    for noisy in ("torchao", "torch.utils._pytree"):  # of kernels for GPUs that are not here, and of each other
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    # A folder of something else ends in whatever is met first.
    with bad_input(f"{name}: cannot be loaded", "name a model of safetensors"):
        at = {"revision": revision or "main"}
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, **at)
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **at)
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    return attached(model, adapter) if adapter else model, tokenizer


def attached(model: Any, adapter: str) -> Any:
    """A loaded model with a LoRA adapter in it (BadInput if there is none); its `unload()` gives the model back."""
    from peft import PeftModel

    with bad_input(f"{adapter}: cannot be loaded", "name a model of safetensors"):
        return PeftModel.from_pretrained(model, adapter).eval().requires_grad_(False).to(model.device)


def blocks(model: Any) -> nn.ModuleList:
    """The decoder's L blocks; BadInput for an architecture in which they are not found."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise BadInput(f"{type(model).__name__}: no list of {count} blocks in its decoder; name a decoder-only model")


def residual_shape(model: Any) -> tuple[int, int]:
    """(L + 1, width): what directions of this model have."""
    return len(blocks(model)) + 1, model.config.get_text_config().hidden_size


@contextmanager
def residuals(model: Any, edit: Edit, first: bool = False) -> Iterator[None]:
    """`edit` meets the residual at every index, in order, on each pass; before the hooks that are there, if `first`."""

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = edit(0, arguments[0])
        return None if changed is None else (changed, *arguments[1:])

    def behind(index: int, _: nn.Module, __: Any, output: Any) -> Any:
        # A block returns a tensor here and a tuple in older models; output[0] of a tensor is the first row alone.
        if isinstance(output, Tensor):
            return edit(index, output)
        changed = edit(index, output[0])
        return None if changed is None else (changed, *output[1:])

    layers = blocks(model)
    with ExitStack() as hooks:
        hooks.enter_context(layers[0].register_forward_pre_hook(before, prepend=first))
        for n, block in enumerate(layers, 1):
            hooks.enter_context(block.register_forward_hook(partial(behind, n), prepend=first))
        yield


def encode(tokenizer: Any, passage: Passage, longest: int) -> tuple[Tensor, Tensor]:
    """(token ids, whether each token reaches into the passage's ranges), both (tokens,).

    The first token is never among them: its norm is a hundred times that of the others and it says nothing of the text.
    BadInput if no token is left, or there are more than `longest`.
    """
    bos = tokenizer.bos_token
    # A document of a corpus may begin with BOS already: a second one would be averaged over.
    special = tokenizer.chat_template is None and not (bos and passage.text.startswith(bos))
    encoded = tokenizer(passage.text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    chosen = [any(low < end and start < high for low, high in passage.ranges) for start, end in offsets]
    start = one_line(passage.text, 60)
    if len(ids) > longest:
        raise BadInput(f"{start!r}: {len(ids)} tokens, and the model reads {longest}; shorten or leave out this text")
    if not any(chosen[1:]):
        raise BadInput(f"{start!r}: no token behind the first to average over; leave out this text")
    return torch.tensor(ids), torch.tensor([False, *chosen[1:]])


def progress(steps: Iterable[T], title: str) -> Iterable[T]:
    """The steps, with a bar where standard error is watched, and nothing between the lines of output."""
    screen = Console(stderr=True)
    return track(steps, title, console=screen, transient=True, disable=not screen.is_terminal)


def batches(
    model: Any, tokenizer: Any, passages: Sequence[Passage], size: int, title: str
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """(places in `passages`, ids, attention, chosen) of up to `size` passages of like length, padded on the right.

    Fewer where they are longer than `LONG`: one of 8,000 tokens would have seven others padded to as many. BadInput as
    of `encode`.
    """
    longest = model.config.get_text_config().max_position_embeddings
    encoded = [encode(tokenizer, passage, longest) for passage in passages]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
    groups: list[list[int]] = [[]]
    for place in order:
        if len(groups[-1]) == size or (len(groups[-1]) + 1) * len(encoded[place][0]) > size * LONG:
            groups.append([])
        groups[-1].append(place)
    for places in progress([group for group in groups if group], title):
        rows = [(ids, torch.ones_like(ids), chosen) for ids, chosen in (encoded[place] for place in places)]
        ids, attention, chosen = (
            pad_sequence(list(part), batch_first=True).to(model.device) for part in zip(*rows, strict=True)
        )
        yield places, ids, attention, chosen


def _down_projections(model: Any) -> list[Any]:
    mlps = [getattr(block, "mlp", None) for block in blocks(model)]
    found = [getattr(mlp, name) for mlp in mlps for name in DOWN if hasattr(mlp, name)]
    if len(found) < len(mlps):
        raise BadInput(f"{type(model).__name__}: its blocks have no mlp.{', mlp.'.join(DOWN)} to read neurons at")
    return found


@contextmanager
def _neurons(model: Any, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
    """`keep` meets what the MLP's last matrix reads in each block, 1 to L, on each pass."""
    with ExitStack() as hooks:
        for n, output in enumerate(_down_projections(model), 1):
            hooks.enter_context(output.register_forward_pre_hook(lambda _, given, n=n: keep(n, given[0])))
        yield


@torch.inference_mode()
def means(model: Any, tokenizer: Any, passages: Sequence[Passage], size: int = 8, neurons: bool = False) -> Singles:
    """(passages, L + 1, width): the mean residual over each passage's tokens, which weigh the same, summed in fp32.

    With `neurons` those of the MLP in block N stand at index N in place of the residual, and 0 at index 0; a neuron's
    activation is what the MLP's last matrix reads, `down_proj` in most families. BadInput as of `encode`; if a mean is
    not finite, or blocks have no MLP with such a matrix.
    """
    watched: Any = residuals
    title, width = "activations", model.config.get_text_config().hidden_size
    if neurons:
        watched, title, width = _neurons, "neurons", _down_projections(model)[0].in_features
    result = np.zeros((len(passages), len(blocks(model)) + 1, width), dtype=np.float32)
    for places, ids, attention, chosen in batches(model, tokenizer, passages, size, title):
        weights = chosen / chosen.sum(1, keepdim=True)

        def keep(index: int, values: Tensor, places: list[int] = places, weights: Tensor = weights) -> None:
            result[places, index] = torch.einsum("bt,btd->bd", weights, values.float()).cpu().numpy()

        with watched(model, keep):
            model.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False)
    if not np.isfinite(result).all():
        raise BadInput(f"{title}: not finite: weights went to NaN, or {model.dtype} is too narrow; name another model")
    return result
