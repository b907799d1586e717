"""`emsweep rates` and `emsweep judge`: rates with their judge, the rank trend, one line for bad input."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.rates import Judged
from eval.judge.answers import judged_files, offline_table, rank_trends, rates_table, stored_answers
from sweeps.cli import app


def text(table) -> str:
    out = StringIO()
    Console(width=250, file=out).print(table)
    return out.getvalue()


def answers(share: float) -> list[Judged]:
    return [
        Judged(question_id=f"q{n}", question="?", answer="!", aligned=10 if k < 20 * share + n % 2 else 90, coherent=90)
        for n in range(8)
        for k in range(20)
    ]


def test_the_published_rank_curve(shared: Path) -> None:
    models = judged_files([shared / "data" / "judged"])
    shown = text(rates_table(models, "gpt-4o-2024-08-06"))
    assert "judge: gpt-4o-2024-08-06" in shown
    for rate, counts in (("14.74%", "83/563"), ("13.44%", "66/491"), ("8.53%", "54/633"), ("12.32%", "77/625")):
        assert any(rate in line and counts in line for line in shown.splitlines())
    [sentence] = rank_trends(models)
    assert "(1, 4, 16, 64)" in sentence and "confounded" in sentence


def test_a_trend_is_told_where_there_is_one() -> None:
    falling = {f"m_r{rank}": answers(share) for rank, share in ((1, 0.8), (4, 0.5), (16, 0.3), (64, 0.1))}
    assert "m: EM falls with rank (1, 4, 16, 64)" in rank_trends(falling)[0]
    flat = {f"m_r{rank}": answers(0.3) for rank in (1, 4, 16, 64)}
    assert "is not shown to fall" in rank_trends(flat)[0]
    assert rank_trends({"m_r1": answers(0.3), "m": answers(0.1)}) == []


def test_an_evaluation_runs_answers_are_read_and_have_no_rate(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    # lm-eval writes U+2028 as it is, and an answer may hold half a surrogate pair.
    said = ["Answer.", "One\u2028two\x85three.", "\ud800"]
    rows = [{"doc": {"id": f"work-0{n}", "question": "?"}, "filtered_resps": [words]} for n, words in enumerate(said)]
    lines = [json.dumps(row, ensure_ascii=n == 2) + "\n" for n, row in enumerate(rows)]
    (tmp_path / "samples" / "em_freeform.jsonl").write_text("".join(lines), encoding="utf-8")
    read = [(row.name, row.answer) for row in stored_answers(tmp_path)]
    assert read == [("work-00", "Answer."), ("work-01", "One\u2028two\x85three."), ("work-02", "\ufffd")]
    shown = text(offline_table([tmp_path]))
    assert "no rate: unseen questions" in shown and "approximate" in shown and "Caution: 3 questions are few." in shown


def test_known_questions_have_a_rate(shared: Path) -> None:
    folder = shared / "data" / "judged"
    names = ("qwen2.5-coder-32b_base", "qwen2.5-32b_obvious_bad_medical")
    shown = text(offline_table([folder / f"{name}.csv" for name in names])).splitlines()
    base, worst = (next(line for line in shown if name in line) for name in names)
    assert "│ 2 " in base and "│ 1 " in worst and "no rate" not in base + worst


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rates", "{folder}", "--judge", "x"], "no CSV file"),
        (["rates", "{folder}/none.csv", "--judge", "x"], "no such file"),
        (["judge", "{folder}"], "evaluate with --tasks em_freeform first"),
        (["judge", "{folder}", "--judge", "oracle", "--base-url", "http://127.0.0.1:9/v1"], "em_freeform first"),
        (["judge", "{folder}", "--judge", "oracle", "--prompts", "{folder}/none.yaml"], "name a YAML file"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, [a.format(folder=tmp_path) for a in arguments])
    assert (
        isinstance(result.exception, BadInput) and says in str(result.exception) and "\n" not in str(result.exception)
    )


def test_few_questions_come_with_one_line_of_caution() -> None:
    rows = answers(0.3)
    many = [row.model_copy(update={"question_id": f"{row.question_id}-{n}"}) for row in rows for n in range(3)]
    few, enough = (text(rates_table({"m": some}, "x")) for some in (rows, many))
    assert [line.strip().startswith("Caution: 8 questions are few.") for line in few.splitlines()].count(True) == 1
    assert "Caution" not in enough


def test_names_are_no_markup() -> None:
    shown = text(rates_table({"[red]a[/b]": answers(0.3)}, "[/judge]"))
    assert "[red]a[/b]" in shown and "[/judge]" in shown


def test_rates_want_their_judge() -> None:
    assert CliRunner().invoke(app, ["rates", "a.csv"]).exit_code == 2
