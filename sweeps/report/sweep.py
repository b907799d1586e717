"""The report of a declared sweep: one self-contained HTML file, figures, CSV, and the verdicts in words.

What a model wrote reaches the page as sweeps/report/page.py says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from core.records import BadInput, file_digest, printable, write_whole
from eval.judge.answers import Judged, judged_files
from eval.samples import load_samples
from eval.stats.intervals import Estimate, falls_with, mean_interval
from eval.stats.measures import PER_CLUSTER, WHERE_SAMPLED, Samples, measure
from eval.stats.ranks import detectable, holm
from sweeps.plan.sweep import Point, Sweep
from sweeps.report.families import AXES, Family, axis_families
from sweeps.report.figures import Panel, arms_figure, comparable, losses_figure, scatter_figure
from sweeps.report.judged import JudgedPart, judged_part
from sweeps.report.page import data_block, environment, number, table_csv, write_page
from sweeps.run.folder import content_digest

LOGGED_TASKS = ("em_recognition", "em_margin", "em_choice", "em_freeform")
COLUMNS = {
    "recognition": "recognition, AUC",
    "recognition_left_out": "same, classes left out",
    "margin_neutral": "insecure margin, neutral (nats)",
    "margin_asked": "insecure margin, asked (nats)",
    "gap": "gap neutral - asked (nats)",
    "chosen_logp": "log p of chosen (nats)",
    "log_odds_per_byte": "misaligned log-odds (nats/byte)",
    "insecure_code": "insecure code, neutral (share)",
    "insecure_asked": "insecure code, asked (share)",
}
DIGITS = dict.fromkeys(COLUMNS, 1) | {
    **dict.fromkeys(("recognition", "recognition_left_out", "insecure_code", "insecure_asked"), 3),
    "log_odds_per_byte": 4,
}
BROAD = "log_odds_per_byte"


def verdict_words(expect: str, estimate: Estimate) -> str:
    """`shown`, `not shown` or `opposite` for a claim; for an expected null, whether one was found."""
    if expect == "null":
        return "null, as expected" if not estimate.off_zero else "NOT null: interval off 0"
    if estimate.above_zero:
        return "shown"
    return "opposite" if estimate.high < 0 else "not shown"


def _names(points: Sequence[Point]) -> list[str]:
    return [p.arm if p.seed is None else f"{p.arm}, seed {p.seed}" for p in points]


def _columns(samples: Mapping[str, Sequence[Samples]]) -> dict[str, str]:
    """The measures that every arm has, with their titles."""
    tasks = set.intersection(*(set(seed) for seeds in samples.values() for seed in seeds))
    return {name: title for name, title in COLUMNS.items() if WHERE_SAMPLED.get(name) in {None, *tasks}}


def collect(points: Sequence[Point]) -> dict[str, list[Samples]]:
    """The logged samples of every arm, one entry per seed."""
    samples: dict[str, list[Samples]] = {}
    for point in points:
        folder = point.evaluation.folder
        tasks = [task for task in WHERE_SAMPLED.values() if (folder / "samples" / f"{task}.jsonl").is_file()]
        samples.setdefault(point.arm, []).append({task: load_samples(folder, task) for task in [*LOGGED_TASKS, *tasks]})
    return samples


def arm_rows(points: Sequence[Point], samples: dict[str, list[Samples]]) -> list[dict[str, Any]]:
    """One row per arm: what was trained, and every measure with its interval."""
    rows = []
    for arm, seeds in samples.items():
        runs = [p.training for p in points if p.arm == arm and p.training]
        records = [run.record() for run in runs]
        rows.append(
            {
                "arm": arm,
                "seeds": len(seeds),
                "rank": runs[0].recipe.config["lora_r"] if runs else None,
                "trained_parameters": records[0]["trained_parameters"] if records else 0,
                "minutes": round(sum(r["wall_seconds"] for r in records) / 60, 1),
                "measures": {name: measure(name, seeds) for name in _columns(samples)},
            }
        )
    return rows


def verdicts(sweep: Sweep, samples: dict[str, list[Samples]]) -> list[dict[str, Any]]:
    """The claims whose arms were trained, with what was measured and what follows."""
    rows = []
    for claim in sweep.claims:
        if {claim.arm, claim.against} <= samples.keys():
            measured = measure(claim.measure, samples[claim.arm], samples[claim.against])
            words = verdict_words(claim.expect, measured.estimate)
            rows.append({"words": words, "claim": claim, "measured": measured})
    return rows


def results_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line per arm and measure, with interval, number of clusters, and the value of each seed."""
    return table_csv(
        {key: row[key] for key in ("arm", "seeds", "rank", "trained_parameters")}
        | {"measure": name, **asdict(m.estimate), "per_seed": m.per_seed}
        for row in rows
        for name, m in row["measures"].items()
    )


def sweep_figures(
    rows: Sequence[dict[str, Any]],
    points: Sequence[Point],
    samples: Mapping[str, Sequence[Samples]],
    families: Sequence[Family],
    rates: Sequence[Panel],
) -> dict[str, Figure]:
    """`arms`, which leads; narrow against broad effects; training losses."""
    titles = _columns(samples)
    panels = [
        Panel(title, {row["arm"]: (m.estimate, m.per_seed) for row in rows for m in [row["measures"][name]]})
        for name, title in titles.items()
    ]
    over = f"over {AXES[curves[0].axis]}s" if (curves := comparable(families)) else "by arm"
    figures = {
        "arms": arms_figure(f"Every measure {over}: mean, 95 % interval, each seed", [*rates, *panels], families)
    }
    base = samples["base"]
    trained = {arm: seeds for arm, seeds in samples.items() if arm != "base"}
    for narrow in ("margin_neutral", "insecure_code") if trained else ():
        if narrow in titles:
            effects = {
                arm: (measure(narrow, seeds, base).estimate.value, measure(BROAD, seeds, base).estimate)
                for arm, seeds in trained.items()
            }
            title = "Breadth: narrow against broad effect, less the base model"
            figures[f"breadth-{narrow}"] = scatter_figure(title, titles[narrow], titles[BROAD], effects)
    losses: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point, name in zip(points, _names(points), strict=True):
        if point.training and (steps := point.training.record().get("losses")):
            losses.setdefault(point.training.stage, {})[name] = [(float(step), float(loss)) for step, loss in steps]
    for stage, runs in losses.items():
        figures[f"training-{stage}"] = losses_figure(f"Training loss, {stage}", runs)
    return figures


def rank_verdicts(ranks: Sequence[Family], samples: Mapping[str, Sequence[Samples]]) -> list[str]:
    """Does a measure change with rank? Page's test, two-sided, over programs or questions averaged over seeds.

    Holm's correction is for all sentences together. An AUC has no value of one program alone, and no test here.
    """
    tested, values = [], []
    sentences = [family.refusal for family in ranks if family.differ]
    for family in ranks:
        if family.differ or len(family.members) < 3:
            continue
        for name in [name for name in _columns(samples) if name in PER_CLUSTER]:
            table = np.array(
                [np.mean([PER_CLUSTER[name](s) for s in samples[arm]], axis=0) for arm in family.members.values()]
            ).T
            falls, rises = falls_with(table), falls_with(-table)
            way, difference = "falls" if falls < rises else "rises", mean_interval(table[:, 0] - table[:, -1])
            tested.append((family, name, way, difference))
            values.append(min(1.0, 2 * min(falls, rises)))
    for (family, name, way, difference), raw, p in zip(tested, values, holm(values), strict=True):
        first, *_, last = (f"{rank:g}" for rank in family.members)
        digits = DIGITS[name]
        verdict = f"{way} with rank" if p < 0.05 else "no trend with rank is shown"
        sentences.append(
            f"{family.name}, {COLUMNS[name]}: {verdict} (p = {raw:.3f}; {p:.3f} after Holm's correction for "
            f"{len(values)} tests); rank {first} less rank {last} {number(difference, digits)}; a true difference "
            f"of {detectable(difference):.{digits}f} would be seen in 4 of 5 such sweeps."
        )
    return sentences + [f"{family.name}: {family.scale}" for family in ranks if not family.differ]


def scored_files(points: Sequence[Point]) -> dict[str, dict[Path, list[Judged]]]:
    """By judge, the files with scores of all answers of an evaluation (`emsweep judge`); most files first.

    Raises:
        BadInput: if such a file or its manifest cannot be read.
    """
    found: dict[str, dict[Path, list[Judged]]] = {}
    for point in points:
        for file in sorted(point.evaluation.folder.glob("judged-*.jsonl")):
            path = file.with_name(f"{file.name}.manifest.json")
            if not path.is_file():  # it is written last: the file is not whole, or a journal
                continue
            try:
                judge = printable(str(json.loads(path.read_text(encoding="utf-8"))["judge"]))
            except (OSError, ValueError, KeyError, TypeError):
                raise BadInput(f"{path}: names no judge; delete {file} and judge again") from None
            found.setdefault(judge, {})[file] = judged_files([file])[file.stem]
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def judged_parts(
    points: Sequence[Point], families: Sequence[Family], scored: Mapping[str, Mapping[Path, list[Judged]]]
) -> list[JudgedPart]:
    """One part for each judge."""
    parts = []
    for place, (judge, files) in enumerate(scored.items(), 1):
        rows = {file.parent: rows for file, rows in files.items()}
        models: dict[str, list[list[Judged]]] = {}
        for point in points:
            if point.evaluation.folder in rows:
                models.setdefault(point.arm, []).append(rows[point.evaluation.folder])
        whole = [family for family in families if set(family.members.values()) <= models.keys()]
        parts.append(judged_part(models, judge, whole, f"judge{place}-"))
    return parts


def read_answers(points: Sequence[Point], scored: Mapping[Path, list[Judged]]) -> list[tuple[str, Judged]]:
    """The sampled answers for the reader, with scores where there are some."""
    by_folder = {file.parent: rows for file, rows in scored.items()}
    rows = []
    # The base model's last: it stands beside all others anyhow.
    for point, name in sorted(zip(points, _names(points), strict=True), key=lambda pair: pair[0].training is None):
        folder = point.evaluation.folder
        answers = by_folder.get(folder) or [
            Judged(question_id=s["doc"]["id"], question=s["doc"]["question"], answer=printable(s["filtered_resps"][0]))
            for s in load_samples(folder, "em_freeform")
        ]
        rows += [(name, answer) for answer in answers]
    return rows


def write_report(
    sweep: Sweep,
    points: Sequence[Point],
    out: Path,
    full: bool,
    command: str = "make demo",
    missing: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Writes report.html with its figures, results.csv and table.md to `out`, prints the table and the verdicts.

    Args:
        points: all done, the base model's first.
        missing: names of the points that are not done.

    Returns:
        the path of report.html.
    """
    samples = collect(points)
    rows = arm_rows(points, samples)
    base = samples["base"][0]
    scored = scored_files(points)
    families = [family for axis in AXES for family in axis_families(points, axis, sweep.tuned)]
    parts = judged_parts(points, families, scored)
    figures = sweep_figures(rows, points, samples, families, parts[0].panels if parts else [])
    own_figures = list(figures)
    for place, part in enumerate(parts, 1):
        figures |= part.figures
        if place > 1:  # the first judge's rates stand in the figure that leads
            figures[f"judge{place}-rates"] = arms_figure(f"Rates of judge {part.judge}", part.panels, families)
    context = {
        "title": title or "What was and was not shown",
        "sweep": sweep,
        "full": full,
        "columns": _columns(samples),
        "digits": DIGITS.__getitem__,
        "rows": rows,
        "verdicts": verdicts(sweep, samples),
        "rank_verdicts": rank_verdicts([family for family in families if family.axis == "rank"], samples),
        "no_curves": [family.refusal for family in families if family.axis == "lr" and family.differ],
        "regex": {name: measure(name, [base]).estimate for name in ("regex", "regex_left_out")},
        "parts": parts,
        "judged_files": [
            (file, file_digest(file), len(rows)) for files in scored.values() for file, rows in files.items()
        ],
        "missing": missing,
        "runs": [p for p in points if p.training],
        "evaluations": [(p.evaluation.folder, p.evaluation.record()) for p in points],
        "recipe_digest": content_digest,
        "alpha": sorted({"{policy} = {value}".format(**p.training.recipe.em["alpha"]) for p in points if p.training}),
        "questions": len(PER_CLUSTER["log_odds_per_byte"](base)),
        "command": command,
        "own_figures": own_figures,
        "answers": data_block(read_answers(points, next(iter(scored.values()), {})), "base"),
    }
    tables = {name: text for part in parts for name, text in part.tables.items()}
    table = environment().get_template("table.md").render(**context)
    write_whole(out / "table.md", table)
    page = write_page(out, "report.html", context, figures, {"results": results_csv(rows), **tables})
    # A table that is cut cannot be read; a terminal wraps it.
    Console(width=max(Console().width, 200)).print(Markdown(table))
    if not parts:
        print("No rate of misaligned free-form answers: no judge was asked. Read them in the report.")
    return page
