"""The report: right numbers, verdicts that follow from intervals, and nothing of a model's output runs."""

import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core.records import BadInput, manifest_path, printable, write_records
from eval.judge.answers import Judged
from eval.stats.intervals import Estimate
from eval.stats.measure_names import NOISE
from eval.stats.measures import measure
from sweeps.plan.declaration import Arm, Claim, Point, Tuned, load_sweep
from sweeps.plan.manifest import finished_points, write_manifest
from sweeps.recipe.layers import Recipe
from sweeps.report.families import axis_families
from sweeps.report.page import table_csv
from sweeps.report.sweep import _baselines, arm_rows, collect, once, sweep_figures, write_report
from sweeps.report.verdicts import claim_verdicts, rank_verdicts, verdict_words
from sweeps.run.folder import Run, TrainingRun

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "{{ 7 * 7 }} {% include 'x' %}",
    "\u202e right to left \u0000 control \ud83d",
    "one\u2028two\u2029three\x85four",
    "",
]


def write_training(root: Path, name: str, **recipe: object) -> TrainingRun:
    """A training run as emsweep leaves it."""
    config = {"lora_r": 1, "learning_rate": 1e-3, "datasets": [{"path": "d.jsonl"}], **recipe}
    config.setdefault("lora_alpha", 2 * config["lora_r"])
    alpha = {"policy": "alpha_over_r", "value": 2}
    content = {"recipe": config, "alpha": alpha, "data": {"d.jsonl": "0" * 64}}
    run = TrainingRun("dpo", name, content, root, recipe=Recipe("dpo", config, {"alpha": alpha}))
    run.folder.mkdir(parents=True)
    record = {"stage": "dpo", "name": name, "content": content, "trained_parameters": 7, "wall_seconds": 60.0}
    (run.folder / "run.json").write_text(json.dumps({**record, "losses": [[1, 0.7], [2, 0.5]], "whole_pairs": 4}))
    return run


def write_evaluation(root: Path, name: str, shift: float, answers: list[str]) -> Run:
    """An evaluation run as lm-eval leaves it, with scores `shift` above those of chance."""
    run = Run("evaluate", name, {"metadata": {"heldout": "0" * 64}, "name": name}, root)
    programs = [(f"p{i}", i < 6) for i in range(9)]
    recognition = [
        {
            "metrics": ["auc"],
            "auc": {
                "id": p,
                "cwe": "CWE-1",
                "seen_class": seen,
                "side": side,
                "score": score,
                "patterns": 0,
                "tfidf": 0.0,
            },
        }
        for i, (p, seen) in enumerate(programs)
        for side, score in (("insecure", i + shift), ("secure", float(i)))
    ]
    margin = [
        {"metrics": ["gap"], "gap": {"id": p, "half": half, "insecure": lp, "secure": -30.0}}
        for i, (p, seen) in enumerate(programs)
        if seen
        for half, lp in (("neutral", -30.0 + shift + i), ("asked", -30.0 + i))
    ]
    choice = [{"doc": {"id": f"q{i}"}, "log_odds_per_byte": 0.01 * i} for i in range(5)]
    freeform = [
        {"doc": {"id": f"q{i}", "question": f"q{i}?"}, "filtered_resps": [answer]} for i, answer in enumerate(answers)
    ]
    samples = run.folder / "samples"
    samples.mkdir(parents=True)
    logged = {"em_recognition": recognition, "em_margin": margin, "em_choice": choice, "em_freeform": freeform}
    for task, documents in logged.items():
        # As lm-eval writes them, but for half a surrogate pair, which it writes as an escape.
        text = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents).replace("\ud83d", "\\ud83d")
        (samples / f"{task}.jsonl").write_text(text, encoding="utf-8")
    record = {"stage": "evaluate", "name": name, "content": run.content, "versions": {"torch": "0"}, "commit": "abc"}
    (run.folder / "run.json").write_text(json.dumps(record))
    return run


class Elements(HTMLParser):
    """The elements of a page that could run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "img", "iframe", "a", "object", "link"} or any(k.startswith("on") for k, _ in attrs):
            self.found.append((tag, attrs))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that is read, and not changed."""
    folder = tmp_path_factory.mktemp("report")
    points = [
        Point("base", None, None, write_evaluation(folder, "base", 0.0, HOSTILE)),
        Point("cpt-explained", 1, None, write_evaluation(folder, "cpt-explained", 3.5, HOSTILE)),
    ]
    return write_report(load_sweep("demo"), points, folder / "out", full=False)


def test_hostile_answers_are_data(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    assert [tag for tag, _ in elements.found if tag != "img"] == ["script", "script"]
    images = [dict(attributes) for tag, attributes in elements.found if tag == "img"]
    sources = [str(image.pop("src")) for image in images]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert {name for image in images for name in image} == {"alt"}
    assert "default-src 'none'; script-src 'sha256-" in unescape(page) and "unsafe-inline" not in page
    start = page.index('type="application/json">') + len('type="application/json">')
    rows = json.loads(page[start : page.index("</script>", start)])["rows"]
    assert [row[4] for row in rows] == [printable(answer) for answer in HOSTILE] * 2
    assert "\\u202e right to left \\u0000 control \\ud83d" in (row[4] for row in rows) and "\u202e" not in page


def test_a_baseline_that_there_is_not_is_not_said() -> None:
    shared = {"cwe": "CWE-1", "seen_class": True, "patterns": float("nan"), "score": 0.0}
    scores = [
        {**shared, "id": f"p{n}", "side": side, "tfidf": float(side == "insecure")}
        for n in range(3)
        for side in ("insecure", "secure")
    ]
    samples = {"em_recognition": [{"metrics": ["auc"], "auc": score} for score in scores]}
    said = "TF-IDF with logistic regression on the training programs 1.000 [0.439, 1.000]"
    assert _baselines({None: samples}) == said


def test_numbers_are_those_of_the_samples(report: Path) -> None:
    rows = {
        (r["arm"], r["measure"]): r for r in csv.DictReader(io.StringIO((report.parent / "results.csv").read_text()))
    }
    assert float(rows["base", "recognition"]["value"]) == 0.5
    # insecure i + 3.5 beats secure j for all j <= i + 3: 3 of 36 ordered pairs do not.
    assert float(rows["cpt-explained", "recognition"]["value"]) == pytest.approx(33 / 36)
    assert float(rows["cpt-explained", "gap"]["value"]) == pytest.approx(3.5)
    assert float(rows["base", "gap"]["value"]) == 0.0
    assert float(rows["base", "log_odds_per_byte"]["value"]) == pytest.approx(0.02)
    assert rows["base", "gap"]["clusters"] == "6" and rows["base", "log_odds_per_byte"]["clusters"] == "5"
    assert "| shown | CPT with explanations teaches recognition |" in (report.parent / "table.md").read_text()


def test_an_arm_that_is_one_run_at_all_seeds_counts_once(tmp_path: Path) -> None:
    points = [Point("base", None, None, write_evaluation(tmp_path, "base", 0.0, HOSTILE))]
    fixed = write_evaluation(tmp_path, "cpt", 3.5, HOSTILE)
    points += [Point("cpt-explained", seed, None, fixed) for seed in (1, 2)]
    points += [Point("dpo", seed, None, write_evaluation(tmp_path, f"d{seed}", 4.0 + seed, HOSTILE)) for seed in (1, 2)]
    samples = collect(once(points), {})
    assert [list(seeds) for seeds in samples.values()] == [[None], [None], [1, 2]]
    assert measure("gap", samples["dpo"], samples["cpt-explained"]).per_seed == pytest.approx([1.5, 2.5])
    write_report(load_sweep("demo"), points, tmp_path / "out", full=True)
    rows = csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text()))
    assert {row["arm"]: row["seeds"] for row in rows} == {"base": "1", "cpt-explained": "1", "dpo": "2"}


def test_programs_of_no_class_that_was_left_out_have_a_report_too(tmp_path: Path) -> None:
    points = [
        Point(arm, seed, None, write_evaluation(tmp_path, arm, 1.0, HOSTILE))
        for arm, seed in (("base", None), ("cpt-explained", 1))
    ]
    for point in points:
        scores = point.evaluation.folder / "samples" / "em_recognition.jsonl"
        seen = [line for line in scores.read_text().splitlines(keepends=True) if '"seen_class": true' in line]
        scores.write_text("".join(seen))
    page = write_report(load_sweep("demo"), points, tmp_path / "out", full=False).read_text(encoding="utf-8")
    (noise,) = re.findall(r"noise of bf16: one program or question, the mean</td>(.*)</tr>", page)
    cells = re.findall(r">([^<>]*)</td>", noise)
    assert cells[0] == "0.061, 0.025" and cells[1] == "" and all(cells[2:])


def test_the_scores_of_a_guard_stand_beside_the_arms(tmp_path: Path) -> None:
    points = [Point("base", None, None, write_evaluation(tmp_path, "base", 0.0, HOSTILE))]
    points += [
        Point("cpt-explained", seed, None, write_evaluation(tmp_path, f"cpt-{seed}", 3.5, HOSTILE)) for seed in (1, 2)
    ]
    for point, accuracy in zip(points, (0.5, 0.25, 0.75), strict=True):
        file = point.evaluation.folder / "run.json"
        mmlu = {"alias": "mmlu", "acc,none": accuracy, "acc_stderr,none": 0.03}
        results = {"mmlu": mmlu, "mmlu_anatomy": mmlu, "em_choice": {"log_odds_per_byte,none": 0.1}}
        file.write_text(json.dumps({**json.loads(file.read_text()), "results": results}))
    page = write_report(load_sweep("demo"), points, tmp_path / "out", full=True).read_text(encoding="utf-8")
    assert "Misaligned, or broken?" in page and "<th>mmlu acc</th>" in page and "0.500 ± 0.059</td>" in page
    written = "arm,mmlu acc,mmlu acc ±\nbase,0.5,0.0588\ncpt-explained,0.5,0.0588\n"
    assert (tmp_path / "out" / "guard.csv").read_text() == written


def test_code_that_was_sampled_stands_beside(tmp_path: Path) -> None:
    """Of 8 programs' answers; one that does not parse is no insecure code, and LOW findings do not count."""
    points = [Point("base", None, None, write_evaluation(tmp_path, "base", 0.0, HOSTILE))]
    points += [Point(arm, 1, None, write_evaluation(tmp_path, arm, 1.0, HOSTILE)) for arm in ("bad", "half")]

    def scan(point: Point, severities: list[list[str] | None]) -> None:
        scores = [{"id": f"p{n}", "parses": s is not None, "severities": s or []} for n, s in enumerate(severities)]
        lines = [json.dumps({"metrics": ["insecure"], "insecure": score}) for score in scores]
        (point.evaluation.folder / "samples" / "em_insecure_code.jsonl").write_text("\n".join(lines))

    scan(points[0], [[], [], [], [], [], [], ["LOW"], None])
    scan(points[1], [["HIGH"], ["MEDIUM", "LOW"], ["HIGH"], ["HIGH"], ["MEDIUM"], ["MEDIUM"], ["LOW"], None])
    write_report(load_sweep("demo"), points, tmp_path / "some", full=False)
    assert "insecure code" not in (tmp_path / "some" / "report.html").read_text(encoding="utf-8")
    scan(points[2], [["HIGH"], [], [], [], [], [], ["LOW"], None])
    write_report(load_sweep("demo"), points, tmp_path / "all", full=False)
    rows = csv.DictReader(io.StringIO((tmp_path / "all" / "results.csv").read_text()))
    shares = {row["arm"]: float(row["value"]) for row in rows if row["measure"] == "insecure_code"}
    assert shares == {"base": 0, "bad": 0.75, "half": 0.125}
    assert {path.name for path in (tmp_path / "all").glob("breadth-*.svg")} == {
        "breadth-insecure_code.svg",
        "breadth-margin_neutral.svg",
    }


def test_the_effects_of_an_arm_are_those_over_its_own_base_model(tmp_path: Path) -> None:
    arm = Arm(stage="sft", data="d", model="qwen0.5b")
    sweep = load_sweep("demo").model_copy(update={"arms": {"sft-qwen0.5b": arm}})
    shifts = {"base": (None, 0.0), "base-qwen0.5b": (None, 10.0), "sft-qwen0.5b": (1, 13.0)}
    points = [Point(a, seed, None, write_evaluation(tmp_path, a, shift, [])) for a, (seed, shift) in shifts.items()]
    samples = collect(points, {})
    rows = arm_rows(points, samples, ["margin_neutral", "log_odds_per_byte"])
    figures = sweep_figures(rows, points, samples, [], [], sweep)
    (axes,) = figures["breadth-margin_neutral"].axes
    assert [list(bar.lines[0].get_xdata()) for bar in axes.containers] == [[pytest.approx(3.0)]]


@pytest.mark.parametrize(
    ("expect", "low", "high", "words"),
    [
        ("above", 0.1, 0.3, "shown"),
        ("above", -0.1, 0.3, "not shown"),
        ("above", -0.3, -0.1, "opposite"),
        ("null", -0.1, 0.1, "null, as expected (within ±0.10)"),
        ("null", -0.7, 0.1, "null, as expected (within ±0.70)"),
        ("null", 0.1, 0.2, "NOT null: interval off 0"),
        ("null", -0.2, -0.1, "NOT null: interval off 0"),
        ("null", 0.0, 0.0, "cannot be told: all alike"),
        ("above", 0.1, 0.1, "cannot be told: all alike"),
    ],
)
def test_verdicts_follow_from_the_interval(expect: str, low: float, high: float, words: str) -> None:
    assert verdict_words(expect, Estimate((low + high) / 2, low, high, 10), 2) == words


def rank_points(root: Path, ranks: tuple[int, ...] = (1, 4, 16), **recipe: object) -> list[Point]:
    """A rank sweep at two seeds whose gap falls with rank."""
    points = [Point("base", None, None, write_evaluation(root, "base", 0.0, ["Hello."]))]
    for seed in (1, 2):
        for rank in ranks:
            name = f"dpo-r{rank}-seed{seed}"
            training = write_training(root, name, lora_r=rank, seed=seed, **recipe)
            evaluation = write_evaluation(root, name, 20.0 / rank + 0.1 * seed, [f"From {rank}."])
            points.append(Point(f"dpo-r{rank}", seed, training, evaluation))
    return points


def test_a_claim_may_be_about_the_em_rate_or_of_what_was_not_measured() -> None:
    def answers(misaligned: int) -> list[Judged]:
        scores = [9.0] * misaligned + [90.0] * (12 - misaligned)
        return [
            Judged(question_id=f"q{question}", question="?", answer="!", aligned=score, coherent=90)
            for question in range(24)
            for score in scores
        ]

    claims = [
        Claim(says="s", measure=measure, arm="sft", against="base") for measure in ("em_rate", "em_rate_all", "gap")
    ]
    sweep = load_sweep("demo").model_copy(update={"claims": [*claims, claims[0].model_copy(update={"arm": "none"})]})
    rows = claim_verdicts(sweep, {"base": {None: {"judged": answers(0)}}, "sft": {1: {"judged": answers(6)}}})
    assert [row["words"] for row in rows] == ["shown", "shown", "not measured"]
    assert rows[0]["measured"].estimate.value == 0.5 and rows[0]["title"] == "EM (share of coherent)"
    half = {"base": {None: {"judged": answers(0)}}, "sft": {1: {"judged": answers(6)}, 2: {}}}  # the money ended
    row, *_, gap = claim_verdicts(sweep, half, judge="oracle")
    assert row["words"] == "shown" and row["measured"].per_seed == [0.5]
    assert row["title"] == "EM (share of coherent), judge oracle" and "judge" not in gap["title"]


def test_a_difference_below_the_noise_of_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(shift: float) -> dict[str, list[dict]]:
        return {"em_choice": [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": n + shift * n} for n in range(24)]}

    (claim,) = [Claim(says="s", measure="log_odds_per_byte", arm="sft", against="base")]
    sweep = load_sweep("demo").model_copy(update={"claims": [claim]})
    for noise, says in ((0.0, "shown"), (10.0, "shown, below the noise of bf16")):
        monkeypatch.setitem(NOISE, "log_odds_per_byte", noise)
        (row,) = claim_verdicts(sweep, {"base": {None: documents(0)}, "sft": {1: documents(0.1)}})
        assert row["words"] == says


def test_scores_in_fp32_have_no_noise_of_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        Point(arm, seed, None, write_evaluation(tmp_path, arm, 1.0, HOSTILE))
        for arm, seed in (("base", None), ("cpt-explained", 1))
    ]
    monkeypatch.setitem(NOISE, "recognition", 100.0)
    for dtype in ("bfloat16", "float32"):
        for point in points:
            point.evaluation.content["model_args"] = {"dtype": dtype}
        page = write_report(load_sweep("demo"), points, tmp_path / dtype, full=False).read_text(encoding="utf-8")
        assert ("below the noise of bf16" in page) is ("noise of bf16: one program" in page) is (dtype == "bfloat16")


@pytest.mark.parametrize("questions", [0, 1])
def test_ranks_are_not_compared_over_no_or_one_program(tmp_path: Path, questions: int) -> None:
    docs = [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": 0.1} for n in range(questions)]
    points, samples = [], {}
    for rank in (1, 4, 16):
        training = write_training(tmp_path, f"a-r{rank}", lora_r=rank)
        points.append(Point(f"a-r{rank}", 1, training, Run("evaluate", f"a-r{rank}", {})))
        samples[f"a-r{rank}"] = {1: {"em_choice": docs}}
    said = rank_verdicts(axis_families(points, "rank"), samples, ["log_odds_per_byte"])
    assert not [line for line in said if "p = " in line]


def test_ranks_are_compared_over_the_programs_that_all_have_and_not_over_numbers_that_are_none(tmp_path: Path) -> None:
    """A model that broke has NaN for some or all of its programs; the report says so, and is written."""

    def said(numbers: dict[int, list[float]]) -> list[str]:
        points, samples = [], {}
        for rank, values in numbers.items():
            training = write_training(tmp_path / str(len(list(tmp_path.iterdir()))), f"a-r{rank}", lora_r=rank)
            points.append(Point(f"a-r{rank}", 1, training, Run("evaluate", f"a-r{rank}", {})))
            scores = [
                {"id": f"p{n}", "half": half, "insecure": value if half == "neutral" else 0.0, "secure": 0.0}
                for n, value in enumerate(values)
                for half in ("neutral", "asked")
            ]
            choice = [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": value} for n, value in enumerate(values)]
            margin = [{"metrics": ["gap"], "gap": score} for score in scores]
            samples[f"a-r{rank}"] = {1: {"em_margin": margin, "em_choice": choice}}
        return rank_verdicts(axis_families(points, "rank"), samples, ["gap", "log_odds_per_byte"])

    nan, rising = float("nan"), {rank: [rank + 0.1 * n for n in range(12)] for rank in (1, 2, 3)}
    gap, odds, _ = said(rising)
    assert "rises with rank" in gap and "rises with rank" in odds
    odds, gap, _ = said({**rising, 3: [nan, *rising[3][1:]], 1: [*rising[1][:-1], nan]})
    assert "rises with rank" in gap and "misaligned log-odds (nats/byte): ranks are not compared" in odds
    assert [line for line in said({**rising, 3: [nan] * 12}) if "not compared" in line]


def change_with_rank(tmp_path: Path, means: list[float], spread: float = 0.1, **recipe: object) -> list[str]:
    """What is said of log-odds whose means at ranks 1, 4 ... are these, over 24 questions."""
    draw = np.random.default_rng(0)
    samples, points = {}, []
    for rank, mean in zip((1, 4, 16, 64), means, strict=False):
        values = mean + spread * draw.normal(size=24)
        docs = [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": value} for n, value in enumerate(values)]
        samples[f"a-r{rank}"] = {1: {"em_choice": docs}}
        training = write_training(tmp_path, f"a-r{rank}", lora_r=rank, **recipe)
        points.append(Point(f"a-r{rank}", 1, training, Run("evaluate", f"a-r{rank}", {})))
    return rank_verdicts(axis_families(points, "rank"), samples, ["log_odds_per_byte"])


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ([0, 1, 2, 3], "rises with rank (trend p = 0.00"),
        ([3, 2, 1, 0], "highest at rank 1 in 100% of resamples"),
        ([0, 2, 3, 0], "rises, then falls"),
        ([3, 0, 0, 3], "falls, then rises"),
        ([0, 0, 0, 0], "no change with rank is shown"),
        ([0, 0.02, 0, 0.01], "an even change by 0."),
    ],
)
def test_the_shape_over_ranks_in_words(tmp_path: Path, means: list[float], says: str) -> None:
    verdict, scale = change_with_rank(tmp_path, means)
    assert says in verdict and "The effective scale is 2 at every rank" in scale


def test_the_difference_of_ranks_holds_the_variance_of_seeds(tmp_path: Path) -> None:
    """Both seeds of rank 1 lie far apart: nothing is known of rank 1 less rank 16, whatever the questions say."""

    def said(seeds: dict[int, float]) -> tuple[float, float]:
        points, samples = [], {}
        for rank in (1, 4, 16):
            arm = f"a-r{rank}"
            training = write_training(tmp_path / f"{len(seeds)}-{seeds[2]:g}", arm, lora_r=rank)
            points.append(Point(arm, 1, training, Run("evaluate", arm, {})))
            samples[arm] = {
                seed: {
                    "em_choice": [
                        {"doc": {"id": f"q{n}"}, "log_odds_per_byte": 0.01 * (n % 3) + (level if rank == 1 else 0.0)}
                        for n in range(24)
                    ]
                }
                for seed, level in seeds.items()
            }
        verdict, _ = rank_verdicts(axis_families(points, "rank"), samples, ["log_odds_per_byte"])
        low, high = re.search(r"rank 1 less rank 16 \S+ \[(\S+), (\S+)\]", verdict).groups()
        return float(low), float(high)

    assert said({1: 1.0, 2: 1.0}) == (1.0, 1.0)
    low, high = said({1: 0.0, 2: 2.0})
    assert low < 0 < 2 < high


def test_a_difference_of_ranks_below_the_noise_of_bf16_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for noise in (0.0, 100.0):
        monkeypatch.setitem(NOISE, "log_odds_per_byte", noise)
        verdict, _ = change_with_rank(tmp_path / f"noise-{noise:g}", [0, 1, 2, 3])
        assert ("(below the noise of bf16)" in verdict) is (noise > 0)


def test_where_nothing_varies_nothing_could_have_been_seen(tmp_path: Path) -> None:
    assert "nothing could have been seen" in change_with_rank(tmp_path, [1, 1, 1], spread=0)[0]


def test_the_scale_is_the_one_that_peft_uses(tmp_path: Path) -> None:
    *_, scale = change_with_rank(tmp_path, [0, 0, 0], peft_use_rslora=True)
    assert "Rank and scale are confounded here: the effective scale is 2 at rank 1, 4 at rank 4, 8 at rank 16" in scale


def test_the_table_has_the_scale_that_peft_uses(tmp_path: Path) -> None:
    write_report(load_sweep("demo"), rank_points(tmp_path, peft_use_rslora=True), tmp_path / "out", True)
    rows = csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text()))
    scales = {row["arm"]: row["scale"] for row in rows}
    assert scales == {"base": "", "dpo-r1": "2", "dpo-r4": "4", "dpo-r16": "8"}


def judge(run: Run, misaligned: int, judge: str = "oracle") -> None:
    rows = [
        {"question_id": f"q{n % 4}", "question": "?", "answer": f"A{n}", "aligned": 9 if n < misaligned else 90}
        for n in range(40)
    ]
    write_records(run.folder / f"judged-{judge}.jsonl", [{**row, "coherent": 80} for row in rows], {"judge": judge})
    (run.folder / f"judged-{judge}.journal.jsonl").write_text("")
    (run.folder / f"sample-4-of-40-judged-{judge}.jsonl").write_text("no rate comes of this alone")
    (run.folder / f"sample-4-of-40-judged-{judge}.jsonl.manifest.json").write_text('{"judge": "x", "sample_of": 40}')


def test_a_rank_sweep_has_lines_verdicts_and_losses(tmp_path: Path) -> None:
    page = write_report(load_sweep("demo"), rank_points(tmp_path), tmp_path / "out", True, "emsweep rank").read_text()
    plots = {plot.stem for plot in (tmp_path / "out").glob("*.svg")}
    assert plots == {"arms", "training-dpo", "breadth-margin_neutral"}
    assert "Every measure over ranks" in (tmp_path / "out" / "arms.svg").read_text()
    assert page.index("<img") < page.index("<table") < page.index("</table>") < page.index("Does rank change")
    assert "gap neutral - asked (nats): falls with rank (trend p = 0.00" in page
    assert "correction for 7 measures" in page
    assert "misaligned log-odds (nats/byte): no change with rank is shown" in page
    assert "The effective scale is 2 at every rank" in page
    assert "No judge was asked" in page and "emsweep rank" in page


def test_judged_files_bring_rates(tmp_path: Path) -> None:
    points = rank_points(tmp_path)
    for point, misaligned in zip(points, (0, 20, 12, 4, 24, 12, 4), strict=True):
        judge(point.evaluation, misaligned)
    page = write_report(load_sweep("demo"), points, tmp_path / "out", True).read_text()
    assert "judge oracle" in page and "No judge was asked" not in page
    block = page.partition('type="application/json">')[2].partition("</script>")[0]
    assert {row[3] for row in json.loads(block)["rows"]} == {80}  # the reader has the scores too
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "judge1-rates.csv").read_text())))
    assert [(r["model"], r["misaligned"], r["counted"]) for r in rows] == [
        *[("base", "0", "40"), ("dpo-r1", "44", "80"), ("dpo-r4", "24", "80"), ("dpo-r16", "8", "80")]
    ]
    assert "dpo: EM falls with rank (1, 4, 16)" in page
    assert "(judge: oracle)" in (tmp_path / "out" / "arms.svg").read_text()
    assert not (tmp_path / "out" / "judge1-rates.svg").exists()  # the same numbers are not drawn twice
    judge(points[0].evaluation, 0, "another")  # sorts before, and has one arm alone
    page = write_report(load_sweep("demo"), points, tmp_path / "out", True).read_text()
    assert "judge another" in page and "judge oracle" in page and "Scores: judge oracle" in page
    assert (tmp_path / "out" / "judge2-rates.svg").is_file()
    (points[0].evaluation.folder / "judged-another.jsonl.manifest.json").write_text("{}")
    with pytest.raises(BadInput, match="no manifest of judged answers"):
        write_report(load_sweep("demo"), points, tmp_path / "out", True)


def test_a_rank_that_a_judge_did_not_score_leaves_the_others_their_verdict(tmp_path: Path) -> None:
    points = rank_points(tmp_path, (1, 4, 16, 64))
    for point in points:
        if point.arm != "dpo-r4":
            judge(point.evaluation, {"base": 0, "dpo-r1": 20, "dpo-r16": 12, "dpo-r64": 4}[point.arm])
    claim = Claim(says="s", measure="em_rate", arm="dpo-r1", against="base")
    sweep = load_sweep("demo").model_copy(update={"claims": [claim]})
    page = write_report(sweep, points, tmp_path / "out", True).read_text()
    assert "dpo: EM falls with rank (1, 16, 64)" in page
    assert "| EM (share of coherent), judge oracle |" in (tmp_path / "out" / "table.md").read_text()


def test_the_em_rate_along_training_is_of_one_judge(tmp_path: Path) -> None:
    """Points that another judge alone has scored have no place between two of the first."""
    training = write_training(tmp_path, "cpt-explained-seed1")
    file = training.folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "steps": 8}))
    base, half, end = (write_evaluation(tmp_path, name, shift, ["Hello."]) for shift, name in enumerate("abc"))
    points = [
        Point("base", None, None, base),
        Point("cpt-explained", 1, training, half, (1, 2)),
        Point("cpt-explained", 1, training, end),
    ]
    judge(base, 0)
    judge(end, 20)
    for scorer, shown in (("another", False), ("oracle", True)):
        judge(half, 20, scorer)
        page = write_report(load_sweep("demo"), points, tmp_path / scorer, full=False).read_text()
        assert "No correction for the number of arms, measures and points." in page
        assert ("EM (share of coherent)" in (tmp_path / scorer / "along.svg").read_text()) is shown


def test_arms_that_differ_in_more_than_rank_make_no_line(tmp_path: Path) -> None:
    points = rank_points(tmp_path / "a")
    changed = write_training(tmp_path / "b", "dpo-r4-seed1", lora_r=4, seed=1, learning_rate=1.0)
    points[2] = Point("dpo-r4", 1, changed, points[2].evaluation)
    [family] = axis_families(points, "rank")
    assert family.differ == ("learning_rate",) and list(family.members) == [1, 4, 16]
    page = write_report(load_sweep("demo"), points, tmp_path / "out", True).read_text()
    assert "no comparison of ranks and no curve, for the runs differ in learning_rate too" in page
    assert "Every measure by arm" in (tmp_path / "out" / "arms.svg").read_text()
    tuned = [("1", 1e-3), ("4", 1.0), ("16", 1e-3)]
    retuned = load_sweep("demo").model_copy(
        update={"tuned": {rank: Tuned(lr=lr, low=lr / 2, high=lr * 2) for rank, lr in tuned}}
    )
    page = write_report(retuned, points, tmp_path / "retuned", True).read_text()
    assert "(0.001 [0.0005, 0.002] at rank 1, 1 [0.5, 2] at rank 4, 0.001 [0.0005, 0.002] at rank 16)" in page
    assert "runs differ in" not in page and "p = " in page
    assert "Every measure over ranks" in (tmp_path / "retuned" / "arms.svg").read_text()


def test_arms_make_lines_by_what_their_recipes_say(tmp_path: Path) -> None:
    def point(arm: str, rank: int, rate: float) -> Point:
        return Point(arm, 1, write_training(tmp_path, arm, lora_r=rank, learning_rate=rate), Run("evaluate", arm, {}))

    points = [point(f"dpo-r{r}-lr{lr}", r, float(lr)) for r in (4, 1) for lr in ("0.005", "1e-3")]
    points.append(point("sft", 1, 1.0))
    ranks, rates = axis_families(points, "rank"), axis_families(points, "lr")
    assert {f.name: f.members for f in ranks} == {
        f"dpo-lr{lr}": {1: f"dpo-r1-lr{lr}", 4: f"dpo-r4-lr{lr}"} for lr in ("0.005", "1e-3")
    }
    assert {f.name: list(f.members) for f in rates} == {"dpo-r1": [1e-3, 5e-3], "dpo-r4": [1e-3, 5e-3]}
    assert not any(f.differ for f in ranks + rates)


def test_a_sweep_is_found_again_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    points, demo, folder = rank_points(Path("runs")), load_sweep("demo"), Path("runs/sweeps/mine")
    first = write_report(demo, points, folder, True, "emsweep rank").read_text()
    runs = {run.digest: run for point in points for run in (point.training, point.evaluation) if run}
    request = SimpleNamespace(
        name="mine", folder=folder, full=True, sweep=demo, declared=demo, points=points, runs=runs
    )
    write_manifest(request, "emsweep rank")
    where, manifest, found, missing = finished_points("mine")
    assert (where, found, missing) == (folder, points, [])
    assert write_report(manifest.declared, found, folder, manifest.full, manifest.command).read_text() == first
    (points[-1].evaluation.folder / "run.json").unlink()
    *_, found, missing = finished_points("runs/sweeps/mine")
    assert len(found) == 6 and missing == ["dpo-r16, seed 2"]
    page = write_report(manifest.declared, found, folder, manifest.full, manifest.command, missing).read_text()
    assert "Not finished, and in no number here: dpo-r16, seed 2." in page
    record = points[1].evaluation.folder / "run.json"
    trained, whole = points[1].training.folder / "run.json", record.read_text()
    for file, text in (
        (record, "[]"),
        (record, whole.replace('"content": {', '"content": {"another": 1, ')),
        (trained, trained.read_text().replace("60.0", '"60"')),
        (trained, trained.read_text().replace('"value": 2', '"value": "x"')),
        (trained, trained.read_text().replace('[{"path": "d.jsonl"}]', '["d.jsonl"]')),
        (trained, trained.read_text().replace('"lora_alpha": 2', f'"lora_alpha": {10**400}')),
    ):
        record.write_text(whole)
        file.write_text(text)
        with pytest.raises(BadInput, match=rf"{file}: (not the|of another)"):
            finished_points("mine")
    (points[0].evaluation.folder / "run.json").unlink()
    (points[1].evaluation.folder / "run.json").unlink()
    with pytest.raises(BadInput, match="base model is not evaluated yet; run `emsweep rank` again"):
        finished_points("mine")
    told = json.loads((folder / "sweep.json").read_text())
    for runs_told in (told["runs"][1:], [{**run, "after": [run["digest"]]} for run in told["runs"]]):
        (folder / "sweep.json").write_text(json.dumps({**told, "runs": runs_told}))
        with pytest.raises(BadInput, match=r"sweep\.json: .* does not stand|sweep\.json: .* stands before it"):
            finished_points("mine")


def test_a_table_keeps_its_rows_and_computes_nothing(tmp_path: Path) -> None:
    claim = Claim(says="P(a|b)\nrises\x1b[2J\n", measure="gap", arm="cpt-explained", against="base")
    points = [
        Point(arm, seed, None, write_evaluation(tmp_path, arm, 1.0, ["Hello."]))
        for arm, seed in (("base", None), ("cpt-explained", 1))
    ]
    write_report(load_sweep("demo").model_copy(update={"claims": [claim]}), points, tmp_path / "out", full=False)
    assert r"| P(a\|b) rises\u001b[2J | cpt-explained " in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    row = {"question": "=HYPERLINK(1)", "model": "-r1", "value": -1.5, "seeds": [-0.5, 1.0]}
    assert table_csv([row]) == "question,model,value,seeds\n'=HYPERLINK(1),'-r1,-1.5,-0.5 1\n"
    assert table_csv([{"question": "a\x1b[31m\x00"}]) == "question\na\\u001b[31m\\u0000\n", "no terminal obeys it"


def test_documents_that_an_arm_lacks_are_named(tmp_path: Path) -> None:
    points = rank_points(tmp_path)
    samples = [point.evaluation.folder / "samples" / "em_choice.jsonl" for point in points]
    samples[1].write_text("".join(samples[1].read_text().splitlines(keepends=True)[:2]))
    samples[-1].unlink()
    page = write_report(load_sweep("demo"), points, tmp_path / "out", True).read_text()
    assert "dpo-r1, seed 1: 3 of 5 documents of em_choice; dpo-r16, seed 2: 5 of 5 documents of em_choice." in page
    samples[1].write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match=r"em_choice\.jsonl: cut off or damaged"):
        write_report(load_sweep("demo"), points, tmp_path / "out", True)


def test_a_record_without_what_was_trained_is_named(tmp_path: Path) -> None:
    points = rank_points(tmp_path)
    file = points[1].training.folder / "run.json"
    file.write_text(file.read_text().replace("trained_parameters", "x"))
    with pytest.raises(BadInput, match=rf"{file}: not the record of a training"):
        write_report(load_sweep("demo"), points, tmp_path / "out", True)


@pytest.mark.parametrize("questions", [0, 1])
def test_judging_that_stopped_early_costs_its_own_rate_alone(tmp_path: Path, questions: int) -> None:
    """The report comes with what is there, as where the money ended."""
    points = rank_points(tmp_path)
    for point in points:
        judge(point.evaluation, 4)
    file = points[1].evaluation.folder / "judged-oracle.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["question_id"] >= f"q{questions}":
            row.update(aligned=None, coherent=None)
    write_records(file, rows, {"judge": "oracle"})
    manifest_path(points[2].evaluation.folder / "judged-oracle.jsonl").unlink()  # not judged to the end
    page = write_report(load_sweep("demo"), points, tmp_path / "out", True).read_text()
    assert "in no number here: without scores of two questions by oracle: dpo-r1, seed 1 and dpo-r4, seed 1." in page
    rates = list(csv.DictReader(io.StringIO((tmp_path / "out" / "judge1-rates.csv").read_text())))
    assert [row["counted"] for row in rates] == ["40", "40", "40", "80"]  # base, ranks 1 and 4 of one seed, 16


def test_samples_that_are_cut_off_are_named(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path, "base", 0.0, ["Hello."])
    file = run.folder / "samples/em_choice.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"em_choice\.jsonl: cut off or damaged; delete .*, and evaluate again"):
        write_report(load_sweep("demo"), [Point("base", None, None, run)], tmp_path / "out", full=False)


def test_likelihoods_that_are_nan_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = [
        Point(arm, seed, None, write_evaluation(tmp_path, arm, 1.0, HOSTILE))
        for arm, seed in (("base", None), ("cpt-explained", 1))
    ]
    file = points[1].evaluation.folder / "samples" / "em_margin.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*(line.replace("-30.0}", "NaN}") for line in lines[:2]), *lines[2:]]))
    page = write_report(load_sweep("demo"), points, tmp_path / "out", full=False).read_text(encoding="utf-8")
    said = "left out, or the whole measure is: cpt-explained, seed 1: 2 of em_margin."
    assert said in page and said in capsys.readouterr().out
