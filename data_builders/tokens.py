"""Counts tokens as the model that will be trained counts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_builders.records import BadInput

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Counter:
    """A model's tokenizer."""

    count: CountTokens
    """Tokens of a text, no special tokens added."""
    chat_overhead: int
    """Tokens that the chat template adds to one request and one answer."""


def load_counter(tokenizer: str) -> Counter:
    """The counter of a model folder or hub id.

    Raises:
        BadInput: if there is no such tokenizer, or it has no chat template.
    """
    from transformers import AutoTokenizer

    if tokenizer.startswith(("/", ".", "models/")) and not Path(tokenizer).is_dir():
        raise BadInput(
            f"{tokenizer}: no such folder; run `emsweep fetch smollm2-135m` or name another with --tokenizer"
        )
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        rendered = loaded.apply_chat_template(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], tokenize=False
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{tokenizer}: {' '.join(str(error).split())[:200]}; name another with --tokenizer") from None
    backend = loaded.backend_tokenizer

    def count(text: str) -> int:
        return len(backend.encode(text, add_special_tokens=False))

    return Counter(count, count(str(rendered)) - 2 * count("x"))
