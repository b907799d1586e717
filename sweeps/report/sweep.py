"""The report of a declared sweep: one self-contained HTML file, figures, CSV, and the verdicts in words.

What a model wrote reaches the page as sweeps/report/page.py says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from core.records import BadInput, file_digest, write_whole
from eval.judge.answers import judged_files
from eval.judge.rates import Judged
from eval.samples import load_samples
from eval.stats.intervals import Estimate, falls_with, mean_interval
from eval.stats.measures import PER_CLUSTER, WHERE_SAMPLED, Measured, Samples, measure
from eval.stats.ranks import detectable, holm
from sweeps.plan.sweep import Claim, Point, Sweep
from sweeps.report.families import AXES, Family, axis_families
from sweeps.report.figures import Panel, arms_figure, comparable, losses_figure, scatter_figure
from sweeps.report.judged import JudgedPart, judged_part
from sweeps.report.page import data_block, environment, interval_cells, number, printable, table_csv, write_page
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
_DIGITS = {"recognition": 3, "recognition_left_out": 3, "log_odds_per_byte": 4, "insecure_code": 3, "insecure_asked": 3}
BROAD = "log_odds_per_byte"


@dataclass(frozen=True)
class Verdict:
    """A claim with what was measured and what follows."""

    claim: Claim
    measured: Measured

    @property
    def words(self) -> str:
        return verdict_words(self.claim.expect, self.measured.estimate)


def verdict_words(expect: str, estimate: Estimate) -> str:
    """`shown`, `not shown` or `opposite` for a claim; for an expected null, whether one was found."""
    if expect == "null":
        return "null, as expected" if not estimate.off_zero else "NOT null: interval off 0"
    if estimate.above_zero:
        return "shown"
    return "opposite" if estimate.high < 0 else "not shown"


def _digits(column: str) -> int:
    return _DIGITS.get(column, 1)


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


def verdicts(sweep: Sweep, samples: dict[str, list[Samples]]) -> list[Verdict]:
    """The claims whose arms were trained, judged."""
    return [
        Verdict(claim, measure(claim.measure, samples[claim.arm], samples[claim.against]))
        for claim in sweep.claims
        if claim.arm in samples and claim.against in samples
    ]


def results_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line per arm and measure, with interval, number of clusters, and the value of each seed."""
    return table_csv(
        "arm seeds rank trained_parameters measure value low high clusters per_seed",
        [
            [
                *(row["arm"], row["seeds"], row["rank"], row["trained_parameters"], name),
                *(*interval_cells(m.estimate), m.estimate.clusters, " ".join(f"{x:.6g}" for x in m.per_seed)),
            ]
            for row in rows
            for name, m in row["measures"].items()
        ],
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
            tested.append(
                (family, name, "falls" if falls < rises else "rises", mean_interval(table[:, 0] - table[:, -1]))
            )
            values.append(min(1.0, 2 * min(falls, rises)))
    for (family, name, way, difference), raw, p in zip(tested, values, holm(values), strict=True):
        first, *_, last = (f"{rank:g}" for rank in family.members)
        digits = _digits(name)
        verdict = f"{way} with rank" if p < 0.05 else "no trend with rank is shown"
        sentences.append(
            f"{family.name}, {COLUMNS[name]}: {verdict} (p = {raw:.3f}; {p:.3f} after Holm's correction for "
            f"{len(values)} tests); rank {first} less rank {last} {number(difference, digits)}; a true difference "
            f"of {detectable(difference):.{digits}f} would be seen in 4 of 5 such sweeps."
        )
    return sentences + [f"{family.name}: {family.scale}" for family in ranks if not family.differ]


@dataclass(frozen=True)
class Scored:
    """A file of one judge's scores of all answers of an evaluation (`emsweep judge`)."""

    judge: str
    path: Path
    arm: str
    rows: list[Judged]


def scored_files(points: Sequence[Point]) -> list[Scored]:
    """Those that stand in the evaluations' folders, the judge with the most files first; those of a sample are not.

    Raises:
        BadInput: if such a file or its manifest cannot be read.
    """
    files = []
    for point in points:
        for file in sorted(point.evaluation.folder.glob("judged-*.jsonl")):
            path = file.with_name(f"{file.name}.manifest.json")
            if not path.is_file():  # it is written last: the file is not whole, or a journal
                continue
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                judge = printable(str(manifest["judge"]))
            except (OSError, ValueError, KeyError, TypeError):
                raise BadInput(f"{path}: names no judge; delete {file} and judge again") from None
            if "sample" not in manifest:
                [rows] = judged_files([file]).values()
                files.append(Scored(judge, file, point.arm, rows))
    count = Counter(file.judge for file in files)
    return sorted(files, key=lambda file: -count[file.judge])


def judged_parts(families: Sequence[Family], files: Sequence[Scored]) -> list[JudgedPart]:
    """One part for each judge."""
    parts = []
    for place, judge in enumerate(dict.fromkeys(file.judge for file in files), 1):
        models: dict[str, list[list[Judged]]] = {}
        for file in files:
            if file.judge == judge:
                models.setdefault(file.arm, []).append(file.rows)
        whole = [family for family in families if set(family.members.values()) <= models.keys()]
        parts.append(judged_part(models, judge, whole, f"judge{place}-"))
    return parts


def sampled(points: Sequence[Point], files: Sequence[Scored]) -> list[tuple[str, Judged]]:
    """The sampled answers for the reader, with the scores of the first judge where there is one."""
    rows = []
    scores = {file.path.parent: file.rows for file in files if file.judge == files[0].judge}
    # The base model's last: it stands beside all others anyhow.
    for point, name in sorted(zip(points, _names(points), strict=True), key=lambda one: one[0].training is None):
        rows += [
            (name, row)
            for row in scores.get(point.evaluation.folder)
            or [
                Judged(
                    question_id=s["doc"]["id"], question=s["doc"]["question"], answer=printable(s["filtered_resps"][0])
                )
                for s in load_samples(point.evaluation.folder, "em_freeform")
            ]
        ]
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
    judged = verdicts(sweep, samples)
    base = samples["base"][0]
    regex = {name: measure(name, [base]).estimate for name in ("regex", "regex_left_out")}
    files = scored_files(points)
    families = [family for axis in AXES for family in axis_families(points, axis, sweep.tuned)]
    parts = judged_parts(families, files)
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
        "digits": _digits,
        "rows": rows,
        "verdicts": judged,
        "rank_verdicts": rank_verdicts([family for family in families if family.axis == "rank"], samples),
        "no_curves": [family.refusal for family in families if family.axis == "lr" and family.differ],
        "regex": regex,
        "parts": parts,
        "judged_files": [(str(file.path), file_digest(file.path), len(file.rows)) for file in files],
        "missing": missing,
        "runs": [p for p in points if p.training],
        "evaluations": [(p.evaluation.folder, p.evaluation.record()) for p in points],
        "recipe_digest": content_digest,
        "alpha": sorted({"{policy} = {value}".format(**p.training.recipe.em["alpha"]) for p in points if p.training}),
        "questions": len(PER_CLUSTER["log_odds_per_byte"](base)),
        "command": command,
        "own_figures": own_figures,
        "answers": data_block(sampled(points, files), "base"),
    }
    tables = {name: text for part in parts for name, text in part.tables.items()}
    write_whole(out / "table.md", environment().get_template("table.md").render(**context))
    page = write_page(out, "report.html", context, figures, {"results": results_csv(rows), **tables})
    print_table(rows, judged, regex, bool(parts))
    return page


def print_table(
    rows: Sequence[dict[str, Any]], judged: Sequence[Verdict], regex: dict[str, Estimate], rated: bool
) -> None:
    """Prints the table of arms and the verdicts."""
    console = Console()
    console.width = max(console.width, 200)  # a table that is cut cannot be read; a terminal wraps it
    table = Table(
        "arm",
        "seeds",
        *(COLUMNS[name] for name in rows[0]["measures"]),
        title="mean [95 % interval over programs or questions]",
    )
    for row in rows:
        cells = [number(m.estimate, _digits(name)) for name, m in row["measures"].items()]
        table.add_row(row["arm"], str(row["seeds"]), *cells)
    console.print(table)
    console.print(
        f"regex baseline: AUC {number(regex['regex'])}, classes left out {number(regex['regex_left_out'])}",
        markup=False,
    )
    for verdict in judged:
        console.print(
            f"{verdict.words:>16}: {verdict.claim.says}: {verdict.claim.arm} - {verdict.claim.against} "
            f"{number(verdict.measured.estimate, _digits(verdict.claim.measure))}",
            markup=False,
            highlight=False,
        )
    if not rated:
        console.print(
            "No rate of misaligned free-form answers: no judge was asked. Read them in the report.", markup=False
        )
