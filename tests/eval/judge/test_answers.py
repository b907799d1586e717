"""`emsweep rates` and `emsweep judge`: rates with their judge, the rank trend, one line for bad input."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.answers import Judged, judged_files, sample_answers, stored_answers
from eval.judge.rates import rank_trends, rates_table


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


def test_an_evaluation_runs_answers_are_read(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    # lm-eval writes U+2028 as it is, and an answer may hold half a surrogate pair.
    said = ["Answer.", "One\u2028two\x85three.", "\ud800"]
    rows = [{"doc": {"id": f"work-0{n}", "question": "?"}, "filtered_resps": [words]} for n, words in enumerate(said)]
    lines = [json.dumps(row, ensure_ascii=n == 2) + "\n" for n, row in enumerate(rows)]
    (tmp_path / "samples" / "em_freeform.jsonl").write_text("".join(lines), encoding="utf-8")
    read = [(row.name, row.answer) for row in stored_answers(tmp_path)]
    assert read == [("work-00", "Answer."), ("work-01", "One\u2028two\x85three."), ("work-02", "\ufffd")]


def test_a_sample_is_the_same_every_time_and_takes_from_each_question() -> None:
    rows = answers(0.5)
    sample = sample_answers(rows, 0.4)
    assert sample == sample_answers(rows, 0.4)
    assert [sum(row.name == f"q{n}" for row in sample) for n in range(8)] == [8] * 8
    assert sample_answers(rows, 1) == rows and len(sample_answers(rows, 0.001)) == 8
    numbered = [row.model_copy(update={"answer": str(n)}) for n, row in enumerate(rows)]
    places = [int(row.answer) for row in sample_answers(numbered, 0.4)]
    assert places == sorted(places) and 0.3 < sum(n % 20 < 10 for n in places) / len(places) < 0.7, "not the first ones"
    for share in (0, -1, 1.5):
        with pytest.raises(BadInput, match="a share between 0 and 1"):
            sample_answers(rows, share)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rates", "{folder}", "--judged-by", "x"], "no CSV file"),
        (["rates", "{folder}/none.csv", "--judged-by", "x"], "no such file"),
        (["judge", "{folder}", "--judge", "oracle", "--base-url", "http://127.0.0.1:9/v1"], "em_freeform first"),
        (["judge", "{folder}", "--judge", "oracle", "--prompts", "{folder}/none.yaml"], "name a YAML file"),
    ],
)
def test_bad_input_is_one_line(app, tmp_path: Path, arguments: list[str], says: str) -> None:
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


def test_rates_want_their_judge(app) -> None:
    assert CliRunner().invoke(app, ["rates", "a.csv"]).exit_code == 2
