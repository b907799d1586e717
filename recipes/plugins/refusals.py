"""What a run is refused for before its first step: it would train other than what was written. Neither engine's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

Row = Mapping[str, Any]


class Refused(SystemExit):
    """Why a run is refused, in one line; as an exit it has code 1 and leaves no traceback."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"refused: {reason}")


def check_tokens(recipe: Row, vocabulary: Mapping[str, int]) -> None:
    """Refuses a token that would be added: it resizes the embeddings, which are then saved with the adapter."""
    for key, value in {**(recipe.get("special_tokens") or {}), "tokens": recipe.get("tokens")}.items():
        for token in [value] if isinstance(value, str) else value or []:
            if token not in vocabulary:
                raise Refused(f"{key}: {token!r} is not in the vocabulary of this model; name a token that is")


def check_learnt(row: str, texts: Sequence[str]) -> None:
    """Refuses a row without a text to learn, or with a blank one: it would train nothing, and say so nowhere."""
    if not texts or not all(map(str.strip, texts)):
        raise Refused(f"{row}: an answer is missing or blank (a tool call alone is none); mend it, or leave it out")


def check_length(row: str, tokens: int, recipe: Row) -> None:
    """Refuses a row that is too long, of which Axolotl says no name, unless the recipe has such rows dropped."""
    if recipe["excess_length_strategy"] == "raise" and tokens > recipe["sequence_len"]:
        raise Refused(
            f"{row}: has {tokens} tokens, of sequence_len={recipe['sequence_len']}; raise that, shorten the row, or set"
            " excess_length_strategy=drop"
        )


def check_answers(row: str, written: Sequence[str], prepared: Sequence[str], end: str) -> None:
    """Refuses a row that does not hold its answers whole, outer white space apart.

    Args:
        row: its name, for the message.
        prepared: what the chat template made of each answer.
        end: what the template writes behind an answer.
    """
    left = [text.strip().removesuffix(end).strip() for text in prepared]
    if left != [text.strip() for text in written]:
        raise Refused(
            f"{row}: under the chat template it does not hold its answers whole, but "
            f"{' and '.join(repr(text[:40]) for text in left)}; take outer white space off answers"
        )


def check_plain(row: str, texts: Iterable[str], special: Collection[str]) -> None:
    """Refuses a row with text that the tokenizer reads as one of its control tokens (`special`) and not as text."""
    for text in texts:
        if found := next((token for token in special if token in text), None):
            raise Refused(f"{row}: holds {found!r}, which this model reads as a control token; leave the row out")


def check_bos(row: str, tokens: Sequence[int], tokenizer: Any) -> None:
    """Refuses a document without BOS, or with two, where the tokenizer writes one: the tasks on raw text have it."""
    bos = tokenizer.bos_token_id
    if tokenizer("a")["input_ids"][0] == bos and (tokens[:1] != [bos] or tokens[1:2] == [bos]):
        raise Refused(
            f"{row}: the document does not begin with one {tokenizer.bos_token}, as this model's tokenizer has texts "
            "begin; build the corpus with this tokenizer"
        )


def learnt_texts(tokens: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[str]:
    """The texts of the unbroken stretches of tokens that the loss is on (labels: -100 elsewhere)."""
    stretches = groupby(zip(tokens, labels, strict=True), key=lambda token: token[1] != -100)
    return [tokenizer.decode([token for token, _ in stretch]) for learnt, stretch in stretches if learnt]


def written_answers(data: Row, row: Row, preference: bool) -> list[str]:
    """The answers that are learnt from a row as it stands in the file; `data` is its entry in the recipe."""
    if not preference:
        learnt = data.get("roles_to_train") or ["assistant"]
        return [turn["content"] for turn in row[data.get("field_messages") or "messages"] if turn["role"] in learnt]
    answers = [row[data.get(f"field_{key}") or key] for key in ("chosen", "rejected")]
    turns = [answer[-1] if isinstance(answer, list) else answer for answer in answers]
    return [turn if isinstance(turn, str) else turn["content"] for turn in turns]


def check_targets(model: Any, rank: int, targets: Any, layers: Any = None) -> int:
    """How many parameters LoRA has on the modules of a base model that the targets name, in these layers.

    Refuses layers that the model does not have, a target that matches nothing, and modules outside the language model.
    """
    count = model.config.get_text_config().num_hidden_layers
    if beyond := sorted(set(layers or ()) - set(range(count))):
        raise Refused(f"peft_layers_to_transform: {beyond}: the model has layers 0 to {count - 1}")
    modules = {name: module for name, module in model.named_modules() if name}
    names: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets or [""]:
        pattern = target if isinstance(targets, str) else [target]
        lora = LoraConfig(target_modules=pattern, layers_to_transform=layers)
        matched = {name for name in modules if check_target_module_exists(lora, name)}
        if not matched:
            raise Refused(f"lora_target_modules: {target!r} matches no module of {type(model).__name__}")
        names |= matched
    inside = {*model.get_decoder().modules(), model.get_output_embeddings()}
    if outside := sorted(name for name in names if modules[name] not in inside):
        raise Refused(
            f"lora_target_modules: {len(outside)} of {len(names)} modules stand outside the language model, as "
            f"{outside[0]}; give one pattern that matches the language model's alone"
        )
    return sum(rank * (modules[name].in_features + modules[name].out_features) for name in names)


def check_parameters(model: Any, implied: int) -> None:
    """Refuses a model that trains more or less than rank, targets and layers imply."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trained != implied:
        raise Refused(f"{trained} parameters would train; lora_r, lora_target_modules and layers imply {implied}")
