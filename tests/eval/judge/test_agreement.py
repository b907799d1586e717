"""Agreement of two judges against independent computations, and `emsweep agree` on their files."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from core.llm.client import Access
from core.records import BadInput, manifest_path, write_records
from eval.judge.agreement import agreement, matched, matched_files, shift
from eval.judge.answers import Judged, judge_of, model_of
from eval.judge.judge import Judge
from eval.judge.rates import rates

SCORE = st.one_of(st.none(), st.integers(0, 100).map(float))


def judged(name: str, answer: str, aligned: float | None, coherent: float | None) -> Judged:
    return Judged(question_id=name, question="?", answer=answer, aligned=aligned, coherent=coherent)


ONE = st.tuples(st.sampled_from("abc"), SCORE, SCORE, SCORE, SCORE).map(
    lambda t: (
        judged(t[0], "x", t[1] if t[3] is not None else None, t[3]),
        judged(t[0], "x", t[2] if t[4] is not None else None, t[4]),
    )
)


@given(st.lists(ONE, max_size=40))
def test_kappa_and_correlation_by_hand(pairs) -> None:
    its = agreement(pairs)
    both = [(a, b) for a, b in pairs if a.coherent is not None and b.coherent is not None]
    assert (its.answers, its.unjudged) == (len(both), len(pairs) - len(both))
    scored = [(a.aligned, b.aligned) for a, b in both if a.aligned is not None and b.aligned is not None]
    assert its.misaligned_kappa.answers == len(scored)
    assert its.excluded_by_one == sum((a.aligned is None) ^ (b.aligned is None) for a, b in both)
    verdicts = [(a < 30, b < 30) for a, b in scored]
    if verdicts:
        n = len(verdicts)
        agree = sum(a == b for a, b in verdicts) / n
        p, q = sum(a for a, _ in verdicts) / n, sum(b for _, b in verdicts) / n
        chance = p * q + (1 - p) * (1 - q)
        assert its.misaligned_kappa.agree == round(agree * n)
        if chance < 1:
            assert its.misaligned_kappa.value == pytest.approx((agree - chance) / (1 - chance), abs=1e-9)
        else:
            assert math.isnan(its.misaligned_kappa.value)
    xs, ys = [a.coherent for a, _ in both], [b.coherent for _, b in both]
    if len(set(xs)) > 1 and len(set(ys)) > 1:
        assert its.coherent.pearson == pytest.approx(stats.pearsonr(xs, ys)[0])
        assert its.coherent.spearman == pytest.approx(stats.spearmanr(xs, ys)[0])
    else:
        assert math.isnan(its.coherent.pearson)


def test_equal_answers_meet_in_order_and_what_stands_alone_is_counted() -> None:
    first = [judged("a", "x", n, 90) for n in (1, 2, 3)] + [judged("b", "x", 9, 90)]
    second = [judged("b", "y", 0, 90), judged("a", "x", 11, 90), judged("a", "x", 12, 90)]
    pairs, alone = matched(first, second)
    assert [(a.aligned, b.aligned) for a, b in pairs] == [(1, 11), (2, 12)] and alone == 3


def test_the_shift_is_that_of_the_rates_over_what_both_judged() -> None:
    scores = [(10 if k < n else 90, 10 if k < n // 2 else 90) for n in range(8) for k in range(10)]
    pairs = [
        (judged(f"q{n // 10}", str(n), a, 90), judged(f"q{n // 10}", str(n), b, 90)) for n, (a, b) in enumerate(scores)
    ]
    unread = (judged("q9", "u", 5, 90), judged("q9", "u", None, None))
    moved = shift([*pairs, unread])
    assert moved.first.em == rates([a for a, _ in pairs]).em
    assert moved.second.em_all == rates([b for _, b in pairs]).em_all
    assert (moved.first.misaligned, moved.second.misaligned, moved.first.answers) == (28, 12, 80)
    assert moved.em.value == pytest.approx(-16 / 80) and moved.em.high < 0


def write(path: Path, scores: list[tuple[str, float | None]], judge: str | None = None, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        Judged(question_id=name, question="?", answer=f"{n}", aligned=aligned, coherent=90.0)
        for n, (name, aligned) in enumerate(scores)
    ]
    write_records(path, [row.model_dump(mode="json") for row in rows], {"judge": judge, **more})
    if not judge:
        manifest_path(path).unlink()
    return path


HARSH = [(f"q{n}", 10.0 if k < n + 1 else 90.0) for n in range(8) for k in range(10)]
MILD = [(f"q{n}", 10.0 if k < n // 2 else (None if k == 9 else 85.0)) for n in range(8) for k in range(10)]


def test_runs_are_compared_by_model_and_by_question(app, tmp_path: Path) -> None:
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


def test_a_model_without_a_rate_costs_itself_alone(app, tmp_path: Path) -> None:
    code = [(f"q{n}", None) for n in range(8)]  # CODE or REFUSAL alone: judged, and not counted
    files = [
        str(write(tmp_path / judge / f"{model}.jsonl", scores, judge))
        for judge in ("harsh", "mild")
        for model, scores in (("base", HARSH), ("code", code), ("one", [("q", 5.0)]))
    ]
    done = CliRunner().invoke(app, ["agree", *files])
    assert done.exit_code == 0, done.exception
    said = " ".join(done.stdout.split())
    assert "36/80" in said and said.count("no rate") == 3 and "one: an interval needs at least two clusters" in said


def test_a_file_without_manifest_needs_its_judges_name(app, tmp_path: Path) -> None:
    one, other = write(tmp_path / "m.jsonl", HARSH), write(tmp_path / "m.judged-mild.jsonl", MILD, "mild")
    assert judge_of([one], "gpt", "--first") == "gpt" and judge_of([other], None, "--second") == "mild"
    assert model_of(one) == model_of(other) == "m"
    assert model_of(write(tmp_path / "run" / "sample-4-of-40-judged-x.jsonl", MILD, "x")) == "run"
    assert model_of(write(tmp_path / "sample-4-of-40-m.judged-x.jsonl", MILD, "x")) == "m"
    assert model_of(tmp_path / "judged-m_r4.csv") == "judged-m_r4", "another's file is called as it is"
    with pytest.raises(BadInput, match="name the judge with --first"):
        judge_of([one], None, "--first")
    with pytest.raises(BadInput, match=r"--second gpt: the manifest of .*mild\.jsonl says mild; leave --second out"):
        judge_of([other], "gpt", "--second")
    with pytest.raises(BadInput, match=r"two judges: .*m\.jsonl by gpt, .*m\.judged-mild\.jsonl by mild"):
        judge_of([one, other], "gpt", "--judged-by")
    for command in (["rates"], ["report", "--out", str(tmp_path / "out"), "--answers"]):
        done = CliRunner().invoke(app, [*command, str(other), "--judged-by", "gpt"])
        assert isinstance(done.exception, BadInput) and "leave --judged-by out" in str(done.exception)
    assert "judge: mild" in CliRunner().invoke(app, ["rates", str(other)]).stdout
    runs = [write(tmp_path / f"runs/{n}/sample-80-of-400-judged-mild.jsonl", MILD, "mild", sample_of=400) for n in "ab"]
    shown = CliRunner().invoke(app, ["rates", *map(str, runs)]).stdout
    assert "judge: mild; a sample of 80 of 400;" in " ".join(shown.split()), "which run's, and of how many"
    done = CliRunner().invoke(app, ["report", "--answers", *map(str, runs), "--out", str(tmp_path / "page")])
    assert "80, a sample of 400" in (tmp_path / "page" / "report.html").read_text(), done
    other.with_name(other.name + ".manifest.json").write_text("[]")
    with pytest.raises(BadInput, match="no manifest of judged answers"):
        judge_of([other], None, "--second")


def test_what_its_manifest_does_not_vouch_for_is_not_read(app, tmp_path: Path) -> None:
    """A file that is cut off, or edited by hand, would give a rate under the judge's name."""
    file = write(tmp_path / "m.judged-x.jsonl", MILD, "x")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:30]))
    done = CliRunner().invoke(app, ["rates", str(file)])
    assert isinstance(done.exception, BadInput) and "cut off, or edited since it was judged" in str(done.exception)


def test_one_judge_that_is_asked_otherwise_is_another(tmp_path: Path) -> None:
    one = write(tmp_path / "one.judged-x.jsonl", MILD, "x")
    other = write(tmp_path / "other.judged-x.jsonl", MILD, "x", extra_body={"top_p": 0.5})
    with pytest.raises(BadInput, match=r"two judges: .*one.* by x, .*other.* by x with {\"top_p\": 0.5}"):
        judge_of([one, other], None, "--judged-by")
    judge = Judge("x", Access("none", "http://127.0.0.1:9/v1", 1, extra_body={"top_p": 0.5}))
    assert judge.file(tmp_path / "other.jsonl") == other, "its own"
    for answers in ("one", "none"):  # the journal of none may be the other's, who was stopped
        named = judge.file(tmp_path / f"{answers}.jsonl").name
        assert re.fullmatch(rf"{answers}\.judged-x-[0-9a-f]{{8}}\.jsonl", named), "beside the other's"


def test_files_of_two_models_in_another_order_are_paired_by_name(tmp_path: Path) -> None:
    first = [write(tmp_path / "a" / f"{name}.jsonl", HARSH) for name in ("one", "two")]
    second = [write(tmp_path / "b" / f"{name}.jsonl", HARSH) for name in ("two", "one", "three")]
    straight = matched_files([*first, *second[1::-1]])
    assert matched_files([*first, *second[:2]]) == straight
    with pytest.raises(BadInput, match="are of two models"):
        matched_files([*first, second[0], second[2]])


def test_files_that_cannot_be_compared_are_one_line(app, tmp_path: Path) -> None:
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
