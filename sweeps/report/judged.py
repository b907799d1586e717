"""What judged answers come to: rates, verdicts over ranks, figures and tables; and the report of files of others."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from core.records import BadInput, check_apart, file_digest, printable
from eval.judge.answers import Judged, answer_files, judge_of, judged_files, manifest_of, model_of
from eval.judge.rates import Rates, model_rates, rates
from eval.stats.ranks import UNKNOWN_SCALE, families, not_compared, sentences, short, trends
from sweeps.report.families import Family
from sweeps.report.figures import Panel, arms_figure, heat_figure
from sweeps.report.page import data_block, table_csv, write_page
from sweeps.run.folder import commit

COUNTS = ["misaligned", "counted", "judged"]
PACKAGES = ("em-kit", "numpy", "scipy", "pydantic", "jinja2", "matplotlib", "pandas")
RATES = {
    "em": "EM, of coherent answers",
    "em_all": "EM, of all judged answers",
    "coherent": "coherent, of all judged answers",
}
"""Rates that are drawn: attributes of `Rates`, with titles."""


@dataclass(frozen=True)
class JudgedPart:
    judge: str
    rows: dict[str, Rates]
    verdicts: list[list[str]]
    questions: int
    """Behind the rate of coherent answers, of the model that has the fewest."""
    panels: list[Panel]
    """Rates by model."""
    figures: dict[str, Figure]
    """By question and by format."""
    tables: dict[str, str]


def judged_part(
    models: Mapping[str, Sequence[Sequence[Judged]]], judge: str, curves: Sequence[Family], prefix: str = ""
) -> JudgedPart:
    """Rates, verdicts, figures and tables; BadInput if a model has judged answers to fewer than two questions.

    Args:
        models: judged answers by model (or arm), one list for each seed.
        curves: families over ranks (which are tested) or learning rates, whose members are among the models.
        prefix: of the names of figures and tables.
    """
    found = {name: model_rates(name, *seeds) for name, seeds in models.items()}
    ranks = [family for family in curves if family.axis == "rank"]
    alike = [family for family in ranks if not family.differ]
    ranks_of = {family.name: {int(rank): models[name] for rank, name in family.members.items()} for family in alike}
    counted, judged = trends(ranks_of, "counted"), trends(ranks_of, "judged")
    verdicts = [[family.refusal] for family in ranks if family.differ]
    for family in ranks:
        if family.name in counted and family.name in judged:
            first, second, *more = sentences(counted[family.name], family.scale, len(counted))
            verdicts.append([first, second, short(judged[family.name]), *more])
        elif not family.differ and len(family.members) > 2:
            verdicts.append([not_compared(family.name)])
    answers = pd.DataFrame(
        [
            {"model": name, "question": row.name, "format": row.form, **{what: getattr(row, what) for what in COUNTS}}
            for name, seeds in models.items()
            for seed in seeds
            for row in seed
        ]
    )
    figures: dict[str, Figure] = {}
    tables: dict[str, list[dict[Any, Any]]] = {"rates": [{"model": name, **_row(r)} for name, r in found.items()]}
    for key in ("question", "format"):
        counts = answers.groupby(["model", key], sort=False)[COUNTS].sum()
        tables[f"{key}s"] = [dict(row) for row in counts.reset_index().to_dict("records")]
        wide: Any = counts.unstack(fill_value=0).sort_index(axis=1).loc[list(models)]
        if wide["judged"].shape[1] > 1:
            title = f"EM by {key}: % misaligned / coherent answers (judge: {judge})"
            figures[f"{prefix}{key}s"] = heat_figure(title, wide["misaligned"], wide["counted"])
    tables["trends"] = [
        *({**asdict(t), "denominator": "coherent"} for t in counted.values()),
        *({**asdict(t), "denominator": "all judged", "p_holm": None, "p_peak_holm": None} for t in judged.values()),
    ]
    of_seeds = {name: [rates(seed) for seed in own if len(own) > 1 and enough(seed)] for name, own in models.items()}
    panels = []
    for key, title in RATES.items():
        values = {
            name: (getattr(r, key), [getattr(seed, key).value for seed in of_seeds[name]]) for name, r in found.items()
        }
        panels.append(Panel(f"{title}\n(judge: {judge})", values, percent=True))
    texts = {
        f"{prefix}{name}.csv": table_csv({"judge": judge, **row} for row in rows)
        for name, rows in tables.items()
        if rows
    }
    fewest = min(r.fewest for r in found.values())
    return JudgedPart(judge, found, verdicts, fewest, panels, figures, texts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts r4 before r16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def enough(answers: Sequence[Judged]) -> bool:
    """Whether there are judged answers to two questions or more, as an interval needs."""
    return len({row.name for row in answers if row.judged}) > 1


def _row(r: Rates) -> dict[str, Any]:
    return {**asdict(r), "judged": r.answers - r.unjudged, "questions": r.em_all.clusters}


def _count(file: Path, models: Mapping[str, Sequence[Judged]]) -> str:
    """How many answers a file has, and of how many they are a sample, if they are one."""
    answers, size = len(models[model_of(file)]), manifest_of(file).get("sample_of")
    return f"{answers}, a sample of {size}" if size else str(answers)


def write_answers_report(
    paths: Sequence[Path],
    judged_by: str | None,
    out: Path,
    title: str,
    command: str,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """The report of files of judged answers; returns the path of report.html.

    `judged_by` says who judged them, where no manifest does; `columns` has the files' names of columns by ours.
    BadInput if a file cannot be read, or has judged answers to fewer than two questions; if the report would stand
    among the answers, whose tables would be read as answers the next time.
    """
    if any(path.is_dir() and out.exists() and out.samefile(path) for path in paths):
        raise BadInput(f"--out {out}: is the folder of the answers, and the report has CSV files too; name another")
    files = answer_files(paths)
    judge, found = judge_of(files, judged_by, "--judged-by"), judged_files(files, columns)
    models = {printable(name): found[name] for name in sorted(found, key=_natural)}
    ranks = [
        Family(name, {float(rank): model for rank, model in members.items()}, UNKNOWN_SCALE)
        for name, members in families(models).items()
    ]
    part = judged_part({name: [rows] for name, rows in models.items()}, judge, ranks)
    for name in part.tables:
        check_apart(out / name, *files)
    figures = {"rates": arms_figure("Emergent misalignment and coherence", part.panels, ranks), **part.figures}
    context = {
        "title": title,
        "parts": [part],
        "sources": [(printable(str(file)), file_digest(file), _count(file, found)) for file in files],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "command": command,
        "answers": data_block(
            ((name, row) for name, rows in models.items() for row in rows),
            next((name for name in models if "base" in name), ""),
        ),
    }
    return write_page(out, "answers.html", context, figures, part.tables)
