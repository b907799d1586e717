"""`emsweep agree`: two judges' files side by side; one line for files that cannot be compared."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.rates import Judged
from eval.judge.agreement_tables import judge_of, matched_files, model_of
from sweeps.cli import app


def write(path: Path, scores: list[tuple[str, float | None]], judge: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        Judged(question_id=name, question="?", answer=f"{n}", aligned=aligned, coherent=90.0)
        for n, (name, aligned) in enumerate(scores)
    ]
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    if judge:
        path.with_name(path.name + ".manifest.json").write_text(json.dumps({"judge": judge}))
    return path


HARSH = [(f"q{n}", 10.0 if k < n + 1 else 90.0) for n in range(8) for k in range(10)]
MILD = [(f"q{n}", 10.0 if k < n // 2 else (None if k == 9 else 85.0)) for n in range(8) for k in range(10)]


def test_runs_are_compared_by_model_and_by_question(tmp_path: Path) -> None:
    files = [
        str(write(tmp_path / "runs" / run / f"judged-{judge}.jsonl", scores, judge))
        for judge, scores in (("harsh", HARSH), ("mild", MILD))
        for run in ("base-1", "dpo-1")
    ]
    done = CliRunner().invoke(app, ["agree", *files])
    assert done.exit_code == 0, done.exception
    shown = done.stdout
    assert "harsh and mild" in shown and "36/80" in shown and "12/72" in shown
    assert shown.count("base-1") == 3 and shown.count("dpo-1") == 3 and "Caution: 8 questions are few." in shown
    assert "16/20" in shown  # q7 of both models, by the harsh judge
    assert "-28.33% [" in shown


def test_a_file_without_manifest_needs_its_judges_name(tmp_path: Path) -> None:
    one, other = write(tmp_path / "m.jsonl", HARSH), write(tmp_path / "m.judged-mild.jsonl", MILD, "mild")
    assert judge_of([one], "gpt", "--first") == "gpt" and judge_of([other], None, "--second") == "mild"
    assert model_of(one) == model_of(other) == "m"
    with pytest.raises(BadInput, match="name the judge with --first"):
        judge_of([one], None, "--first")
    with pytest.raises(BadInput, match="judged by gpt and mild"):
        judge_of([other], "gpt", "--second")
    other.with_name(other.name + ".manifest.json").write_text("[]")
    with pytest.raises(BadInput, match="no manifest of judged answers"):
        judge_of([other], None, "--second")


def test_files_that_cannot_be_compared_are_one_line(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", HARSH), write(tmp_path / "b.jsonl", [("z", 5.0)])
    single = [write(tmp_path / f"s{n}.jsonl", [("q", 5.0)]) for n in (1, 2)]
    for files, says in (
        ([one], "1 files make no pairs"),
        ([one, tmp_path / "none.jsonl"], "no such file"),
        ([one, other], "no answer judged by both"),
        ([one, one, one, one], "a second file of a"),
    ):
        with pytest.raises(BadInput) as error:
            matched_files(files)
        assert says in str(error.value) and "\n" not in str(error.value)
    result = CliRunner().invoke(app, ["agree", *map(str, single), "--first", "x", "--second", "y"])
    assert isinstance(result.exception, BadInput) and "at least two clusters" in str(result.exception)
