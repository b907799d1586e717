"""The report of a declared sweep: one self-contained HTML file, a CSV, and the verdicts in words.

What a model wrote reaches the page as sweeps/page.py says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from core.records import BadInput, file_digest, write_whole
from eval.judge.rates import Judged
from eval.stats.measures import PER_CLUSTER, WHERE_SAMPLED, Measured, Samples, measure
from eval.stats.intervals import Estimate, falls_with, mean_interval
from eval.stats.ranks import detectable, holm
from eval.judge.answers import judged_files
from sweeps.plan.sweep import Claim, Point, Sweep
from sweeps.run.evaluate import load_samples
from sweeps.report.judged import JudgedPart, judged_part
from sweeps.report.families import AXES, Family, axis_families
from sweeps.report.page import data_block, environment, number, printable, table_csv, write_page
from sweeps.run.folder import content_digest
from sweeps.report.figures import COLUMNS, columns, names, sweep_plots

LOGGED_TASKS = ("em_recognition", "em_margin", "em_choice", "em_freeform")


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
    return {
        "log_odds_per_byte": 4,
        "recognition": 3,
        "recognition_left_out": 3,
        "insecure_code": 3,
        "insecure_asked": 3,
    }.get(column, 1)


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
                "measures": {name: measure(name, seeds) for name in columns(samples)},
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
        ["arm", "seeds", "rank", "trained_parameters", "measure", "value", "low", "high", "clusters", "per_seed"],
        [
            [
                *(row["arm"], row["seeds"], row["rank"], row["trained_parameters"], name),
                *(f"{x:.6g}" for x in (e.value, e.low, e.high)),
                *(e.clusters, " ".join(f"{x:.6g}" for x in measured.per_seed)),
            ]
            for row in rows
            for name, measured in row["measures"].items()
            for e in [measured.estimate]
        ],
    )


def rank_verdicts(ranks: Sequence[Family], samples: Mapping[str, Sequence[Samples]]) -> list[str]:
    """Does a measure change with rank? Page's test, two-sided, over programs or questions averaged over seeds.

    Holm's correction is for all sentences together. An AUC has no value of one program alone, and no test here.
    """
    tested, values = [], []
    said = [
        f"{f.name}: no comparison of ranks, for the runs differ in {', '.join(f.differ)} too."
        for f in ranks
        if f.differ
    ]
    for family in ranks:
        if family.differ or len(family.members) < 3:
            continue
        for name in [name for name in columns(samples) if name in PER_CLUSTER]:
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
        said.append(
            f"{family.name}, {COLUMNS[name]}: {verdict} (p = {raw:.3f}; {p:.3f} after Holm's correction for "
            f"{len(values)} tests); rank {first} less rank {last} {number(difference, digits)}; a true difference "
            f"of {detectable(difference, bootstrap=True):.{digits}f} would be seen in 4 of 5 such sweeps."
        )
    return said + [f"{family.name}: {family.scale}" for family in ranks if not family.differ]


@dataclass(frozen=True)
class Scored:
    """A file of one judge's scores of all answers of an evaluation (`emsweep judge`)."""

    judge: str
    path: Path
    arm: str
    rows: list[Judged]


def scored_files(points: Sequence[Point]) -> list[Scored]:
    """Those that stand in the evaluations' folders, the judge with the most files first.

    Not those of a sample, whose rates need the combined judge.

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


def judged_parts(lines: Sequence[Family], files: Sequence[Scored]) -> list[JudgedPart]:
    """One part for each judge."""
    parts = []
    for place, judge in enumerate(dict.fromkeys(file.judge for file in files), 1):
        models: dict[str, list[list[Judged]]] = {}
        for file in files:
            if file.judge == judge:
                models.setdefault(file.arm, []).append(file.rows)
        whole = [family for family in lines if set(family.members.values()) <= models.keys()]
        parts.append(judged_part(models, judge, whole, f"judge{place}-"))
    return parts


def sampled(points: Sequence[Point], files: Sequence[Scored]) -> list[tuple[str, Judged]]:
    """The sampled answers for the reader, with the scores of the first judge where there is one."""
    rows = []
    scores = {file.path.parent: file.rows for file in files if file.judge == files[0].judge}
    # The base model's last: it stands beside all others anyhow.
    for point, name in sorted(zip(points, names(points), strict=True), key=lambda one: one[0].training is None):
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
    """Writes report.html with its plots, results.csv and table.md to `out`, prints the table and the verdicts.

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
    lines = [family for axis in AXES for family in axis_families(points, axis, sweep.tuned)]
    parts = judged_parts(lines, files)
    plots = sweep_plots(rows, points, samples, lines)
    context = {
        "title": title or "What was and was not shown",
        "sweep": sweep,
        "full": full,
        "columns": columns(samples),
        "digits": _digits,
        "rows": rows,
        "verdicts": judged,
        "rank_verdicts": rank_verdicts([line for line in lines if line.axis == "rank"], samples),
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
        "own_plots": plots,
        "answers": data_block(sampled(points, files), "base"),
    }
    for part in parts:
        plots = plots | part.plots
    tables = {name: text for part in parts for name, text in part.tables.items()}
    write_whole(out / "table.md", environment().get_template("table.md").render(**context))
    page = write_page(out, "report.html", context, plots, {"results": results_csv(rows), **tables})
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
        cells = [number(its.estimate, _digits(name)) for name, its in row["measures"].items()]
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
