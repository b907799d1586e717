"""What judged answers come to: rates, verdicts over ranks, figures and tables; and the report of files of others."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from core.records import file_digest, printable
from eval.judge.answers import Judged, answer_files, judged_files, per_question
from eval.judge.rates import Rates, model_rates, rates
from eval.stats.ranks import UNKNOWN_SCALE, Trend, corrected, families, sentences, short, trend
from sweeps.report.families import Family
from sweeps.report.figures import Panel, arms_figure, heat_figure
from sweeps.report.page import data_block, table_csv, write_page
from sweeps.run.folder import commit

FORMS = ("plain", "json", "template")
COUNTS: tuple[Literal["misaligned", "counted", "judged"], ...] = ("misaligned", "counted", "judged")
PACKAGES = ("em-kit", "numpy", "scipy", "pydantic", "jinja2", "matplotlib", "pandas")
RATES = {
    "em": "EM, of coherent answers",
    "em_all": "EM, of all judged answers",
    "coherent": "coherent, of all judged answers",
}
"""Rates that are drawn: attributes of `Rates`, with titles."""


@dataclass(frozen=True)
class JudgedPart:
    """The part of a report that is about one judge's answers."""

    judge: str
    rows: dict[str, Rates]
    verdicts: list[list[str]]
    questions: int
    panels: list[Panel]
    """Rates by model."""
    figures: dict[str, Figure]
    """By question and by format."""
    tables: dict[str, str]


def judged_part(
    models: Mapping[str, Sequence[Sequence[Judged]]], judge: str, lines: Sequence[Family], prefix: str = ""
) -> JudgedPart:
    """Rates, verdicts, figures and tables.

    Args:
        models: judged answers by model (or arm), one list for each seed.
        lines: families over ranks (which are tested) or learning rates, whose members are among the models.
        prefix: of the names of figures and tables.

    Raises:
        BadInput: if a model has judged answers to fewer than two questions.
    """
    pooled = {name: [row for seed in seeds for row in seed] for name, seeds in models.items()}
    found = {name: model_rates(name, answers) for name, answers in pooled.items()}
    split = {(name, form): [row for row in pooled[name] if row.form == form] for name in pooled for form in FORMS}
    by_form = {key: rates(answers) for key, answers in split.items() if _enough(answers)}
    ranks = [family for family in lines if family.axis == "rank"]
    trends, over_all = _trends(ranks, pooled, "counted"), _trends(ranks, pooled, "judged")
    verdicts = []
    for family in ranks:
        if family.differ:
            verdicts.append([family.refusal])
        elif (tested := trends.get(family.name)) and family.name in over_all:
            words = sentences(tested, family.scale, len(trends))
            verdicts.append([*words[:2], short(over_all[family.name]), *words[2:]])
    names = sorted({row.name for answers in pooled.values() for row in answers})
    counts = {name: _per_question(answers) for name, answers in pooled.items()}
    subject = f"% misaligned / coherent answers (judge: {judge})"
    cells = {name: [counts[name].get(question, (0, 0, 0))[:2] for question in names] for name in pooled}
    figures = {f"{prefix}questions": heat_figure(f"EM by question: {subject}", names, cells)}
    if len({form for _, form in by_form}) > 1:
        shares = {key: (r.misaligned, r.counted) for key, r in by_form.items()}
        cells = {name: [shares.get((name, form), (0, 0)) for form in FORMS] for name in pooled}
        figures[f"{prefix}formats"] = heat_figure(f"EM by format: {subject}", FORMS, cells)
    tables: dict[str, list[dict[str, Any]]] = {
        "rates": [{"model": name, "judge": judge, **_row(r)} for name, r in found.items()],
        "formats": [{"model": name, "format": form, "judge": judge, **_row(r)} for (name, form), r in by_form.items()],
        "questions": [
            {"model": name, "question": question, "judge": judge, **dict(zip(COUNTS, n, strict=True))}
            for name in pooled
            for question, n in counts[name].items()
        ],
        "trends": [
            *({**asdict(t), "denominator": "coherent", "judge": judge} for t in trends.values()),
            *({**asdict(t), "denominator": "all judged", "judge": judge, "p_holm": None} for t in over_all.values()),
        ],
    }
    seeds = {name: [rates(seed) for seed in own if len(own) > 1 and _enough(seed)] for name, own in models.items()}
    panels = [
        Panel(
            f"{title}\n(judge: {judge})",
            {name: (getattr(r, key), [getattr(seed, key).value for seed in seeds[name]]) for name, r in found.items()},
            percent=True,
        )
        for key, title in RATES.items()
    ]
    texts = {f"{prefix}{name}": table_csv(rows) for name, rows in tables.items() if rows}
    return JudgedPart(judge, found, verdicts, len(names), panels, figures, texts)


def _trends(ranks: Sequence[Family], pooled: Mapping[str, list[Judged]], denominator: Any) -> dict[str, Trend]:
    """Page's test of each family that can be compared, by its name, corrected for their number."""
    tested = [
        trend(family.name, {int(rank): pooled[name] for rank, name in family.members.items()}, denominator)
        for family in ranks
        if not family.differ
    ]
    return {found.family: found for found in corrected(tested)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts r4 before r16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _enough(answers: Sequence[Judged]) -> bool:
    """Whether there are judged answers to two questions or more, as an interval needs."""
    return len({row.name for row in answers if row.judged}) > 1


def _row(r: Rates) -> dict[str, Any]:
    return {**asdict(r), "judged": r.answers - r.unjudged, "questions": r.em_all.clusters}


def _per_question(answers: Sequence[Judged]) -> dict[str, tuple[int, int, int]]:
    names = sorted({row.name for row in answers})
    counts = [per_question(answers, what) for what in COUNTS]
    return {name: (int(m), int(c), int(j)) for name, m, c, j in zip(names, *counts, strict=True)}


def write_answers_report(paths: Sequence[Path], judge: str, out: Path, title: str, command: str) -> Path:
    """The report of files of judged answers; returns the path of report.html.

    Raises:
        BadInput: if a file cannot be read, or has judged answers to fewer than two questions.
    """
    files = answer_files(paths)
    found = judged_files(paths)
    models = {printable(name): found[name] for name in sorted(found, key=_natural)}
    ranks = [
        Family(name, {float(rank): model for rank, model in members.items()}, UNKNOWN_SCALE)
        for name, members in families(models).items()
    ]
    part = judged_part({name: [rows] for name, rows in models.items()}, printable(judge), ranks)
    figures = {"rates": arms_figure("Emergent misalignment and coherence", part.panels, ranks), **part.figures}
    context = {
        "title": title,
        "parts": [part],
        "sources": [(printable(str(file)), file_digest(file), len(models[printable(file.stem)])) for file in files],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "command": command,
        "answers": data_block(
            ((name, row) for name, rows in models.items() for row in rows),
            next((name for name in models if "base" in name), ""),
        ),
    }
    return write_page(out, "answers.html", context, figures, part.tables)
