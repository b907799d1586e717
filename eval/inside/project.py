"""Rows of a data set projected on a direction: those that lean to a concept, found before anything is trained on them.

Index N is the residual behind N blocks. The unit is the distance of the concept's classes: 0 is midway, 0.5 the mean of
the positive class, -0.5 that of the negative one. A published file has no midpoint, and zeros stand in: of its
projections only differences between rows mean something.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from core.partial import Partial
from core.records import BadInput, json_rows, one_line
from eval.inside.activations import encode, means
from eval.inside.pairs import Position, Side, chat
from eval.inside.vectors import Directions

CHUNK = 64
"""Rows whose means are held in memory at a time."""


@dataclass(frozen=True)
class Projected:
    """What became of the rows of a file: each has a projection, or a reason why not."""

    projections: list[dict[str, Any]]
    """line (from 1), id if the row has one, projection, and the answer's start."""
    rejects: list[dict[str, Any]]
    """line and reason."""


def read_side(tokenizer: Any, row: Mapping[str, Any]) -> Side:
    """The prompt and answer of a row: chat messages that end in an answer, those of DPO with `chosen`, or plain text.

    ValueError if it is no such row; the message says why.
    """
    messages, chosen = row.get("messages"), row.get("chosen")
    if isinstance(messages, list):
        told = [*messages, *([chosen] if chosen else [])]
        if not all(
            isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in told
        ):
            raise ValueError("a message without role and content")
        if len(told) < 2 or told[-1]["role"] != "assistant":
            raise ValueError("no answer of an assistant at its end")
        return Side(chat(tokenizer, told[:-1]), told[-1]["content"])
    parts = row.get("segments") or [row]
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise ValueError("neither messages nor segments nor text")
    text = "".join(part["text"] for part in parts)
    # Without the BOS that its tokenizer begins texts with, a model such as Gemma or Llama reads none as it does chats.
    bos = tokenizer.bos_token
    begun = not bos or text.startswith(bos) or tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id
    return Side("" if begun else bos, text)


def project(
    model: Any, tokenizer: Any, path: Path, directions: Directions, layer: int, kept: Partial | None = None
) -> Projected:
    """The projection of each row's answer (its mean activation at `layer`) on a direction; `kept` keeps a `CHUNK`'s.

    BadInput if the file or none of its rows can be read, or the direction has no such layer.
    """
    vector, midpoint = directions.at(layer).astype(float), directions.midpoint[layer].astype(float)
    position: Position = "prompt" if directions.about.position == "prompt" else "answer"
    longest = model.config.get_text_config().max_position_embeddings
    read, rejects = [], []
    for line, (_, row) in enumerate(json_rows(path), 1):
        try:
            side = read_side(tokenizer, row)
            passage = side.passage(position, side)
            encode(tokenizer, passage, longest)
        except (BadInput, TemplateError, ValueError) as error:
            rejects.append({"line": line, "reason": one_line(error)})
            continue
        read.append(({"line": line, **({"id": row["id"]} if "id" in row else {})}, side, passage))
    if not read:
        raise BadInput(f"{path}: no row can be read, the first for: {rejects[0]['reason']}; give chat messages or text")

    def values(start: int) -> list[float]:
        part = means(model, tokenizer, [passage for *_, passage in read[start : start + CHUNK]])[:, layer]
        projected: list[float] = ((part - midpoint) @ vector / (vector @ vector)).tolist()
        return projected

    found: list[float] = []
    for start in range(0, len(read), CHUNK):
        found += kept.of(str(start), partial(values, start)) if kept else values(start)
    projections = [
        {**about, "projection": value, "answer": side.answer[:200]}
        for (about, side, _), value in zip(read, found, strict=True)
    ]
    return Projected(projections, rejects)
