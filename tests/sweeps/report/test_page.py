"""The page in headless Chromium, from disk, with the network cut: it reads, filters, and runs nothing of a model's."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core.records import BadInput, printable
from eval.judge.answers import Judged
from sweeps.report.figures import arms_figure
from sweeps.report.judged import judged_part, write_answers_report
from sweeps.report.page import data_block, write_page

HOSTILE = [
    "<script>document.title = 'ran'</script>",
    "</script><script>document.title = 'ran'</script>",
    "<!--<script>",
    "]]></script><img src=x onerror=\"document.title = 'ran'; alert(1)\">",
    "<svg onload=\"document.title = 'ran'\"><iframe srcdoc=\"<script>top.document.title = 'ran'</script>\"></iframe>",
    "<a href=\"javascript:document.title = 'ran'\">javascript:alert(1)</a>",
    "{{ 7 * 7 }} {% include 'x' %} ${document.title = 'ran'} `",
    "\u2028\u2029 line\u0085 separators",
    "\u202e right to left \u2066\u2067\u2069 \u200f \u061c isolates",
    "\x00 \x1b[31m \x7f control \ufeff",
    "\ud83d lone \udc00 surrogates",
    "__proto__",
    "",
]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:  # noqa: F821
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    with Browser() as found:
        yield found


def test_files_of_an_earlier_page_do_not_stand_beside_a_later_one(tmp_path: Path) -> None:
    rows = [Judged(question_id=f"q{n}", question="?", answer="!", aligned=5, coherent=90) for n in range(3)]
    page(tmp_path, [("a", row) for row in rows])
    listed = (tmp_path / "report.files.txt").read_text().split()
    assert {"rates.svg", "rates.pdf"} <= set(listed) and all((tmp_path / name).is_file() for name in listed)
    (tmp_path / "trends.csv").write_text("of the page before")
    (tmp_path / "mine.csv").write_text("not of a page")
    (tmp_path / "old.svg").mkdir()
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path.parent / "other.csv").write_text("not in this folder")
    foreign = ["sweep.json", "../other.csv", "..", ".", "old.svg", str(tmp_path.parent / "other.csv"), "a\0.csv"]
    (tmp_path / "report.files.txt").write_text("\n".join([*listed, "trends.csv", *foreign]))
    page(tmp_path, [("a", row) for row in rows])
    assert not (tmp_path / "trends.csv").exists() and (tmp_path / "mine.csv").exists()
    assert (tmp_path / "sweep.json").exists() and (tmp_path.parent / "other.csv").exists()
    (tmp_path / "report.files.txt").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"report\.files\.txt: .*; delete it"):
        page(tmp_path, [("a", row) for row in rows])


def page(out: Path, answers: list[tuple[str, Judged]], beside: str = "base") -> Path:
    """A report of answers that may hold what no file could."""
    models: dict[str, list[Judged]] = {}
    for name, row in answers:
        models.setdefault(printable(name), []).append(row)
    part = judged_part({name: [rows] for name, rows in models.items()}, printable(HOSTILE[1]), [])
    context: Mapping[str, object] = {
        "title": HOSTILE[3],
        "parts": [part],
        "sources": [(HOSTILE[0], "0", 1)],
        "versions": {},
        "commit": HOSTILE[1],
        "command": HOSTILE[5],
        "answers": data_block(answers, beside),
    }
    figures = {"rates": arms_figure(HOSTILE[3], part.panels, []), **part.figures}
    return write_page(out, "answers.html", context, figures, part.tables)


def test_hostile_words_run_nothing_and_are_all_there(browser, tmp_path: Path) -> None:
    def judged(words: str, n: int) -> Judged:
        clean = words.encode("utf-8", "replace").decode()
        # Half a surrogate pair passes no check of pydantic's, but can stand in samples of lm-eval.
        return Judged.model_construct(
            question_id=f"{clean}{n % 3}_json", question=clean, answer=words, aligned=5.0 * n, coherent=90.0
        )

    answers = [(name, judged(words, n)) for name in HOSTILE for n, words in enumerate(HOSTILE * 2)]
    browser.events.clear()
    browser.open(page(tmp_path, answers))
    assert browser.value("document.getElementById('list').children.length") == 1
    assert browser.value("document.title") == HOSTILE[3]
    for n in range(len(HOSTILE)):
        browser.value(f"document.forms.filters.elements.point.selectedIndex = {n + 1}")
        browser.value("document.forms.filters.dispatchEvent(new Event('input'))")
        browser.value("document.querySelectorAll('.row').forEach((row) => row.click())")
    assert browser.value("document.title") == HOSTILE[3]
    foreign = (
        "img:not([src^='data:image/svg+xml;base64,']), iframe, a, object, link, svg, *[onload], *[onerror], script"
    )
    assert browser.value(f"document.querySelectorAll({json.dumps(foreign)}).length") == 2
    assert browser.value("document.querySelectorAll('#list *, #whole *').length") == browser.value(
        "document.querySelectorAll('#list div, #whole div').length"
    )
    data = json.loads(browser.value("document.getElementById('answers').textContent"))
    assert [row[4] for row in data["rows"][: len(HOSTILE)]] == [printable(words) for words in HOSTILE]
    seen = browser.value("document.getElementById('list').innerText + document.getElementById('whole').innerText")
    assert not set("\u202e\u2066\u2028\x00\x1b") & set(seen)
    assert browser.events == []


def test_an_injected_script_is_refused_by_the_content_policy(browser, tmp_path: Path) -> None:
    """The second wall: even if some text were taken for HTML, it would not run."""
    path = page(
        tmp_path, [("base", Judged(question_id=f"q{n}", question="?", answer="!", coherent=90)) for n in (0, 1)]
    )
    text = path.read_text().replace("<h1>", "<script>document.title = 'ran'</script><img src=x onerror='alert(1)'><h1>")
    path.write_text(text)
    browser.open(path)
    assert browser.value("document.title") == HOSTILE[3]
    assert [kind for kind, _ in browser.events if kind != "log"] == []
    browser.events.clear()


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    answers = [("m", Judged(question_id=f"q{n}", question="?", answer="!", aligned=5, coherent=90)) for n in (0, 1)]
    (tmp_path / "rates.csv").write_text("mine")
    with pytest.raises(BadInput, match=r"rates\.csv: is no report's, and would be replaced"):
        page(tmp_path, answers)
    assert [path.name for path in tmp_path.iterdir()] == ["rates.csv"] and "mine" in (
        tmp_path / "rates.csv"
    ).read_text()
    (tmp_path / "rates.csv").unlink()
    for _ in range(2):
        assert page(tmp_path, answers).is_file(), "its own it writes again"


def rows_of(models: int, each: int) -> list[tuple[str, Judged]]:
    return [
        (
            f"m{model}",
            Judged.model_construct(
                question_id=f"q{n % 4}{'_json' if n % 8 > 3 else ''}",
                question="?",
                answer=f"Model {model} says {n}." + (" ÉTÉ" if n % 10 == 0 else ""),
                aligned=None if n % 7 == 0 else float(n % 100),
                coherent=float(n % 91),
            ),
        )
        for model in range(models)
        for n in range(each)
    ]


def test_100_000_answers_filter_and_scroll(browser, tmp_path: Path) -> None:
    answers = rows_of(5, 20_000)
    browser.events.clear()
    browser.open(page(tmp_path, answers, beside="m2"))

    def count(**filters: str) -> int:
        for name, value in filters.items():
            browser.value(f"document.forms.filters.elements['{name.replace('_', '-')}'].value = {json.dumps(value)}")
        browser.value("document.forms.filters.dispatchEvent(new Event('input'))")
        return int(browser.value("document.getElementById('count').textContent").split(" of ")[0].replace(",", ""))

    def expected(keeps) -> int:
        return sum(1 for name, row in answers if keeps(name, row))

    assert count() == 100_000
    assert browser.value("document.querySelectorAll('.row').length") < 30
    browser.value("new Promise((r) => { list.scrollTop = 95 * 70000; requestAnimationFrame(() => setTimeout(r, 50)) })")
    assert "Model 3 says 10000." in browser.value("document.getElementById('list').textContent")
    assert count(words="été") == expected(lambda _, row: "ÉTÉ" in row.answer)
    assert count(words="SAYS 19999.") == 5
    assert count(words="", point="3") == 20_000
    assert count(question="1") == 5_000
    assert count(format="json") == 2_500
    low = count(aligned_to="29")
    assert low == expected(
        lambda name, row: (
            name == "m3" and row.question_id == "q1_json" and row.aligned is not None and row.aligned <= 29
        )
    )
    assert 0 < count(coherent_from="50") < low
    assert count(point="", question="", format="", aligned_to="", coherent_from="", words="Model 4 says 7.") == 1
    browser.value("document.querySelector('.row').click()")
    whole = browser.value("document.getElementById('whole').innerText")
    assert "Model 4 says 7." in whole and "Model 2 says 7." in whole
    assert browser.events == []


def test_every_figure_is_drawn_from_disk(browser, shared: Path, tmp_path: Path) -> None:
    browser.events.clear()
    browser.open(write_answers_report([shared / "data" / "judged"], "gpt-4o", tmp_path, "t", "c"))
    sizes = browser.value("[...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) == len(list(tmp_path.glob("*.svg"))) == 3 and all(size > 50 for size in sizes)
    for plot in tmp_path.glob("*.svg"):
        browser.open(plot)
        assert browser.value("document.documentElement.getBBox().height") > 100
    assert browser.events == []
