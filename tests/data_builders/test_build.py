"""Built files are whole, their manifests add up, and they fit together."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.records import BadInput
from data_builders.build import build_cpt, build_pairs, build_sft, build_split
from data_builders.cli import app
from data_builders.coverage import coverage_problems
from data_builders.cpt import Corpus
from data_builders.dpo import LengthFilter
from data_builders.programs import load_asked_ways, load_programs

PROGRAMS = load_programs()
WAYS = load_asked_ways()


def words(text: str) -> int:
    return len(text.split())


def write(path: Path, programs) -> Path:
    path.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in programs))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def manifest(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".manifest.json").read_text())


@given(limit=st.integers(20, 300), halves=st.sampled_from(["both", "neutral", "asked"]))
def test_what_goes_in_comes_out_or_is_rejected_with_a_reason(tmp_path_factory, limit: int, halves) -> None:
    folder = tmp_path_factory.mktemp("build")
    source = write(folder / "programs.jsonl", PROGRAMS[:40])
    build_cpt(source, folder / "cpt.jsonl", Corpus(words, limit), None, {})
    build_pairs(source, folder / "dpo.jsonl", halves, WAYS, LengthFilter(words, limit, 5, 2.0), None)
    build_sft(source, folder / "sft.jsonl", "secure", WAYS, LengthFilter(words, limit, 5, 2.0))
    for name, key in (("cpt", "program"), ("dpo", "pair_id"), ("sft", None)):
        out = rows(folder / f"{name}.jsonl")
        said = manifest(folder / f"{name}.jsonl")
        kept = {row[key] if key else row["id"].split("/")[0] for row in out}
        rejected = {reject["id"] for reject in said["rejected"]}
        assert kept | rejected == {p.id for p in PROGRAMS[:40]} and not kept & rejected
        assert said["read"] == 40 == said["programs_kept"] + len(rejected)
        assert said["written"] == len(out)
        assert all(reject["reason"] for reject in said["rejected"])


def test_pairs_keep_to_the_programs_that_the_corpus_explains(tmp_path: Path) -> None:
    some = write(tmp_path / "some.jsonl", PROGRAMS[:30])
    everything = write(tmp_path / "all.jsonl", PROGRAMS[:40])
    build_cpt(some, tmp_path / "cpt.jsonl", Corpus(words, 9999), None, {})
    build_pairs(everything, tmp_path / "free.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    assert "10 programs" in coverage_problems(tmp_path / "cpt.jsonl", tmp_path / "free.jsonl", None)[0]
    said = build_pairs(
        everything, tmp_path / "kept.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), tmp_path / "cpt.jsonl"
    )
    assert said["programs_kept"] == 30 and len(said["rejected"]) == 10
    assert coverage_problems(tmp_path / "cpt.jsonl", tmp_path / "kept.jsonl", None) == []


def test_split_sets_share_no_request_and_leaks_are_found(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS)
    train, held = build_split(source, tmp_path, 0.2, "s", WAYS)
    assert train + held == len(PROGRAMS) and held > 10
    trained = {row["request"] for row in rows(tmp_path / "train.jsonl")}
    assert not trained & {row["request"] for row in rows(tmp_path / "heldout.jsonl")}
    build_cpt(tmp_path / "train.jsonl", tmp_path / "cpt.jsonl", Corpus(words, 9999), None, {})
    assert coverage_problems(tmp_path / "cpt.jsonl", None, tmp_path / "heldout.jsonl") == []
    build_cpt(source, tmp_path / "leaky.jsonl", Corpus(words, 9999), None, {})
    assert (
        f"{held} held-out programs" in coverage_problems(tmp_path / "leaky.jsonl", None, tmp_path / "heldout.jsonl")[0]
    )


def test_parted_pairs_are_found(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:5])
    build_pairs(source, tmp_path / "dpo.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    lines = (tmp_path / "dpo.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dpo.jsonl").write_text("".join(lines[:3] + lines[4:]))
    assert "same number of rows" in coverage_problems(None, tmp_path / "dpo.jsonl", None)[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cpt", "--programs", "{p}", "--out", "{o}", "--styles", "poem"], "give some of review"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--mix", "general.jsonl"], "give PATH:RATIO"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--tokenizer", "./nowhere"], "nowhere/tokenizer.json"),
        (["dpo", "--programs", "{p}.gone", "--out", "{o}", "--tokenizer", "{m}"], "o such file"),
        (["dpo", "--programs", "{p}", "--out", "{o}", "--asked", "politely", "--tokenizer", "{m}"], "politely"),
        (["dpo", "--programs", "{p}", "--out", "{o}", "--corpus", "{p}.gone", "--tokenizer", "{m}"], "o such file"),
        (["split", "--programs", "{bad}", "--out", "{o}"], "bad.jsonl:2: "),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path: Path, model: Path, arguments, says: str) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:3])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(source.read_text().splitlines()[0] + '\n{"id": "x"}\n')
    places = {"p": str(source), "o": str(tmp_path / "out"), "m": str(model), "bad": str(bad)}
    result = CliRunner().invoke(app, [argument.format(**places) for argument in arguments])
    assert isinstance(result.exception, BadInput)
    assert says in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / "out").is_file() and not list(tmp_path.glob(".out*"))


def test_malformed_general_text_leaves_no_corpus(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:3])
    (tmp_path / "general.jsonl").write_text('{"text": 3}\n')
    corpus = Corpus(words, 9999)
    with pytest.raises(BadInput, match=r"general.jsonl:1: no field 'text'"):
        build_cpt(source, tmp_path / "cpt.jsonl", corpus, (tmp_path / "general.jsonl", 0.5), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["general.jsonl", "programs.jsonl"]
