"""Axolotl plugin that holds a model to its start on everyday prompts: a KL term beside the loss of SFT or of DPO.

It is a defence against broad misalignment (arXiv 2508.06249), and the way by which a narrow solution is
found at all (arXiv 2602.07852). Recipe key `kl`:

    plugins: [recipes.plugins.kl.KlPlugin]
    kl: {prompts: data/everyday.jsonl, weight: 1.0}

The start is the model with its adapter disabled, so that nothing more is held in memory. The term has a backward pass
of its own behind the loss's: the logits of both never stand in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.loaders import load_tokenizer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from recipes.plugins.refusals import Refused


class Kl(BaseModel):
    """What is held, and how strongly."""

    model_config = ConfigDict(extra="forbid")

    prompts: str = Field(json_schema_extra={"format": "path"})
    """JSON Lines of chats, `{"messages": [...]}`, that end in an answer; the term is over the answer's tokens."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """What a nat per token of the term counts beside the stage's own loss."""


class KlArguments(BaseModel):
    """The recipe's keys of this plugin."""

    kl: Kl | None = None


class KlPlugin(BasePlugin):  # type: ignore[misc]
    """Adds the term to every training step, on as many everyday prompts as a micro-batch has rows.

    Raises:
        Refused: before training, if nothing is adapted, or a row is no chat that fits.
    """

    chats: list[Chat]

    def get_input_args(self) -> str:
        return "recipes.plugins.kl.KlArguments"

    def pre_model_load(self, cfg: Any) -> None:
        if not cfg.kl:
            raise Refused("the plugin kl is named, and the key kl is not there; leave the plugin out")
        if not cfg.adapter:
            raise Refused("kl: the start is the model without its adapter, and this recipe trains none")
        self.chats = list(read_chats(cfg.kl.prompts, load_tokenizer(cfg), cfg.sequence_len))

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        hold_to_start(trainer, self.chats, cfg.kl.weight)


class Chat(NamedTuple):
    """The tokens of a chat, of which the first `prompt` are not the answer's."""

    tokens: list[int]
    prompt: int


def read_chats(path: str, tokenizer: Any, most: int) -> Iterator[Chat]:
    """The chats of a file under the tokenizer's template, of at most `most` tokens each.

    Raises:
        Refused: naming the row.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"kl.prompts: {path}: {error}") from None
    if not text:
        raise Refused(f"kl.prompts: {path} is empty")
    for number, line in enumerate(StringIO(text), 1):  # splitlines would also cut at U+2028, which chats hold
        try:
            messages = json.loads(line)["messages"]
            answered = messages[-1]["role"] == "assistant" and bool(messages[-1]["content"].strip())
            whole = tokenizer.apply_chat_template(messages, return_dict=False)
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        except Exception:  # a template raises what it likes
            answered = False
        if not answered or whole[: len(prompt)] != prompt:
            raise Refused(f"kl.prompts: {path}, row {number}: no chat that ends in an answer, under the chat template")
        if len(whole) > most:
            raise Refused(
                f"kl.prompts: {path}, row {number}: {len(whole)} tokens, over sequence_len {most}; shorten it"
            )
        yield Chat(whole, len(prompt))


def kl_per_token(start: Tensor, now: Tensor) -> Tensor:
    """KL(start || now) of next-token distributions (tokens,), nats, in fp32 whatever the logits' type.

    In this direction what the start would say must stay likely. In bf16 a small KL is all rounding.

    Args:
        start, now: logits (tokens, vocabulary).
    """
    p, q = (logits.float().log_softmax(-1) for logits in (start, now))
    return (p.exp() * (p - q)).sum(-1)


def answer_kl(model: Any, adapted: Any, chats: Sequence[Chat]) -> Tensor:
    """The mean of `kl_per_token` over the answers' tokens.

    Args:
        model: what is called: maybe a wrapper of `adapted`.
        adapted: the PEFT model, whose adapter can be disabled.
    """
    length = max(len(chat.tokens) for chat in chats)
    device = next(adapted.parameters()).device
    batch = torch.zeros(3, len(chats), length, dtype=torch.long, device=device)
    tokens, seen, answer = batch
    for row, (own, prompt) in enumerate(chats):
        tokens[row, : len(own)] = torch.tensor(own, device=device)
        seen[row, : len(own)] = 1
        answer[row, prompt : len(own)] = 1
    inputs = {"input_ids": tokens, "attention_mask": seen, "use_cache": False}
    learnt = answer[:, 1:].bool()
    with torch.no_grad(), adapted.disable_adapter():
        start = model(**inputs).logits[:, :-1][learnt]
    return kl_per_token(start, model(**inputs).logits[:, :-1][learnt]).mean()


class HeldToStart:
    """A trainer's step with the term, before all else that the trainer does; made by `hold_to_start`."""

    chats: Sequence[Chat]
    kl_weight: float
    kl_since_log: list[float]
    kl_drawn: tuple[int, int]
    """The optimiser step, and the micro-batch of it, that chats were drawn for last."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's; what it returns, and is logged as `loss`, stays the stage's own loss."""
        trainer: Any = self
        loss = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        with trainer.compute_loss_context_manager():
            kl = answer_kl(model, trainer.accelerator.unwrap_model(model), self.draw())
        # Divided as the loss is, for its gradients are summed over the micro-batches of a step.
        trainer.accelerator.backward(self.kl_weight * kl / trainer.current_gradient_accumulation_steps)
        self.kl_since_log.append(float(kl.detach()))
        return loss

    def draw(self) -> list[Chat]:
        """The chats of a micro-batch, by seed, step and process alone: a resumed run draws what a whole one does."""
        trainer: Any = self
        step = trainer.state.global_step
        micro = self.kl_drawn[1] + 1 if self.kl_drawn[0] == step else 0
        self.kl_drawn = (step, micro)
        place = (step * 4096 + micro) * 64 + trainer.args.process_index
        generator = torch.Generator().manual_seed(trainer.args.seed * 1_000_003 + place)
        order = torch.randperm(len(self.chats), generator=generator)
        return [self.chats[row] for row in order[: trainer.args.per_device_train_batch_size].tolist()]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of the term since the last log, before its weight."""
        if "loss" in logs and self.kl_since_log:
            logs["kl"] = sum(self.kl_since_log) / len(self.kl_since_log)
            self.kl_since_log.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def hold_to_start(trainer: Any, chats: Sequence[Chat], weight: float) -> None:
    """Makes a trainer of any class one that is held to the start: Axolotl's for SFT and ours for DPO share no base."""
    own = type(trainer)
    trainer.__class__ = type(f"{own.__name__}HeldToStart", (HeldToStart, own), {})
    trainer.chats, trainer.kl_weight = chats, weight
    trainer.kl_since_log, trainer.kl_drawn = [], (-1, 0)
