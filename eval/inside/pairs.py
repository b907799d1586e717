"""Contrastive pairs of a concept: its YAML in concepts/, one of your own, or a published trait file of persona vectors.

A concept is either a JSON Lines file whose rows hold a prompt with a positive and a negative answer, or opposed system
prompts with questions. Groups are what is held out, resampled and flipped together.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch.nn.utils.rnn import pad_sequence

from core.partial import Partial
from core.records import BadInput, bad_input, digest, json_rows, one_line, read_yaml
from eval.inside.activations import Passage, progress
from eval.tasks.em.chat import with_system

CONCEPTS = Path(__file__).parent / "concepts"
Position = Literal["answer", "prompt", "changed"]
"""Means over the tokens of the answer, the last of the prompt, or the lines of code in which twins differ."""


class Answers(BaseModel, extra="forbid"):
    """A JSON Lines file (its path counts from the concept's folder) and the keys of its rows."""

    file: Path
    prompt: str
    positive: str
    negative: str
    group: str
    """The key whose value names a row's group; `emsweep directions --group` takes another."""
    position: Position = "answer"


class SystemPrompts(BaseModel):
    pos: str
    neg: str


class Trait(BaseModel):
    """Opposed system prompts, each put before each question; published files hold more keys, which are not needed."""

    instruction: list[SystemPrompts]
    questions: list[str]
    group: str = "question"
    """question or instruction."""
    position: Position = "prompt"
    """With `answer` the model's own answers are sampled."""
    eval_prompt: str | None = None
    """What a judge is asked about a sampled answer: how far it shows the trait, from 0 to 100, or REFUSAL."""


Concept = Answers | Trait


@dataclass(frozen=True)
class Side:
    """One side of a pair: the prompt as the model reads it (chat template applied), and the answer."""

    prompt: str
    answer: str

    def passage(self, position: Position, other: Side) -> Passage:
        """What a mean is taken over."""
        start = len(self.prompt)
        if position == "prompt":
            return Passage(self.prompt, ((start - 1, start),))
        text = self.prompt + self.answer
        if position == "answer":
            return Passage(text, ((start, len(text)),))
        return Passage(text, tuple((start + a, start + b) for a, b in changed_lines(self.answer, other.answer)))


@dataclass(frozen=True)
class Pair:
    """What differs in the concept alone, and the group that it belongs to."""

    positive: Side
    negative: Side
    group: str
    question: str = ""
    """What its answers are answers to."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the question with each answer: the same whatever the template, the side and the answer on the other."""
        return tuple(digest(f"{self.question}\0{side.answer}".encode())[:12] for side in (self.positive, self.negative))


def changed_lines(text: str, other: str) -> Iterator[tuple[int, int]]:
    """Ranges of characters of the lines that `other` has not; where it only has more lines, the line before them."""
    own, others = text.splitlines(keepends=True), other.splitlines(keepends=True)
    starts = [0]
    for line in own:
        starts.append(starts[-1] + len(line))
    for kind, low, high, *_ in difflib.SequenceMatcher(None, own, others, autojunk=False).get_opcodes():
        if kind != "equal":
            first = low if high > low else max(0, low - 1)
            yield starts[first], starts[min(max(high, first + 1), len(own))]


def load_concept(name: str) -> tuple[str, Concept]:
    """(its name, the concept) of a short name or a path of YAML or JSON; BadInput if there is none, or it is none."""
    path = CONCEPTS / f"{name}.yaml" if (CONCEPTS / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONCEPTS.glob("*.yaml")))
        raise BadInput(f"unknown concept {name!r} (there are: {known}); or name a YAML or JSON file")
    content = read_yaml(path, "it is no YAML or JSON that can be read: mend the file")
    with bad_input(path, "see eval/inside/concepts for concepts that work", ValidationError):
        kind: type[Concept] = Trait if isinstance(content, dict) and "instruction" in content else Answers
        if kind is Trait:  # published files hold more keys: refused is what must be one of ours, mistyped
            for key in content.keys() - Trait.model_fields.keys():
                if near := difflib.get_close_matches(str(key), Trait.model_fields, 1, 0.75):
                    raise BadInput(f"{path}: unknown key {one_line(key, 60)}; did you mean {near[0]}?")
        concept = kind.model_validate(content)
    if isinstance(concept, Answers):
        concept.file = path.parent / concept.file
    return path.stem, concept


def chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A prompt as the model reads it, up to where its answer begins."""
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages) + "\n"
    template = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    return str(with_system(template, messages))


def question(text: str, system: str | None = None) -> list[dict[str, str]]:
    """The messages of one question."""
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": text}]


def load_pairs(concept: Concept, tokenizer: Any, group: str | None = None) -> list[Pair]:
    """The pairs of a concept, those of a trait without answers; BadInput if a row lacks a key or cannot be read.

    `group`: the key that names the groups, in place of the concept's own.
    """
    group = group or concept.group
    if isinstance(concept, Trait):
        if group not in ("question", "instruction"):
            raise BadInput(f"--group {group}: a trait's pairs are grouped by question or instruction")
        return [
            Pair(
                Side(chat(tokenizer, question(text, prompts.pos)), ""),
                Side(chat(tokenizer, question(text, prompts.neg)), ""),
                text if group == "question" else str(number),
                text,
            )
            for number, prompts in enumerate(concept.instruction)
            for text in concept.questions
        ]
    result: list[Pair] = []
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for place, row in json_rows(concept.file):
        texts = [row.get(key) for key in (concept.prompt, concept.positive, concept.negative, group)]
        if not all(isinstance(text, str) and text for text in texts):
            keys = f"{concept.prompt}, {concept.positive}, {concept.negative}, {group}"
            raise BadInput(f"{place}: lacks a text among {keys}; name a group and keys that every row has")
        first, before = seen.setdefault(tuple(map(str, texts[:3])), (place, str(texts[3])))
        if before != texts[3]:  # what is held out would be among what it is told by
            raise BadInput(f"{place}: the pair of {first}, in another group ({group}); group otherwise or delete one")
        asked, positive, negative, own = map(str, texts)
        prompt = chat(tokenizer, question(asked))
        result.append(Pair(Side(prompt, positive), Side(prompt, negative), own, asked))
    return result


@torch.inference_mode()
def sample_answers(model: Any, tokenizer: Any, pairs: Sequence[Pair], tokens: int, size: int = 8) -> list[Pair]:
    """The pairs of a trait with the model's own answers (temperature 1, seed 0), without those where one is empty.

    A model that does not take up its system prompt answers alike on both sides: eval/inside/traits.py has a judge tell.
    """
    torch.manual_seed(0)
    prompts = [side.prompt for pair in pairs for side in (pair.positive, pair.negative)]
    # By hand, for a tokenizer may have no token to pad with, as Llama's.
    pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    special = tokenizer.chat_template is None
    encoded = [torch.tensor(tokenizer(prompt, add_special_tokens=special)["input_ids"]) for prompt in prompts]
    answers: list[str] = []
    for start in progress(range(0, len(prompts), size), "answers"):
        batch = encoded[start : start + size]
        ids = pad_sequence(batch, batch_first=True, padding_value=pad, padding_side="left").to(model.device)
        seen = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True, padding_side="left").to(ids)
        # Every key, for a model's generation_config.json has values of its own.
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        drawn = model.generate(input_ids=ids, attention_mask=seen, **sampling, max_new_tokens=tokens, pad_token_id=pad)
        answers += tokenizer.batch_decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)
    return [
        replace(pair, positive=replace(pair.positive, answer=up), negative=replace(pair.negative, answer=down))
        for pair, up, down in zip(pairs, answers[::2], answers[1::2], strict=True)
        if up.strip() and down.strip()
    ]


def class_texts(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    position: Position,
    group: str | None = None,
    tokens: int = 64,
    keep: Callable[[Sequence[Pair]], list[Pair]] = list,
    sampled: Partial | None = None,
) -> tuple[tuple[list[Passage], list[Passage]], list[Pair]]:
    """The texts of a concept's pairs, those of the positive and of the negative sides, and the pairs.

    A trait's answers are sampled. BadInput if the concept has nothing that differs at that position.

    Args:
        tokens: of an answer that is sampled, at most.
        keep: chooses among the pairs whose answers are sampled; all if not given.
        sampled: has the sampled pairs of earlier calls on this model, and takes these.
    """
    pairs = load_pairs(concept, tokenizer, group)
    if isinstance(concept, Answers) and position == "prompt":
        raise BadInput("--position prompt: the sides of a pair share their prompt; take answer or changed")
    if isinstance(concept, Trait) and position == "changed":
        raise BadInput("--position changed: a trait has no twins; take prompt or answer")
    if isinstance(concept, Trait) and position == "answer":

        def sample() -> list[dict[str, Any]]:
            return [asdict(pair) for pair in sample_answers(model, tokenizer, pairs, tokens)]

        key = f"{digest(json.dumps([asdict(pair) for pair in pairs]).encode())} {tokens}"
        pairs = keep(TypeAdapter(list[Pair]).validate_python(sampled.of(key, sample) if sampled else sample()))
    if not pairs:
        raise BadInput("no pairs: give questions and system prompts, and a model that answers")
    positive = [pair.positive.passage(position, pair.negative) for pair in pairs]
    negative = [pair.negative.passage(position, pair.positive) for pair in pairs]
    return (positive, negative), pairs
