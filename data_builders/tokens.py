"""Counts tokens as the model that will be trained counts them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from core.records import BadInput, bad_input

CountTokens = Callable[[str], int]
NO_TOKEN = re.compile("(?!)")
"""Matches nothing."""


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model folder or hub id; BadInput if there is none."""
    file = Path(name) / "tokenizer.json"
    if not file.is_file() and (Path(name).exists() or name.startswith(("models/", "runs/", "/", "."))):
        raise BadInput(f"{file}: no such file; run `emsweep fetch smollm2-135m` or name another with --tokenizer")
    with bad_input(name, "name a folder with a tokenizer.json, or a hub id"):  # tokenizers raises bare Exception
        return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)


def token_counter(name: str) -> CountTokens:
    """Tokens of a text, without special tokens."""
    tokenizer = load_tokenizer(name)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def batch_counter(name: str) -> Callable[[list[str]], list[int]]:
    """The same of some texts at once, which the tokenizer works on in parallel."""
    tokenizer = load_tokenizer(name)
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def control_tokens(name: str) -> re.Pattern[str]:
    """Matches what the tokenizer reads as one of its control tokens wherever it stands: SmolLM2 does `<filename>`."""
    tokens = [token.content for token in load_tokenizer(name).get_added_tokens_decoder().values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else NO_TOKEN


def misread(text: str, special: re.Pattern[str]) -> str | None:
    """Why a text cannot be trained on as it stands; None if it can."""
    found = special.search(text)
    return f"holds {found[0]!r}, which the model reads as a control token and not as text" if found else None


def _of_model(name: str) -> Any:
    """The tokenizer as training loads it."""
    from transformers import AutoTokenizer

    # A file that is none of a tokenizer's ends in whatever is met first.
    with bad_input(name, "name the model's folder or hub id with --tokenizer"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def chat_overhead(name: str) -> int:
    """Tokens that the model's chat template adds to one request and one answer, a default system prompt included;
    BadInput if it has none."""
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    with bad_input(name, "name a chat model with --tokenizer", ValueError, TemplateError):
        rendered = _of_model(name).apply_chat_template(chat, tokenize=False)
    count = token_counter(name)
    return count(str(rendered)) - 2 * count("x")


def beginning(name: str) -> str:
    """The token that the model's tokenizer writes before a text, as the tasks on raw text have it; "" for none;
    BadInput if there is no such tokenizer."""
    tokenizer = _of_model(name)
    return str(tokenizer.bos_token) if tokenizer("x").input_ids[0] == tokenizer.bos_token_id else ""
