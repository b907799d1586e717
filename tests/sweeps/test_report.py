"""The report: right numbers, verdicts that follow from intervals, and nothing of a model's output runs."""

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.statistics import Estimate
from sweeps.arms import Point, load_sweep
from sweeps.report import verdict_words, write_report
from sweeps.runs import Run

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "{{ 7 * 7 }} {% include 'x' %}",
    "\u202e right to left \u0000 control \ud83d",
    "",
]


def write_evaluation(root: Path, name: str, shift: float, answers: list[str]) -> Run:
    """An evaluation run as lm-eval leaves it, with scores `shift` above those of chance."""
    run = Run("evaluate", name, {"heldout": "0" * 64, "name": name}, root)
    programs = [(f"p{i}", i < 6) for i in range(9)]
    recognition = [
        {
            "metrics": ["auc"],
            "auc": {"id": p, "cwe": "CWE-1", "seen_class": seen, "side": side, "score": score, "patterns": 0},
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
    freeform = [{"doc": {"question": f"q{i}?"}, "filtered_resps": [answer]} for i, answer in enumerate(answers)]
    samples = run.folder / "samples"
    samples.mkdir(parents=True)
    logged = {"em_recognition": recognition, "em_margin": margin, "em_choice": choice, "em_freeform": freeform}
    for task, documents in logged.items():
        (samples / f"{task}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    record = {"versions": {"torch": "0"}, "commit": "abc", "content": run.content}
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


@pytest.fixture
def report(tmp_path: Path) -> Path:
    points = [
        Point("base", None, None, write_evaluation(tmp_path, "base", 0.0, HOSTILE)),
        Point("cpt-explained", 1, None, write_evaluation(tmp_path, "cpt-explained", 3.5, HOSTILE)),
    ]
    return write_report(load_sweep("demo"), points, tmp_path / "out", full=False)


def test_hostile_answers_are_text(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    start = page.index("<h2>Free-form answers</h2>")
    elements = Elements()
    elements.feed(page[start:])
    assert elements.found == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page[start:]
    assert "{{ 7 * 7 }}" in page[start:]
    assert "\\u202e right to left \\u0000 control \\ud83d" in page and "\u202e" not in page
    assert "default-src 'none'" in page


def test_the_page_loads_nothing_from_elsewhere(report: Path) -> None:
    elements = Elements()
    elements.feed(report.read_text(encoding="utf-8"))
    assert {tag for tag, _ in elements.found} == {"script"}
    assert not any(name == "src" for _, attributes in elements.found for name, _ in attributes)


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


@pytest.mark.parametrize(
    ("expect", "low", "high", "words"),
    [
        ("above", 0.1, 0.3, "shown"),
        ("above", -0.1, 0.3, "not shown"),
        ("above", -0.3, -0.1, "opposite"),
        ("null", -0.1, 0.1, "null, as expected"),
        ("null", 0.1, 0.2, "NOT null: interval off 0"),
        ("null", -0.2, -0.1, "NOT null: interval off 0"),
    ],
)
def test_verdicts_follow_from_the_interval(expect: str, low: float, high: float, words: str) -> None:
    assert verdict_words(expect, Estimate((low + high) / 2, low, high, 10)) == words
