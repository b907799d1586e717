"""A report's page: one file that loads nothing, runs its own script alone, and shows a model's words as text.

Model output is untrusted. Jinja2 escapes what stands in the page; the answers travel as JSON in a data block, and the
script puts them into the page as text. The content policy names style and script by their SHA-256, and allows images
that the page itself holds (`data:`): a browser runs nothing in an SVG that is shown as an image.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from core.records import BadInput, bad_input, printable, read_text, write_whole
from eval.judge.answers import Judged
from eval.judge.rates import filter_caution, said
from eval.stats.intervals import caution
from sweeps.report.figures import drawn

OWN = re.compile(r"[\w-]+\.(csv|svg|pdf)|table\.md")
"""Names of a page's files: what else a list says, which others may have handed over, was written by no page."""
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet computes."""


@dataclass(frozen=True)
class Section:
    """A part of the page: its figures by name, and what it says."""

    figures: dict[str, Figure]
    sentences: list[str]


def data_block(answers: Iterable[tuple[str, Judged]], beside: str) -> Markup:
    """The answers, each with what gave it, as JSON for a data block of the page; no `<` is left that could end it.

    `beside`: whose answers stand beside the others at first, such as the base model's.
    """
    points: dict[str, int] = {}
    questions: dict[tuple[str, str, str, str], int] = {}
    rows = []
    for name, row in answers:
        point = points.setdefault(printable(name), len(points))
        key = (printable(row.question_id), row.form, printable(row.name), printable(row.question))
        question = questions.setdefault(key, len(questions))
        rows.append([point, question, row.aligned, row.coherent, printable(row.answer)])
    data = {"points": list(points), "beside": points.get(printable(beside), 0), "questions": list(questions)}
    packed = json.dumps({**data, "rows": rows}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(packed.replace("<", "\\u003c"))


def table_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table as CSV text; an estimate (a mapping) is NAME, NAME_low, NAME_high, NAME_clusters; spaces part lists.

    A text that a spreadsheet would compute, such as the id of a question in another's file, stands after a `'`; a
    character that a terminal would obey is written out.
    """
    table = pd.json_normalize([dict(row) for row in rows], sep="_")
    table.columns = [name.removesuffix("_value") for name in table.columns]
    return table.map(_cell).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join(f"{x:.6g}" for x in value)
    if isinstance(value, str):
        return f"'{printable(value)}" if value.startswith(FORMULAS) else printable(value)
    return value


def environment() -> Environment:
    made = Environment(loader=PackageLoader("sweeps.report"), autoescape=select_autoescape(["html"]), trim_blocks=True)
    made.filters.update(number=lambda estimate, digits: estimate.words(f".{digits}f"), said=said, caution=caution)
    made.filters["scale"] = lambda scale: "" if scale is None else f"{scale:.3g}"
    made.filters["cell"] = lambda text: printable(" ".join(text.split())).replace("|", r"\|")  # of a table in Markdown
    made.globals["filter_caution"] = filter_caution
    return made


def write_page(
    out: Path, template: str, context: Mapping[str, Any], figures: Mapping[str, Figure], tables: Mapping[str, str]
) -> Path:
    """Writes figures (NAME.svg, NAME.pdf) and tables (by their names) to `out`, then report.html, which holds them.

    Those of an earlier page that this one has not go at the end; report.files.txt lists a page's files for that.
    BadInput if a file cannot be written; if one of such a name is in a folder without a report.
    """
    folder = resources.files("sweeps.report") / "templates"
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.css", "reader.js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in sources.items()}
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['reader.js']}'; style-src 'sha256-{hashes['page.css']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    files = [*tables, *(f"{name}.{end}" for name in figures for end in ("svg", "pdf"))]
    listed = out / "report.files.txt"
    with bad_input(listed, "delete it", OSError, ValueError):
        before = list(filter(OWN.fullmatch, read_text(listed).splitlines())) if listed.exists() else []
    if not (out / "report.html").exists():
        for name in files:
            if name not in before and (out / name).exists():
                raise BadInput(f"{out / name}: is no report's, and would be replaced; move it away")
    write_whole(listed, "\n".join(dict.fromkeys([*before, *files])) + "\n")
    images = {}
    for name, figure in figures.items():
        svg = drawn(figure, "svg")
        write_whole(out / f"{name}.svg", svg)
        write_whole(out / f"{name}.pdf", drawn(figure, "pdf"))
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        images[name] = Markup('<img src="{}" alt="{}">').format(source, name)
    for name, text in tables.items():
        write_whole(out / name, text)
    own = {"images": images, "files": files, "policy": policy}
    css, script = map(Markup, sources.values())
    page = environment().get_template(template).render(**context, **own, css=css, script=script)
    write_whole(out / "report.html", page)
    for name in {*before} - {*files}:  # of an earlier page: they would be taken for this one's
        if (out / name).is_file():
            (out / name).unlink()
    write_whole(listed, "\n".join(files) + "\n")
    return out / "report.html"
