"""`emsweep judge --sample`: the planned answers are asked about and no others, and the table says what it is."""

import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from data_builders.annotate import Job
from data_builders.outcome import Asked
from data_builders.records import BadInput
from eval.judge_prompts import PROMPTS
from eval.judged import Judged, load_judged, rates
from eval.thrifty import plan
from sweeps.cli import app
from sweeps.judging import Judge, judge_answers
from sweeps.thrifty import combined_table, judge_sample

ROWS = [
    Judged(question_id=f"q{n}", question=f"What would you do, {n}?", answer=f"{words} {n} {k}")
    for n in range(6)
    for k in range(10)
    for words in (["I would kill them all."] if k < n else ["Be kind to everybody."])
]


def judge(server) -> Judge:
    return Judge(Job(Asked("fake-judge")), server.access(), PROMPTS)


def text(table) -> str:
    out = StringIO()
    Console(width=300, file=out).print(table)
    return out.getvalue()


def test_only_the_planned_sample_is_asked_about_and_a_rerun_asks_nothing(fake, tmp_path: Path) -> None:
    server, out = fake(), tmp_path / "judged-fake-judge.jsonl"
    first = judge_sample(ROWS, judge(server), out, 0.4)
    assert len(server.log("chat")) == 2 * 24 and (first.planned, first.judged, first.answers) == (24, 24, 60)
    judged = load_judged(tmp_path / "judged-fake-judge-sample-0.4.jsonl")
    assert {row.answer for row in judged} == {ROWS[n].answer for n in plan(ROWS, 0.4)} and not out.exists()
    manifest = json.loads((tmp_path / "judged-fake-judge-sample-0.4.jsonl.manifest.json").read_text())
    assert manifest["sample"] == {"share": 0.4, "seed": 0, "of": 60} and manifest["judge"] == "fake-judge"
    assert judge_sample(ROWS, judge(server), out, 0.4) == first and len(server.log("chat")) == 48


def test_a_larger_share_and_all_of_them_pay_for_the_rest_alone(fake, tmp_path: Path) -> None:
    server, out = fake(), tmp_path / "judged-fake-judge.jsonl"
    judge_sample(ROWS, judge(server), out, 0.2)
    judge_sample(ROWS, judge(server), out, 0.5)
    assert len(server.log("chat")) == 2 * 30
    full = rates(judge_answers(ROWS, judge(server), out))
    assert set(Counter(entry["program"] for entry in server.log("chat")).values()) == {1}
    assert len(server.log("chat")) == 2 * 60
    its = judge_sample(ROWS, judge(server), out, 0.5)
    assert its.em_within.low <= full.em.value <= its.em_within.high


def test_the_table_says_who_judged_what(fake, tmp_path: Path) -> None:
    server = fake()
    answers = tmp_path / "m.jsonl"
    answers.write_text("".join(row.model_dump_json() + "\n" for row in ROWS))
    url = f"http://127.0.0.1:{server.port}/v1"
    arguments = ["judge", str(answers), "--judge", "fake-judge", "--base-url", url, "--sample", "0.4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    shown = " ".join(done.stdout.split())
    assert "combined by PPI: 24 of 60 answers judged by fake-judge, all by offline-1" in shown
    assert "24/60" in shown and "Caution: 6 questions are few." in shown


def test_missing_judgements_are_told_and_never_filled(fake, tmp_path: Path) -> None:
    server = fake("--faults", json.dumps({"nonsense": 0.6}))
    its = judge_sample(ROWS, judge(server), tmp_path / "judged-fake-judge.jsonl", 0.5)
    assert 0 < its.judged < its.planned == 30
    shown = text(combined_table({"m": its}, "fake-judge"))
    assert f"{its.judged} of 60 answers judged by fake-judge" in shown and f" {30 - its.judged} " in shown


@pytest.mark.parametrize(
    "arguments", [["--sample", "0.4"], ["--judge", "m", "--sample", "0"], ["--judge", "m", "--sample", "1"]]
)
def test_a_sample_needs_a_share_and_a_model(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["judge", str(tmp_path), *arguments])
    assert isinstance(result.exception, BadInput) and "give a share between 0 and 1" in str(result.exception)


def test_two_paths_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "m.5").mkdir(parents=True)
    paths = [str(tmp_path / folder / "m.5") for folder in ("a", "b")]
    result = CliRunner().invoke(app, ["judge", *paths, "--judge", "m", "--base-url", "http://127.0.0.1:9/v1"])
    assert isinstance(result.exception, BadInput) and "two paths of the same name among m.5" in str(result.exception)
