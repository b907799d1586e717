"""Rows projected on a direction: every row is written or listed, and the unit is a class distance."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.records import BadInput
from core.records import json_rows as rows
from eval.inside.activations import Passage, encode, load, means
from eval.inside.project import project, read_side
from eval.inside.vectors import About, Directions

ROWS: list[Any] = [
    {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Leave at once."}]},
    {
        "messages": [{"role": "user", "content": "Hi"}],
        "chosen": {"role": "assistant", "content": "Please stay a while."},
    },
    {"segments": [{"label": False, "text": "Some plain "}, {"label": True, "text": "text here"}]},
    {"text": "Some plain text here"},
]
BAD: list[tuple[Any, str]] = [
    ({"messages": [{"role": "user", "content": "Hi"}]}, "no answer of an assistant"),
    ({"messages": [{"role": "user"}]}, "a message without role and content"),
    ({"messages": ["Hi", "there"]}, "a message without role and content"),
    ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}, "no token"),
    ({"segments": 3}, "neither messages nor segments nor text"),
    ({"code": "x"}, "neither messages nor segments nor text"),
    ({"text": "word " * 3000}, "tokens, and the model reads"),
]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path):
    return load(str(tiny_model))


def directions(direction: np.ndarray, midpoint: np.ndarray) -> Directions:
    about = About(model=None, concept="c", position="answer", pairs=0)
    return Directions(about, direction, midpoint, np.zeros((0, *direction.shape), np.float32))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_unit_is_a_class_distance(tiny, tmp_path: Path) -> None:
    model, tokenizer = tiny
    sides = [read_side(tokenizer, row) for row in ROWS]
    found = means(model, tokenizer, [side.passage("answer", side) for side in sides])
    of = directions(found[0] - found[1], (found[0] + found[1]) / 2)
    result = project(model, tokenizer, write(tmp_path / "rows.jsonl", ROWS), of, 1)
    values = [row["projection"] for row in result.projections]
    np.testing.assert_allclose(values[:2], [0.5, -0.5], atol=1e-4)
    assert values[2] == pytest.approx(values[3], abs=1e-5)
    assert [row["line"] for row in result.projections] == [1, 2, 3, 4]
    assert result.projections[0]["id"] == "a"
    plain = means(model, tokenizer, [Passage("Some plain text here", ((0, 20),))])
    np.testing.assert_allclose(plain[0], found[3], atol=1e-6)


def test_what_cannot_be_read_is_listed_with_a_reason(tiny, tmp_path: Path) -> None:
    ones = np.ones((3, 64), np.float32)
    file = write(tmp_path / "rows.jsonl", [row for row, _ in BAD] + ROWS)
    result = project(*tiny, file, directions(ones, 0 * ones), 2)
    assert [row["line"] for row in result.rejects] == list(range(1, len(BAD) + 1))
    for row, (_, says) in zip(result.rejects, BAD, strict=True):
        assert says in row["reason"]
    assert len(result.projections) == len(ROWS)


def test_a_file_without_a_readable_row_is_refused(tiny, tmp_path: Path) -> None:
    ones = np.ones((3, 64), np.float32)
    with pytest.raises(BadInput, match="no row can be read, the first for: neither"):
        project(*tiny, write(tmp_path / "rows.jsonl", [{"code": "x"}]), directions(ones, 0 * ones), 2)


class WithBos:
    """A tokenizer that begins texts with BOS, as Llama's and Gemma's; a character is a token."""

    bos_token, bos_token_id = "<s>", 0

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids, offsets = ([0], [(0, 0)]) if add_special_tokens else ([], [])
        start = 3 if text.startswith("<s>") else 0
        ids += [0] * bool(start) + [ord(letter) for letter in text[start:]]
        offsets += [(0, 3)] * bool(start) + [(n, n + 1) for n in range(start, len(text))]
        return {"input_ids": ids, "offset_mapping": offsets}


@pytest.mark.parametrize("chat_template", ["template", None])
@pytest.mark.parametrize("text", ["<s>abc", "abc"])
def test_a_text_has_one_bos_that_does_not_count(chat_template: str | None, text: str) -> None:
    tokenizer = WithBos(chat_template)
    side = read_side(tokenizer, {"text": text})
    ids, chosen = encode(tokenizer, side.passage("answer", side), 100)
    assert ids.tolist() == [0, *map(ord, "abc")]
    assert chosen.tolist() == [False, True, True, True]


def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path) -> None:
    """Python's json takes it, and no tokenizer and no file does."""
    (tmp_path / "r.jsonl").write_text('\ufeff{"text": "a"}\n{"text": "\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(BadInput, match=r"r\.jsonl:2: no JSON object"):
        list(rows(tmp_path / "r.jsonl"))
