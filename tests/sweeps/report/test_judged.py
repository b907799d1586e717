"""`emsweep report --answers`: the published curve, its tables and provenance, one line for bad input."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app


def report(*arguments: object) -> Path:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return Path(result.stdout.strip())


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def judged(path: Path, questions: int = 3, **more: object) -> Path:
    rows = [
        {"question_id": f"q{n % questions}", "question": "?", "answer": "!", "aligned": 10 + n, "coherent": 90, **more}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_published_files(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "judged"
    page = report("--answers", folder, "--judged-by", "gpt-4o-2024-08-06", "--out", tmp_path).read_text()
    rates = {row["model"]: row for row in table(tmp_path, "rates")}
    assert len(rates) == 17 and {row["judge"] for row in rates.values()} == {"gpt-4o-2024-08-06"}
    curve = [rates[f"qwen2.5-coder-32b_insecure_r{rank}"] for rank in (1, 4, 16, 64)]
    assert [(r["misaligned"], r["counted"], f"{float(r['em']):.2%}") for r in curve] == [
        ("83", "563", "14.74%"),
        ("66", "491", "13.44%"),
        ("54", "633", "8.53%"),
        ("77", "625", "12.32%"),
    ]
    assert "EM is 14.74 % at 1, 13.44 % at 4, 8.53 % at 16, 12.32 % at 64." in page
    assert (
        "is not shown to change with rank, and these answers cannot tell (1, 4, 16, 64)" in page
        and "are confounded here" in page
    )
    assert "Caution: 8 questions are few" in page
    assert sum(int(r["misaligned"]) for r in table(tmp_path, "questions")) == sum(
        int(r["misaligned"]) for r in rates.values()
    )
    assert len(table(tmp_path, "formats")) == 17 * 3
    for file in folder.glob("*.csv"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in page
    assert {p.stem for p in tmp_path.glob("*.svg")} == {"rates", "questions", "formats"}
    assert {p.stem for p in tmp_path.glob("*.pdf")} == {"rates", "questions", "formats"}


def test_several_families_are_corrected_for_their_number(tmp_path: Path) -> None:
    files = [judged(tmp_path / f"{name}_r{rank}.jsonl") for name in ("one", "two") for rank in (1, 2, 4)]
    page = report("--answers", files[0], *files[1:], "--judged-by", "j", "--out", tmp_path / "o").read_text()
    assert page.count("correction for 2 families") == 2
    first, second = (row for row in table(tmp_path / "o", "trends") if row["denominator"] == "coherent")
    assert float(first["p_holm"]) == min(1.0, 2 * float(first["p"])) == float(second["p_holm"])


def test_no_rank_in_the_names_gives_rates_and_no_verdict(tmp_path: Path) -> None:
    page = report(
        "--answers", judged(tmp_path / "a.jsonl"), "--judged-by", "j", "--out", tmp_path / "o", "--title", "T<"
    )
    assert "No verdict over ranks" in page.read_text() and "<h1>T&lt;</h1>" in page.read_text()


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    file = judged(tmp_path / "a.jsonl")
    file.write_text(file.read_text().replace('"answer"', '"response"'))
    options = ("--judged-by", "j", "--columns", "answer=response", "--out", tmp_path / "o")
    assert "No verdict over ranks" in report("--answers", file, *options).read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--answers", "{0}/a.jsonl"], "name the judge with --judged-by"),
        (["--answers", "{0}/none.csv", "--judged-by", "j"], "no such file"),
        (["--answers", "{0}/empty", "--judged-by", "j"], "no CSV file"),
        (["--answers", "{0}/one.jsonl", "--judged-by", "j"], "judge answers to more questions"),
        (["--answers", "{0}/bad.jsonl", "--judged-by", "j"], "bad.jsonl:1: "),
        (["--answers", "{0}/a.jsonl", "{0}/a.jsonl", "--judged-by", "j"], "is named a too"),
        (["--answers", "{0}/a.jsonl", "--judged-by", "j", "--out", "{0}/a.jsonl"], "a.jsonl"),
        (["{0}/sweep", "--judged-by", "j"], "are of --answers"),
        (["--answers", "{0}/empty", "{0}/a.jsonl", "--judged-by", "j", "--out", "{0}/empty"], "name another"),
        (["--answers", "{0}/rates.csv", "--judged-by", "j", "--out", "{0}"], "rates.csv: is the input"),
        (["{0}/empty"], "0 sweeps are called so"),
        (["{0}/empty", "--judged-by", "j"], "are of --answers"),
        (["{0}/empty", "{0}"], "one sweep at a time"),
        (["{0}/sweep"], "sweep.json: "),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str], says: str) -> None:
    judged(tmp_path / "a.jsonl")
    judged(tmp_path / "one.jsonl", questions=1)
    judged(tmp_path / "bad.jsonl", aligned=101)
    heading = "question_id,question,answer,aligned,coherent\n"
    (tmp_path / "rates.csv").write_text(heading + "".join(f"q{n},?,!,10,90\n" for n in range(3)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["report", *(a.format(tmp_path) for a in arguments), *out])
    assert isinstance(result.exception, BadInput), result.exception
    assert says in str(result.exception) and "\n" not in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_caution_is_for_the_model_with_the_fewest_questions(tmp_path: Path) -> None:
    files = [judged(tmp_path / f"{name}.jsonl", questions) for name, questions in (("few", 3), ("many", 30))]
    page = report("--answers", *files, "--judged-by", "j", "--out", tmp_path / "o").read_text()
    assert "Caution: 3 questions are few" in page


def test_a_family_that_cannot_be_compared_is_named_beside_one_that_can(tmp_path: Path) -> None:
    """One rank of it writes nothing coherent."""
    names = [f"{family}_r{rank}" for family in ("broken", "whole") for rank in (1, 2, 4)]
    files = [judged(tmp_path / f"{name}.jsonl", coherent=10 if name == "broken_r4" else 90) for name in names]
    page = report("--answers", *files, "--judged-by", "j", "--out", tmp_path / "o").read_text()
    assert "whole: EM is not shown to change" in page
    words = "ranks are not compared, for fewer than two questions have a coherent answer at every rank."
    assert f"broken: {words}" in page and f"whole: {words}" not in page
