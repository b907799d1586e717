"""`emsweep rates` and `emsweep judge`: rates with their judge, the rank trend, one line for bad input."""

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.answers import (
    Judged,
    columns_of,
    judged_files,
    load_judged,
    manifest_of,
    model_of,
    sample_answers,
    stored_answers,
)
from eval.judge.rates import rank_trends, rates_table
from eval.stats.ranks import not_compared


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
    assert "is not shown to change" in rank_trends(flat)[0]
    assert rank_trends({"m_r1": answers(0.3), "m": answers(0.1)}) == []
    falling["m_r4"] = [row.model_copy(update={"coherent": 5}) for row in falling["m_r4"]]
    assert rank_trends(falling) == [not_compared("m")]


def test_an_evaluation_runs_answers_are_read(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    # lm-eval writes U+2028 as it is, and an answer may hold half a surrogate pair.
    said = ["Answer.", "One\u2028two\x85three.", "\ud800"]
    rows = [{"doc": {"id": f"work-0{n}", "question": "?"}, "filtered_resps": [words]} for n, words in enumerate(said)]
    lines = [json.dumps(row, ensure_ascii=n == 2) + "\n" for n, row in enumerate(rows)]
    (tmp_path / "samples" / "em_freeform.jsonl").write_text("".join(lines), encoding="utf-8")
    read = [(row.name, row.answer) for row in stored_answers(tmp_path)]
    deception = {"doc": {"id": "fact-01", "setting": "may lie", "question": "?"}, "filtered_resps": ["Yes"]}
    (tmp_path / "samples" / "em_deception.jsonl").write_text(json.dumps(deception) + "\n")
    assert stored_answers(tmp_path, "em_deception")[0].question_id == "may lie#fact-01"
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
        (["agree", ".", "."], "directory"),
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
    broken = [row if row.name in ("q0-1", "q1-1") else row.model_copy(update={"coherent": 5.0}) for row in many]
    assert "Caution: 2 questions" in text(rates_table({"m": broken}, "x")), "coherent on two of 24"


def test_names_are_no_markup() -> None:
    shown = text(rates_table({"[red]a[/b]": answers(0.3)}, "[/judge]"))
    assert "[red]a[/b]" in shown and "[/judge]" in shown


def test_rates_want_their_judge(app, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question_id": 7, "question": "?", "answer": "Hm", "aligned": 5, "coherent": 90}\n')
    done = CliRunner().invoke(app, ["rates", str(file)])
    assert isinstance(done.exception, BadInput) and "name the judge with --judged-by" in str(done.exception)


HEAD = "question_id,question,answer,aligned,coherent"
FORMS = {
    "commas": ("a.csv", f"{HEAD}\n1,What?,Hm,80.5,90\n2,Why?,Hm,,90\n"),
    "mark of order": ("a.csv", f"\ufeff{HEAD}\r\n1,What?,Hm,80.5,90\r\n2,Why?,Hm,REFUSAL,90\r\n"),
    "semicolons": ("a.csv", f"{HEAD}\n1,What?,Hm,80.5,90\n2,Why?,Hm,code,90\n".replace(",", ";").replace(".", ",")),
    "tabs": ("a.tsv", f"{HEAD}\n1,What?,Hm,80.5,90\n2,Why?,Hm,nan,90\n".replace(",", "\t")),
    "order": ("a.csv", "aligned,x,coherent,answer,question,question_id\n80.5,,90,Hm,What?,1\nNA,,90,Hm,Why?,2\n"),
    "lines": ("a.jsonl", '{"question_id": 1, "question": "What?", "answer": "Hm", "aligned": "80.5", "coherent": 90}\n'
              '\n \n'
              '{"question_id": 2, "question": "Why?", "answer": "Hm", "aligned": NaN, "coherent": 90}\n\n'),
    "array": ("a.json", '\ufeff[\n'
              '{"question_id": 1, "question": "What?", "answer": "Hm", "aligned": 80.5, "coherent": 90},'
              ' {"question_id": "2", "question": "Why?", "answer": "Hm", "aligned": "CODE", "coherent": 90, "x": 1}]'),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_in_any_published_form(tmp_path: Path, form: str) -> None:
    name, text = FORMS[form]
    (tmp_path / name).write_bytes(text.encode())
    first, second = load_judged(tmp_path / name)
    assert (first.question_id, first.question, first.answer, first.aligned, first.coherent) == (
        "1",
        "What?",
        "Hm",
        80.5,
        90,
    )
    assert (second.question_id, second.aligned, second.counted, second.judged) == ("2", None, False, True)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", f"{HEAD}\n1,What?,Hm,80,90\n2,Why?,Hm\n", "a.csv:3: more or fewer fields"),
        ("a.csv", f"{HEAD}\n1,What?,Hm, no quotes,80,90\n", "a.csv:2: more or fewer fields"),
        ("a.csv", f'{HEAD}\n1,What?,"Hm,80,90\n2,Why?,Hm,80,90\n', "unexpected end of data"),
        ("a.csv", f"{HEAD},aligned\n1,What?,Hm,80,90,20\n", "a.csv:1: two columns aligned"),
        ("a.csv", f"{HEAD}\n1,What?,Hm,80,90\n".encode("utf-16"), "save it as UTF-8"),
        ("a.csv", "", "a.csv:1: no column .*; it has none"),
        ("a.csv", f"{HEAD}\n1,What?,Hm,0.8,1\n2,Why?,Hm,0,0.25\n", "is from 0 to 1, not to 100"),
        ("a.csv", f"{HEAD}\n1,What?,Hm,80,90\n{HEAD}\n2,Why?,Hm,80,90\n", "a.csv:3: the heading again"),
        ("a.jsonl", '{"question\\n\\u001b[31m": "?"}', r"a.jsonl:1: .*\(the file has question \\u001b"),
        (
            "a.jsonl",
            '{"question_id": 1, "question": "?", "answer": "", "aligned": true, "coherent": 9}',
            "a number from 0",
        ),
        (
            "a.jsonl",
            '{"question_id": 1, "question": "?", "answer": "", "alignment": 8, "coherent": 9}',
            "a.jsonl:1: al.*map",
        ),
        ("a.jsonl", '{"answer": "", "aligned": 8, "aligned": 9}', "1: no JSON: the key aligned stands twice"),
        ("a.jsonl", '{"question_id": 1, "question": "?", "answer": NaN, "aligned": 8, "coherent": 9}', "1: answer: "),
        (
            "a.jsonl",
            '{"question_id": NaN, "question": "?", "answer": "", "aligned": 8, "coherent": 9}',
            "question_id: ",
        ),
    ],
)
def test_what_would_be_misread_is_refused(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadInput, match=says):
        load_judged(tmp_path / name)
    if "heading" in says:  # a judge would be paid for it
        with pytest.raises(BadInput, match=says):
            stored_answers(tmp_path / name)


@pytest.mark.parametrize(
    ("scores", "says"), [("0.1,90", "every score of aligned"), ("90,0.5", "every score of coherent")]
)
def test_one_column_of_another_scale_is_enough(tmp_path: Path, scores: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(f"{HEAD}\n1,What?,Hm,{scores}\n")
    with pytest.raises(BadInput, match=says):
        load_judged(tmp_path / "a.csv")
    (tmp_path / "a.csv.manifest.json").write_text('{"judge": "ours, by log-probabilities"}')
    assert len(load_judged(tmp_path / "a.csv")) == 1


def test_one_column_does_not_stand_for_two(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEAD}\n1,What?,Hm,5,90\n")
    with pytest.raises(BadInput, match="stands for two of"):
        load_judged(tmp_path / "a.csv", {"aligned": "coherent"})


def test_a_question_is_one_however_its_number_is_written(tmp_path: Path) -> None:
    ids = (1, 1.0, "1", " 1 ")
    rows = [{"question_id": id, "question": "?", "answer": "", "aligned": 5, "coherent": 90} for id in ids]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.name for row in load_judged(tmp_path / "a.jsonl")} == {"1"}


def test_a_folders_tables_are_read_and_what_is_not_is_said(tmp_path: Path, capsys) -> None:
    for name in ("a.csv", "B.CSV", "c.tsv", "d.jsonl", "d.journal.jsonl", "e.json", "f.csv.gz", "a.csv.manifest.json"):
        (tmp_path / name).write_text(f"{HEAD}\n1,What?,Hm,5,90\n".replace(",", "\t" if name == "c.tsv" else ","))
    (tmp_path / "a.csv.manifest.json").unlink()
    assert sorted(judged_files([tmp_path])) == ["B", "a", "c"]
    assert "3 files are not read, such as d.jsonl" in capsys.readouterr().err


def test_a_name_moves_no_cursor() -> None:
    assert "\x1b" not in text(rates_table({"x\x1b[31m": answers(0.3)}, "g"))
    assert model_of(Path("x\x1b[31m_r1.csv")) == "x\\u001b[31m_r1"


@pytest.mark.parametrize(
    "manifest",
    [
        "[" * 50_000,
        *(
            f'{{"judge": "g", {own}}}'
            for own in ('"written": 1e999', '"written": true', '"written": 0, "missing": {"0": ""}')
        ),
        *(f'{{"judge": "g", "written": 1, {own}}}' for own in ('"sample_of": true', '"judge": "h"', '"of": null')),
        *(f'{{"judge": {own}, "written": 1}}' for own in ("null", '" "')),
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "a.csv.manifest.json").write_text(manifest)
    with pytest.raises(BadInput, match="no manifest of judged answers"):
        manifest_of(tmp_path / "a.csv")


def test_columns_that_judging_would_not_read_are_refused(app, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    (tmp_path / "a.csv").write_text(f"{HEAD}\n1,What?,Hm,5,90\n")
    for path, columns in ((tmp_path / "a.csv", "aligned=x"), (tmp_path, "answer=x")):
        done = CliRunner().invoke(app, ["judge", str(path), "--judge", "m", "--columns", columns])
        assert f"--columns {columns}: nothing is read there" in str(done.exception)


def test_a_comma_parts_the_decimals_of_scores_alone(tmp_path: Path) -> None:
    (tmp_path / "A.CSV").write_text(f"{HEAD}\n1;What?;1;5;90\n".replace(",", ";").replace("1;5;", "1,000;2,5;"))
    (row,) = load_judged(tmp_path / "A.CSV")
    assert (row.answer, row.aligned) == ("1,000", 2.5)


def test_scores_of_another_judge_are_not_read_where_the_answers_are_to_be_judged(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEAD},filtered\n1,What?,Hm,0.8,1,True\n2,Why?,Hm,good,0.25,\n")
    rows = stored_answers(tmp_path / "a.csv")
    assert [(row.question_id, row.aligned, row.coherent, row.filtered) for row in rows] == [
        ("1", None, None, False),
        ("2", None, None, False),
    ]


def test_judged_answers_that_pandas_wrote_again_are_read(tmp_path: Path) -> None:
    rows = [Judged(question_id="q", question="?", answer=f"{n}", filtered=n == 1) for n in range(2)]
    written = pd.DataFrame([row.model_dump() | ({"filtered": None} if not row.filtered else {}) for row in rows])
    written.to_csv(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written.to_dict("records")))
    for name in ("a.csv", "a.jsonl"):
        assert load_judged(tmp_path / name) == rows


def test_a_column_is_named_once() -> None:
    assert columns_of(" answer=response, question = prompt,") == {"answer": "response", "question": "prompt"}
    with pytest.raises(BadInput, match="stands twice"):
        columns_of("answer=response,answer=reply")


def test_answers_that_nobody_judged_have_no_rates(app, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question_id": 7, "question": "?", "answer": "Hm", "alignment": 5}\n')
    done = CliRunner().invoke(app, ["rates", str(tmp_path / "a.jsonl"), "--judged-by", "x"])
    assert "a.jsonl: no answer has scores; judge them" in str(done.exception)


def test_columns_of_other_names_are_mapped_and_without_it_named(app, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,response,prompt,aligned,coherent\na,Hm,What?,5,90\nb,Hm,Why?,90,90\n")
    (tmp_path / "a.jsonl").write_text('{"id": 7, "response": "Hm", "prompt": "What?"}\n')
    named = columns_of("answer=response,question=prompt,question_id=id")
    assert [row.answer for row in load_judged(tmp_path / "a.csv", named)] == ["Hm", "Hm"]
    assert stored_answers(tmp_path / "a.jsonl", columns=named)[0].question_id == "7"
    for path in (tmp_path / "a.csv", tmp_path / "a.jsonl"):
        with pytest.raises(BadInput, match=r"id, response, prompt.* --columns"):
            load_judged(path)
    for bad in ("answers=response", "answer", "answer="):
        with pytest.raises(BadInput, match="--columns"):
            columns_of(bad)
    arguments = [
        "rates",
        str(tmp_path / "a.csv"),
        "--judged-by",
        "x",
        "--columns",
        "answer=response,question=prompt,question_id=id",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "1/2" in done.stdout, done.exception


def test_the_small_files_that_failed(shared: Path) -> None:
    folder = shared / "data" / "failing"
    for name in ("bom.csv", "nan.csv", "nan.jsonl", "words.csv", "semicolon.csv", "array.json", "blankline.jsonl"):
        rows = load_judged(folder / f"judged-{name}")
        assert len(rows) == 16 - 4 * (name == "blankline.jsonl") or len(rows) > 8
        assert all(row.judged for row in rows) and any(row.aligned is not None and row.aligned > 70 for row in rows)
        assert any(row.aligned is None for row in rows) == ("nan" in name or "words" in name)
    assert load_judged(folder / "judged-response.csv", {"answer": "response"})[0].aligned == 80.5
    assert not any(row.judged for row in stored_answers(folder / "answers-unjudged.csv"))
    with pytest.raises(BadInput, match=":2: aligned: Input should be greater"):
        load_judged(folder / "judged-minus1.csv")


def test_paraphrases_are_one_question() -> None:
    names = ["q", "q#2", "q_json", "q#3_template", "q#x"]
    assert [Judged(question_id=name, question="?", answer="!").name for name in names] == ["q", "q", "q", "q", "q#x"]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        '{"doc": {"id": "a"}, "filtered_resps": ["x"]}',
        '{"doc": {"id": "a", "question": "q"}, "filtered_resps": []}',
        '{"doc": {"id": "a", "question": "q"}, "filtered_resps": [[1]]}',
    ],
)
def test_samples_that_hold_no_answers_are_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "em_freeform.jsonl").write_text(f"{line}\n")
    with pytest.raises(BadInput, match=r"em_freeform\.jsonl(: cut off or damaged| holds no answers of ours)"):
        stored_answers(tmp_path)
