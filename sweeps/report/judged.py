"""What judged answers come to: rates, verdicts over ranks, plots and tables; and the report of files of others."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from core.records import file_digest
from eval.judge.rates import Judged, Rates, per_question, rates
from eval.stats.intervals import Estimate
from eval.stats.ranks import UNKNOWN_SCALE, Trend, corrected, families, sentences, short, trend
from eval.judge.answers import answer_files, judged_files, model_rates
from sweeps.report.draw import Series, curves, heat
from sweeps.report.families import AXES, Family
from sweeps.report.page import data_block, printable, table_csv, write_page
from sweeps.run.folder import commit

FORMS = ("plain", "json", "template")
PACKAGES = ("em-kit", "numpy", "scipy", "pydantic", "jinja2")


@dataclass(frozen=True)
class JudgedPart:
    """The part of a report that is about judged answers."""

    judge: str
    rows: list[tuple[str, Rates]]
    forms: list[tuple[str, str, Rates]]
    verdicts: list[list[str]]
    questions: int
    plots: dict[str, Markup]
    tables: dict[str, str]


def judged_part(
    models: Mapping[str, Sequence[Sequence[Judged]]], judge: str, lines: Sequence[Family], prefix: str = ""
) -> JudgedPart:
    """Rates, verdicts, plots and tables.

    Args:
        models: judged answers by model (or arm), one list for each seed.
        lines: families over ranks (which are tested) or learning rates, whose members are among the models.
        prefix: of the names of plots and tables.

    Raises:
        BadInput: if a model has judged answers to fewer than two questions.
    """
    pooled = {name: [row for seed in seeds for row in seed] for name, seeds in models.items()}
    rows = [(name, model_rates(name, answers)) for name, answers in pooled.items()]
    split = {(name, form): [row for row in pooled[name] if row.form == form] for name in pooled for form in FORMS}
    forms = [(name, form, rates(own)) for (name, form), own in split.items() if _enough(own)]
    ranks = [family for family in lines if family.axis == "rank"]
    clean = [family for family in ranks if not family.differ]
    found = {
        of: [trend(f.name, {int(rank): pooled[name] for rank, name in f.members.items()}, of) for f in clean]
        for of in ("counted", "judged")
    }
    trends = {its.family: its for its in corrected(found["counted"])}
    over_all = {its.family: its for its in found["judged"] if its}
    verdicts = []
    for family in ranks:
        if family.differ:
            verdicts.append(
                [f"{family.name}: no comparison of ranks: the runs differ in {', '.join(family.differ)} too."]
            )
        elif its := trends.get(family.name):
            said = sentences(its, family.scale, len(trends))
            verdicts.append([*said[:2], short(over_all[family.name]), *said[2:]])
    plots: dict[str, Markup] = {}
    for number, family in enumerate(lines, 1):
        plots |= _line_plots(f"{prefix}{{}}-by-{family.axis}-{number}", family, dict(rows), models, judge)
    names = sorted({row.name for answers in pooled.values() for row in answers})
    cells = {name: _per_question(answers) for name, answers in pooled.items()}
    plots[f"{prefix}questions"] = heat(
        f"EM by question: % / coherent answers (judge: {judge})",
        names,
        [(name, [cells[name].get(q, (0, 0, 0))[:2] for q in names]) for name in pooled],
    )
    if len({form for _, form, _ in forms}) > 1:
        by_form = {(name, form): (its.misaligned, its.counted) for name, form, its in forms}
        plots[f"{prefix}formats"] = heat(
            f"EM by format: % / coherent answers (judge: {judge})",
            FORMS,
            [(name, [by_form.get((name, form), (0, 0)) for form in FORMS]) for name in pooled],
        )
    tables = {
        f"{prefix}rates": table_csv(["model", "judge", *HEAD], [[name, judge, *_numbers(its)] for name, its in rows]),
        f"{prefix}formats": table_csv(
            ["model", "format", "judge", *HEAD], [[name, form, judge, *_numbers(its)] for name, form, its in forms]
        ),
        f"{prefix}questions": table_csv(
            ["model", "question", "judge", "misaligned", "counted", "judged"],
            [[name, q, judge, *cells[name][q]] for name in pooled for q in names if q in cells[name]],
        ),
        f"{prefix}trends": table_csv(
            [
                *("family", "denominator", "judge", "ranks", "questions", "p", "p_holm"),
                *("difference", "low", "high", "detectable_difference", "detectable_fall"),
            ],
            [
                *([name, "coherent", judge, *_trend(its, its.p_holm)] for name, its in trends.items()),
                *([name, "all judged", judge, *_trend(its, None)] for name, its in over_all.items()),
            ],
        ),
    }
    return JudgedPart(judge, rows, forms, verdicts, len(names), plots, tables)


HEAD = [
    *("em", "em_low", "em_high", "misaligned", "counted", "em_all", "em_all_low", "em_all_high", "judged"),
    *("coherent", "coherent_low", "coherent_high", "excluded", "unjudged", "answers", "questions"),
]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts r4 before r16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _enough(answers: Sequence[Judged]) -> bool:
    """Whether there are judged answers to two questions or more, as an interval needs."""
    return len({row.name for row in answers if row.judged}) > 1


def _three(e: Estimate) -> list[str]:
    return [f"{x:.6g}" for x in (e.value, e.low, e.high)]


def _numbers(its: Rates) -> list[Any]:
    return [
        *(*_three(its.em), its.misaligned, its.counted, *_three(its.em_all), its.answers - its.unjudged),
        *(*_three(its.coherent), its.excluded, its.unjudged, its.answers, its.em_all.clusters),
    ]


def _trend(its: Trend, corrected_p: float | None) -> list[Any]:
    fall = "" if its.fall is None else its.fall
    p_holm = "" if corrected_p is None else f"{corrected_p:.6g}"
    ranks = " ".join(map(str, its.ranks))
    return [ranks, its.questions, f"{its.p:.6g}", p_holm, *_three(its.difference), f"{its.detectable:.6g}", fall]


def _per_question(answers: Sequence[Judged]) -> dict[str, tuple[int, int, int]]:
    names = sorted({row.name for row in answers})
    counts = [per_question(answers, what) for what in ("misaligned", "counted", "judged")]
    return {name: (int(m), int(c), int(j)) for name, m, c, j in zip(names, *counts, strict=True)}


def _line_plots(
    named: str,
    family: Family,
    its: Mapping[str, Rates],
    models: Mapping[str, Sequence[Sequence[Judged]]],
    judge: str,
) -> dict[str, Markup]:
    """EM over both denominators, and coherence, along a family; each seed as a point where there are several."""

    def series(title: str, what: str) -> Series:
        points = [(rank, getattr(its[name], what)) for rank, name in family.members.items()]
        seeds = {rank: models[name] for rank, name in family.members.items()}
        each = [
            (rank, getattr(rates(seed), what).value)
            for rank, lists in seeds.items()
            for seed in (lists if len(lists) > 1 else [])
            if _enough(seed)
        ]
        return Series(title, points, each)

    both = [series("of coherent answers", "em"), series("of all judged answers", "em_all")]
    said, axis, alone = f"{family.label}, judge: {judge}", AXES[family.axis], [series("coherent", "coherent")]
    return {
        named.format("em"): curves(f"EM: {said}", axis, "misaligned", both, log_x=True, percent=True),
        named.format("coherent"): curves(
            f"Coherent: {said}", axis, "share of judged answers", alone, log_x=True, percent=True
        ),
    }


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
    part = judged_part({name: [rows] for name, rows in models.items()}, judge, ranks)
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
    return write_page(out, "answers.html", context, part.plots, part.tables)
