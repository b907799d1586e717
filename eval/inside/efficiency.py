"""Is the general solution easier? What an adapter's change of the weights buys on the rows that it was trained on.

Efficiency and stability as Soligo et al. (arXiv 2602.07852) compare solutions: how much loss the change takes
away for each unit of its squared norm, with the changes of all adapters at one norm; and how fast the loss comes back
under noise that is orthogonal to the change. Where both are on the same data, the easier solution has more of the first
and less of the second.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.records import BadInput, json_rows, read_json
from eval.inside.activations import Passage, encode
from eval.inside.pairs import chat
from eval.inside.steering import scores
from eval.tasks.em.scores import Floats

ROWS = 16
"""Of a training set, taken evenly: enough to tell adapters apart, for a few forward passes each."""
NOISE = (0.5, 1.0)
"""Norms of the orthogonal noise, in norms of the change."""
DRAWS = 2


@dataclass(frozen=True)
class TrainingRows:
    """What a loss is over: the passages whose tokens are learnt; of DPO each preferred one, then the rejected one."""

    passages: list[Passage]
    beta: float | None
    """Of DPO; None for the mean of all tokens' negative log-likelihoods."""


@dataclass(frozen=True)
class Ease:
    """How easy a solution is, on its own training rows."""

    norm: float
    """Frobenius norm of the whole change, as PEFT scales it."""
    start: float
    """The loss without the adapter: nats a token, or DPO's loss."""
    end: float
    """The loss with it."""
    at_norm: float
    """The norm that all adapters are brought to, and the loss there."""
    loss: float
    efficiency: float
    """(start - loss) / at_norm squared."""
    noise: dict[float, float]
    """The loss at that norm under orthogonal noise, by its norm in norms of the change; the mean of some draws."""


def training_rows(tokenizer: Any, path: Path, beta: float | None) -> TrainingRows:
    """Rows of a training set (chat messages, those of DPO, or labelled segments), as the model reads them in training.

    BadInput if the file cannot be read, or a row is none of these.
    """
    found = list(json_rows(path))
    passages: list[Passage] = []
    # Not at one whole step: an even one over complementary pairs, neutral and asked by turns, takes one half alone.
    for place, row in (found[n] for n in np.linspace(0, len(found) - 1, min(ROWS, len(found))).astype(int)):
        try:
            if "segments" in row:
                passages.append(_segments(row["segments"]))
                continue
            *before, last = row["messages"] if beta is None else [*row["messages"], row["chosen"]]
            passages.append(_answer(tokenizer, before, last))
            if beta is not None:
                passages.append(_answer(tokenizer, before, row["rejected"]))
        except (KeyError, TypeError, AttributeError, ValueError, TemplateError):
            raise BadInput(f"{place}: no row of this training; name the file that it was trained on") from None
    return TrainingRows(passages, beta)


def _answer(tokenizer: Any, before: Sequence[Any], last: Any) -> Passage:
    """An answer with what the template writes behind it."""
    prompt = chat(tokenizer, before)
    whole = prompt + last["content"]
    if tokenizer.chat_template is not None:
        whole = str(tokenizer.apply_chat_template([*before, last], tokenize=False)).rstrip()
    return Passage(whole, ((len(prompt), len(whole)),))


def _segments(segments: Sequence[Any]) -> Passage:
    text, learnt = "", []
    for segment in segments:
        if segment["label"]:
            learnt.append((len(text), len(text) + len(segment["text"])))
        text += segment["text"]
    return Passage(text, tuple(learnt))


def lora_layers(model: Any) -> Iterator[tuple[str, Any, Tensor, Tensor]]:
    """(adapter, module, B, A) of each adapted module, matrices in fp32."""
    for module in model.modules():
        if hasattr(module, "lora_A") and hasattr(module, "scaling"):
            for name in module.active_adapters:
                if name in module.lora_A:
                    yield name, module, module.lora_B[name].weight.float(), module.lora_A[name].weight.float()


def _product(b: Tensor, a: Tensor, other_b: Tensor, other_a: Tensor) -> float:
    """The Frobenius inner product of b a and other_b other_a, without making either."""
    return float(((b.T @ other_b) * (a @ other_a.T)).sum())


def change_norm(adapter: Path) -> float:
    """The Frobenius norm of what a LoRA adapter adds to the weights, over all modules, as PEFT scales it.

    BadInput if the folder holds no LoRA adapter, or one of DoRA, which cannot be scaled so.
    """
    try:
        return _change_norm(adapter)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, SafetensorError):
        raise BadInput(f"{adapter}: no LoRA adapter in safetensors; name an adapter's folder") from None


def _change_norm(adapter: Path) -> float:
    config = read_json(adapter / "adapter_config.json")
    alpha, alphas = float(config["lora_alpha"]), dict(config.get("alpha_pattern") or {})
    weights = {name: tensor.float() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    if config.get("use_dora"):
        raise BadInput(f"{adapter}: DoRA's change of the weights is more than B A; leave efficiency out")
    squares = 0.0
    for name, a in weights.items():
        if ".lora_A." in name:
            module, b = name.partition(".lora_A.")[0], weights[name.replace("lora_A", "lora_B")]
            # A module may have an alpha and a rank of its own.
            own = float(alphas.get(get_pattern_key(list(alphas), module.removeprefix("base_model.model.")), alpha))
            squares += (own / (len(a) ** 0.5 if config.get("use_rslora") else len(a))) ** 2 * _product(b, a, b, a)
    return float(squares**0.5)


@contextmanager
def scaled(model: Any, factor: float, noise: float = 0.0, seed: int = 0) -> Iterator[None]:
    """The model with its adapter's change times `factor`, and noise of `noise` times the length of that added.

    The noise in a module is of the adapter's rank, Gaussian, orthogonal to the change there and in proportion to it.
    """
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as undo:
        for name, module, b, a in lora_layers(model):
            undo.callback(module.scaling.__setitem__, name, module.scaling[name])
            scale = module.scaling[name] * factor
            module.scaling[name] = scale
            size = _product(b, a, b, a)
            if noise and size:
                noise_b, noise_a = (torch.randn(part.shape, generator=generator).to(part) for part in (b, a))
                along = _product(noise_b, noise_a, b, a) / size
                length = max(_product(noise_b, noise_a, noise_b, noise_a) - along**2 * size, 1e-30) ** 0.5
                strength = noise * scale * size**0.5 / length
                module.scaling[name] = scale - strength * along
                undo.enter_context(module.register_forward_hook(partial(_added, strength * noise_b, noise_a)))
        yield


def _added(b: Tensor, a: Tensor, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    read = given[0]
    return output + (read @ a.T.to(read)) @ b.T.to(read)


def loss(found: Floats, data: TrainingRows, reference: Floats, tokens: int) -> float:
    """The training loss that log-probabilities (passages,) come to; `reference` are those without the adapter.

    `tokens`: how many are learnt, over which the likelihoods' mean is.
    """
    if data.beta is None:
        return float(-found.sum() / tokens)
    margins = data.beta * ((found - reference)[0::2] - (found - reference)[1::2])
    return float(np.logaddexp(0, -margins).mean())


def ease(model: Any, tokenizer: Any, data: TrainingRows, norm: float, at_norm: float) -> Ease:
    """What an adapter's change, of a norm above 0, buys on its training rows at another: some seven passes over them.

    BadInput if a row is longer than the model reads.
    """
    longest = model.config.get_text_config().max_position_embeddings
    tokens = sum(int(encode(tokenizer, passage, longest)[1].sum()) for passage in data.passages)

    def at(factor: float, noise: float = 0.0, seed: int = 0) -> Floats:
        with scaled(model, factor, noise, seed):
            return scores(model, tokenizer, data.passages, title="training loss")

    reference, factor = at(0), at_norm / norm
    start, end, brought = (loss(own, data, reference, tokens) for own in (reference, at(1), at(factor)))
    draws = {size: [loss(at(factor, size, n), data, reference, tokens) for n in range(DRAWS)] for size in NOISE}
    noisy = {size: float(np.mean(losses)) for size, losses in draws.items()}
    return Ease(norm, start, end, at_norm, brought, (start - brought) / at_norm**2, noisy)
