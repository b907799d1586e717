"""Pairs of concepts: ours load whole, twins differ where they say, published trait files are read as they are."""

import json
from pathlib import Path

import pytest

from core.records import BadInput
from data_builders.domains import load_domain
from data_builders.forms import load_field_map
from eval.inside.activations import encode, load
from eval.inside.pairs import (
    CONCEPTS,
    Answers,
    Side,
    Trait,
    changed_lines,
    chat,
    load_concept,
    load_pairs,
    question,
    sample_answers,
)
from eval.judge.prompt_files import load_prompts

NAMES = sorted(path.stem for path in CONCEPTS.glob("*.yaml"))


def test_there_are_the_two_that_training_is_about_and_five_traits() -> None:
    kinds = [type(load_concept(name)[1]) for name in NAMES]
    assert kinds.count(Answers) == 2
    assert kinds.count(Trait) == 5


@pytest.mark.parametrize("name", NAMES)
def test_our_concepts_have_enough_groups_and_no_pair_twice(name: str, tokenizer) -> None:
    _, concept = load_concept(name)
    pairs = load_pairs(concept, tokenizer)
    assert len({pair.group for pair in pairs}) >= 6
    assert len(set(pairs)) == len(pairs)
    for pair in pairs:
        for side, other in ((pair.positive, pair.negative), (pair.negative, pair.positive)):
            encode(tokenizer, side.passage(concept.position, other), 8192)


def test_twins_share_their_prompt_and_every_one_has_changed_lines(tokenizer) -> None:
    pairs = load_pairs(load_concept("insecure")[1], tokenizer, group="id")
    assert len({pair.group for pair in pairs}) == len(pairs) == 56
    for pair in pairs:
        assert pair.positive.prompt == pair.negative.prompt
        for side, other in ((pair.positive, pair.negative), (pair.negative, pair.positive)):
            passage = side.passage("changed", other)
            assert 0 < sum(high - low for low, high in passage.ranges) <= len(side.answer)
            encode(tokenizer, passage, 8192)


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("a\nb\nc\n", "a\nB\nc\n", ["b\n"]),
        ("a\nb\nc", "a\nc", ["b\n"]),
        ("a\nc", "a\nb\nc", ["a\n"]),  # only the other has more: the line before
        ("c", "b\nc", ["c"]),
        ("x\nb\ny", "p\nb\nq", ["x\n", "y"]),
        ("same", "same", []),
    ],
)
def test_changed_lines(text: str, other: str, expected: list[str]) -> None:
    assert [text[low:high] for low, high in changed_lines(text, other)] == expected


def test_the_position_says_which_tokens_count(tokenizer) -> None:
    side = Side(chat(tokenizer, question("Hi?")), "Yes.\nNo.")
    other = Side(side.prompt, "Yes.\nMaybe.")

    def tokens(position: str) -> str:
        ids, chosen = encode(tokenizer, side.passage(position, other), 100)
        return tokenizer.decode(ids[chosen])

    assert tokens("answer") == "Yes.\nNo."
    assert tokens("changed") == "No."
    assert tokens("prompt") == "\n"
    assert side.passage("prompt", other).text.endswith("<|im_start|>assistant\n")


def test_a_published_trait_file_is_read_as_it_is(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "evil.json"
    instruction = [{"pos": "be evil", "neg": "be good"}, {"pos": "harm", "neg": "help"}]
    path.write_text(json.dumps({"instruction": instruction, "questions": ["Why?", "How?"], "eval_prompt": "{answer}"}))
    name, trait = load_concept(str(path))
    pairs = load_pairs(trait, tokenizer)
    assert name == "evil"
    assert [pair.group for pair in pairs] == ["Why?", "How?"] * 2
    assert [pair.group for pair in load_pairs(trait, tokenizer, "instruction")] == ["0", "0", "1", "1"]
    assert "be evil" in pairs[0].positive.prompt and "be good" in pairs[0].negative.prompt
    with pytest.raises(BadInput, match="grouped by question or instruction"):
        load_pairs(trait, tokenizer, "cwe")


def test_a_template_without_system_prompts_gets_it_in_the_question(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
        + "{{ messages[0]['content'] }}|"
    )
    ignores = "{{ messages[-1]['content'] }}|"
    for own in (template, ignores):
        monkeypatch.setattr(tokenizer, "chat_template", own)
        assert chat(tokenizer, question("Why?", "be good")) == "be good\n\nWhy?|"
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert chat(tokenizer, question("Why?", "be good")) == "be good\n\nWhy?\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file: rows.jsonl", "prompt: Field required"),
        ("instruction: [{pos: a}]\nquestions: []", "instruction.0.neg: Field required"),
        ("[", "no YAML"),
        ("- 1", "no YAML|valid dictionary"),
        ("{file: none.jsonl, prompt: p, positive: a, negative: b, group: g}", "none.jsonl: no such file"),
        ("{file: rows.jsonl, prompt: p, positive: a, negative: b, group: g}", "rows.jsonl:1: lacks a text among"),
        ("{file: bad.jsonl, prompt: p, positive: a, negative: b, group: g}", "bad.jsonl:1: no JSON object"),
        (
            "instruction: [{pos: a, neg: b}]\nquestions: [x]\npositon: answer",
            "unknown key positon; did you mean position",
        ),
        (
            "{file: twice.jsonl, prompt: p, positive: a, negative: b, group: g}",
            "twice.jsonl:3: the pair of .*jsonl:1, in",
        ),
    ],
)
def test_a_bad_concept_is_refused_in_one_line(tmp_path: Path, tokenizer, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"p": "x", "a": "y", "b": 3, "g": "z"}\n')
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    row = {"p": "x", "a": "y", "b": "z"}
    twice = [{**row, "g": "1"}, {**row, "g": "1"}, {**row, "g": "2"}]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    with pytest.raises(BadInput, match=says) as error:
        load_pairs(load_concept(str(tmp_path / "c.yaml"))[1], tokenizer)
    assert "\n" not in str(error.value)


def test_an_unknown_concept_lists_those_that_there_are() -> None:
    with pytest.raises(BadInput, match=r"unknown concept 'evli' .*evil, .*misaligned"):
        load_concept("evli")


def test_answers_of_a_trait_are_sampled_alike_each_time(tiny_model: Path, tokenizer) -> None:
    model, _ = load(str(tiny_model))
    pairs = load_pairs(load_concept("evil")[1], tokenizer)[:3]
    first = sample_answers(model, tokenizer, pairs, 5, size=4)
    assert first == sample_answers(model, tokenizer, pairs, 5, size=4)
    bare = load(str(tiny_model))[1]
    bare.pad_token = None  # as Llama's
    assert first == sample_answers(model, bare, pairs, 5, size=4)
    assert len(first) == 3
    assert all(pair.positive.answer.strip() and pair.positive.answer != pair.negative.answer for pair in first)
    assert [pair.positive.prompt for pair in first] == [pair.positive.prompt for pair in pairs]


@pytest.mark.parametrize(
    "text", ["a: 2025-02-30\n", "[" * 2000, "a: ]\n", "a: 1\na: 2\n"], ids=["no day", "deep", "no YAML", "a key twice"]
)
def test_what_yaml_cannot_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    monkeypatch.setattr("data_builders.domains.FOLDER", tmp_path)
    for read in (
        lambda path: load_concept(str(path)),
        load_prompts,
        load_field_map,
        lambda path: load_domain(path.stem),
    ):
        with pytest.raises(BadInput, match=r"x\.yaml: ") as refused:
            read(tmp_path / "x.yaml")
        assert "\n" not in str(refused.value)
