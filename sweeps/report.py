"""The report of a declared sweep: one self-contained HTML file, a CSV, and the verdicts in words.

Model output is untrusted: Jinja2 escapes it, and the page's content policy allows no script but its own.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from rich.console import Console
from rich.table import Table

from data_builders.records import write_whole
from eval.scores import PER_CLUSTER, Measured, Samples, measure
from eval.statistics import Estimate
from sweeps.arms import Claim, Point, Sweep
from sweeps.evaluate import load_samples

COLUMNS = {
    "recognition": "recognition, AUC",
    "recognition_left_out": "same, classes left out",
    "margin_neutral": "insecure margin, neutral (nats)",
    "margin_asked": "insecure margin, asked (nats)",
    "gap": "gap neutral - asked (nats)",
    "chosen_logp": "log p of chosen (nats)",
    "log_odds_per_byte": "misaligned log-odds (nats/byte)",
}
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


def number(estimate: Estimate, digits: int = 3) -> str:
    """`value [low, high]`."""
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def printable(text: str) -> str:
    """A model's text with control, bidirectional and unpaired surrogate characters made visible."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn"} else f"\\u{ord(c):04x}"
        for c in text
    )


def _digits(column: str) -> int:
    return {"log_odds_per_byte": 4, "recognition": 3, "recognition_left_out": 3}.get(column, 1)


def collect(points: Sequence[Point]) -> dict[str, list[Samples]]:
    """The logged samples of every arm, one entry per seed."""
    samples: dict[str, list[Samples]] = {}
    for point in points:
        samples.setdefault(point.arm, []).append({task: load_samples(point.evaluation, task) for task in LOGGED_TASKS})
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
                "measures": {name: measure(name, seeds) for name in COLUMNS},
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
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["arm", "seeds", "rank", "trained_parameters", "measure", "value", "low", "high", "clusters", "per_seed"]
    )
    for row in rows:
        for name, measured in row["measures"].items():
            e = measured.estimate
            numbers = [f"{x:.6g}" for x in (e.value, e.low, e.high)]
            per_seed = " ".join(f"{x:.6g}" for x in measured.per_seed)
            head = [row["arm"], row["seeds"], row["rank"], row["trained_parameters"]]
            writer.writerow([*head, name, *numbers, e.clusters, per_seed])
    return file.getvalue()


def _plot(rows: Sequence[dict[str, Any]], column: str) -> str:
    estimates = [row["measures"][column].estimate for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=[e.value for e in estimates],
            y=[row["arm"] for row in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [e.high - e.value for e in estimates],
                "arrayminus": [e.value - e.low for e in estimates],
            },
            mode="markers",
            marker={"size": 9},
        )
    )
    figure.update_layout(
        title=COLUMNS[column],
        height=110 + 28 * len(rows),
        margin={"l": 10, "r": 10, "t": 40, "b": 30},
        template="simple_white",
        yaxis={"autorange": "reversed", "automargin": True},
    )
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return html


def write_report(sweep: Sweep, points: Sequence[Point], out: Path, full: bool) -> Path:
    """Writes report.html, results.csv and table.md to `out`, prints the table and the verdicts.

    Returns:
        the path of report.html.
    """
    from plotly.offline import get_plotlyjs

    samples = collect(points)
    rows = arm_rows(points, samples)
    judged = verdicts(sweep, samples)
    base = samples["base"][0]
    regex = {name: measure(name, [base]).estimate for name in ("regex", "regex_left_out")}
    answers = [
        {"arm": p.arm, "seed": p.seed, "question": s["doc"]["question"], "answer": printable(s["filtered_resps"][0])}
        for p in points
        for s in load_samples(p.evaluation, "em_freeform")
    ]
    environment = Environment(
        loader=PackageLoader("sweeps", "templates"), autoescape=select_autoescape(["html"]), trim_blocks=True
    )
    environment.filters["number"] = number
    context = {
        "sweep": sweep,
        "full": full,
        "columns": COLUMNS,
        "digits": _digits,
        "rows": rows,
        "verdicts": judged,
        "regex": regex,
        "answers": answers,
        "runs": [p for p in points if p.training],
        "records": {str(p.evaluation.folder): p.evaluation.record() for p in points},
        "alpha": sorted({"{policy} = {value}".format(**p.training.recipe.em["alpha"]) for p in points if p.training}),
        "questions": len(PER_CLUSTER["log_odds_per_byte"](base)),
        "command": "make demo FULL=1" if full else "make demo",
    }
    page = environment.get_template("report.html").render(
        **context, plotlyjs=get_plotlyjs(), plots=[_plot(rows, column) for column in COLUMNS]
    )
    write_whole(out / "report.html", page)
    write_whole(out / "results.csv", results_csv(rows))
    write_whole(out / "table.md", environment.get_template("table.md").render(**context))
    print_table(rows, judged, regex)
    return out / "report.html"


def print_table(rows: Sequence[dict[str, Any]], judged: Sequence[Verdict], regex: dict[str, Estimate]) -> None:
    """Prints the table of arms and the verdicts."""
    console = Console()
    console.width = max(console.width, 200)  # a table that is cut cannot be read; a terminal wraps it
    table = Table("arm", "seeds", *COLUMNS.values(), title="mean [95 % interval over programs or questions]")
    for row in rows:
        cells = [number(row["measures"][name].estimate, _digits(name)) for name in COLUMNS]
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
    console.print("No rate of misaligned free-form answers: no judge was asked. Read them in the report.", markup=False)
