"""A report's page: one file that loads nothing, runs its own script alone, and shows a model's words as text.

Model output is untrusted. Jinja2 escapes what stands in the page; the answers travel as JSON in a data block, and the
script puts them into the page as text. The content policy names style and script by their SHA-256.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from core.records import write_whole
from eval.judge.rates import Judged
from eval.stats.intervals import Estimate, caution
from eval.judge.answers import said

_RARE = re.compile(r"[^\n\t -~]")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """A model's text with control, bidirectional and unpaired surrogate characters made visible."""
    return _RARE.sub(lambda c: f"\\u{ord(c[0]):04x}" if unicodedata.category(c[0]) in _UNSEEN else c[0], text)


def number(estimate: Estimate, digits: int = 3) -> str:
    """`value [low, high]`."""
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def data_block(answers: Iterable[tuple[str, Judged]], beside: str) -> Markup:
    """The answers, each with what gave it, as JSON for a data block of the page; no `<` is left that could end it.

    Args:
        beside: whose answers stand beside the others at first, such as the base model's.
    """
    points: dict[str, int] = {}
    questions: dict[tuple[str, str, str, str], int] = {}
    rows = []
    for name, row in answers:
        point = points.setdefault(printable(name), len(points))
        asked = (printable(row.question_id), row.form, printable(row.name), printable(row.question))
        question = questions.setdefault(asked, len(questions))
        rows.append([point, question, row.aligned, row.coherent, printable(row.answer)])
    data = {"points": list(points), "beside": points.get(printable(beside), 0), "questions": list(questions)}
    packed = json.dumps({**data, "rows": rows}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(packed.replace("<", "\\u003c"))


def table_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()


def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("sweeps", "templates"), autoescape=select_autoescape(["html"]), trim_blocks=True
    )
    made.filters.update(number=number, said=said, caution=caution)
    return made


def write_page(
    out: Path, template: str, context: Mapping[str, Any], plots: Mapping[str, Markup], tables: Mapping[str, str]
) -> Path:
    """Writes the plots (NAME.svg) and tables (NAME.csv) to `out`, and report.html, which holds the plots, last.

    Raises:
        BadInput: if a file cannot be written.
    """
    folder = resources.files("sweeps") / "templates"
    own = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.css", "reader.js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in own.items()}
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['reader.js']}'; style-src 'sha256-{hashes['page.css']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = (
        environment()
        .get_template(template)
        .render(
            **context,
            plots=plots,
            files=[*(f"{name}.csv" for name in tables), *(f"{name}.svg" for name in plots)],
            policy=policy,
            css=Markup(own["page.css"]),
            script=Markup(own["reader.js"]),
        )
    )
    for name, plot in plots.items():
        write_whole(out / f"{name}.svg", plot + "\n")
    for name, text in tables.items():
        write_whole(out / f"{name}.csv", text)
    write_whole(out / "report.html", page)
    return out / "report.html"
