"""Figures of reports, drawn by matplotlib without a display: the same numbers give the same file, byte for byte.

Names of models and arms come from files of others: they are drawn as they stand, and never read as mathematics.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter

from core.records import printable
from eval.stats.intervals import Estimate
from eval.stats.size import Fit
from sweeps.report.families import AXES, Family

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS, LINES = "osD^vP*X", ("-", "--", ":", "-.")
LEVELS = 3
"""Arms beside the curves that are drawn as levels across them; more would hide the curves."""
WIDTH, PANELS_A_ROW = 11.0, 3
Model = tuple[float, float, float]
"""Parameters, training tokens, and an outcome's value."""
STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "em-kit",
    "svg.fonttype": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#ddd",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Panel:
    """One measure, by arm: its mean with an interval, and the value of each seed."""

    title: str
    values: Mapping[str, tuple[Estimate, Sequence[float]]]
    percent: bool = False


def comparable(families: Sequence[Family]) -> list[Family]:
    """The families that make curves: over ranks if there are any, else over learning rates; never over both."""
    for axis in AXES:
        if found := [family for family in families if family.axis == axis and not family.differ]:
            return found
    return []


@rc_context(STYLE)
def arms_figure(title: str, panels: Sequence[Panel], families: Sequence[Family]) -> Figure:
    """Every measure of every arm, once: curves where arms differ in a rank or learning rate alone, else dots in rows.

    Arms beside the curves are dashed levels where they are few, else rows of dots below.
    """
    every = dict.fromkeys(arm for panel in panels for arm in panel.values)
    curves = [family for family in comparable(families) if every.keys() & set(family.members.values())]
    on_curves = {arm for family in curves for arm in family.members.values()}
    others = [arm for arm in every if arm not in on_curves]
    levels = others if curves and len(others) <= LEVELS else []
    dots = [] if levels else others
    rows = math.ceil(len(panels) / PANELS_A_ROW)
    heights = [rows * 2.5 + 0.5] * bool(curves) + [rows * (0.8 + 0.2 * len(dots))] * bool(dots)
    figure = Figure(figsize=(WIDTH, 0.4 + sum(heights)))
    figure.suptitle(title)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]) if heights else []
    if curves:
        _curves(parts[0], panels, curves, levels)
    if dots:
        for axes, panel in zip(_grid(parts[-1], len(panels), sharey=True), panels, strict=True):
            _dots(axes, panel, dots)
    return figure


@rc_context(STYLE)
def scatter_figure(title: str, x_title: str, y_title: str, points: Mapping[str, tuple[float, Estimate]]) -> Figure:
    """One point for each name, with the interval of y."""
    figure = Figure(figsize=(WIDTH, max(4.0, 1 + 0.18 * len(points))))
    axes = figure.subplots()
    marks = [_errorbar(axes, [x], [y], number, "") for number, (x, y) in enumerate(points.values())]
    axes.set(title=title, xlabel=x_title, ylabel=y_title)
    figure.legend(marks, [_label(name) for name in points], loc="outside right upper")
    return figure


@rc_context(STYLE)
def shares_figure(
    title: str, panels: Mapping[str, tuple[Mapping[str, Sequence[tuple[float, Estimate]]], bool]]
) -> Figure:
    """Curves over the share of training, by measure and arm; the measure is drawn in per cent where it is marked."""
    figure = Figure(figsize=(WIDTH, 0.8 + 2.7 * math.ceil(len(panels) / PANELS_A_ROW)))
    figure.suptitle(title)
    marks: dict[str, Any] = {}
    for axes, (name, (arms, percent)) in zip(_grid(figure, len(panels), sharey=False), panels.items(), strict=True):
        for number, (arm, points) in enumerate(arms.items()):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            marks[arm] = _errorbar(axes, xs, ys, number, LINES[number // 8 % 4])
        axes.set(title=name, xlabel="share of training")
        axes.xaxis.set_major_formatter(_percent)
        if percent:
            axes.yaxis.set_major_formatter(_percent)
    figure.legend(list(marks.values()), [_label(arm) for arm in marks], loc="outside lower center", ncols=3)
    return figure


@rc_context(STYLE)
def slopes_figure(
    title: str, fit: Fit | None, lines: Mapping[str, tuple[float, float]], families: Mapping[str, Sequence[Model]]
) -> Figure:
    """The joint region of two slopes over the hypotheses' lines; beside it the outcome against parameters per token.

    `fit` is None where the slopes cannot be told; `lines` has c of each line c . b = 0.
    """
    figure = Figure(figsize=(WIDTH, 4.4))
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    if fit is None:
        left.text(0.5, 0.5, "these models cannot tell the slopes", ha="center", va="center", transform=left.transAxes)
        reach = 1.0
    else:
        ellipse = fit.ellipse()
        reach = 1.1 * max(float(np.abs(ellipse).max()), 1e-9)
        left.fill(*ellipse, color=COLOURS[0], alpha=0.2, linewidth=0)
        left.plot(*ellipse, color=COLOURS[0], linewidth=1)
        left.plot(*fit.slopes, "o", color=COLOURS[0], markersize=4)
    for number, (name, (c_p, c_t)) in enumerate(lines.items(), 1):
        end = 2 * reach * np.array([-c_t, c_p])
        left.plot(*np.transpose([-end, end]), color=COLOURS[number], linestyle="--", label=_label(name))
    left.set(xlabel="b_P, per decade of parameters", ylabel="b_T, per decade of tokens")
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), title="both slopes, 95 % region")
    left.legend(loc="best")
    per_token = {family: [(p / t, y) for p, t, y in models] for family, models in families.items()}
    _series(right, per_token, "parameters per token", title)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@rc_context(STYLE)
def sizes_figure(title: str, outcomes: Mapping[str, Mapping[str, Sequence[Model]]]) -> Figure:
    """A row for each outcome: against parameters, tokens, and parameters per token, families told apart."""
    figure = Figure(figsize=(WIDTH, 0.8 + 2.6 * len(outcomes)))
    figure.suptitle(title)
    grid = figure.subplots(len(outcomes), 3, squeeze=False, sharey="row")
    views: dict[str, Callable[[float, float], float]] = {
        "parameters": lambda p, t: p,
        "training tokens": lambda p, t: t,
        "parameters per token": lambda p, t: p / t,
    }
    every = dict.fromkeys(family for families in outcomes.values() for family in families)  # one colour in all rows
    for row, (name, families) in zip(grid, outcomes.items(), strict=True):
        for axes, (x_title, view) in zip(row, views.items(), strict=True):
            seen = {family: [(view(p, t), y) for p, t, y in families.get(family, ())] for family in every}
            _series(axes, seen, x_title, name if axes is row[0] else "")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _series(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> None:
    for number, (name, points) in enumerate(series.items()):
        style: Any = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "linestyle": LINES[number // 8 % 4]}
        axes.plot(*np.array(sorted(points)).reshape(-1, 2).T, markersize=4, linewidth=1, label=_label(name), **style)
    axes.set(xscale="log", xlabel=x_title, ylabel=y_title)


@rc_context(STYLE)
def steps_figure(title: str, y_title: str, values: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """What changes over steps of training, such as a loss: one line for each run."""
    figure = Figure(figsize=(WIDTH, max(4.0, 1 + 0.18 * len(values))))
    axes = figure.subplots()
    lines = []
    for n, steps in enumerate(values.values()):
        lines += axes.plot(*np.array(steps).T, color=COLOURS[n % 8], linestyle=LINES[n // 8 % 4], linewidth=1)
    axes.set(title=title, xlabel="step", ylabel=y_title)
    figure.legend(lines, [_label(name) for name in values], loc="outside right upper")
    return figure


@rc_context(STYLE)
def heat_figure(title: str, hits: pd.DataFrame, totals: pd.DataFrame) -> Figure:
    """Rates (hits of totals) as colours, white at 0 % and darkest at 100 %, with percentage and total in each cell.

    A cell without a total is grey: no rate, and not 0 %.
    """
    rows, columns = map(list, totals.axes)
    of = totals.where(totals > 0).to_numpy(float)
    shares = hits.to_numpy(float) / of
    figure = Figure(figsize=(WIDTH, 1.9 + 0.24 * len(rows)))
    axes = figure.subplots()
    axes.pcolormesh(shares, cmap="Reds", vmin=0, vmax=1, edgecolors="white", linewidth=1)
    axes.set_ylim(len(rows), 0)
    axes.set_facecolor("#bbb")
    axes.grid(False)
    axes.set_title(title, pad=12)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_label(name) for name in columns], rotation=30, ha="right")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_label(name) for name in rows])
    for (y, x), share in np.ndenumerate(shares if len(columns) <= 30 else shares[:0]):
        total = f" / {of[y, x]:g}" if len(columns) <= 12 else ""
        words = "-" if np.isnan(share) else f"{100 * share:.0f}{total}"
        ink = "white" if share > 0.5 else "black"
        axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", color=ink, fontsize=7)
    return figure


def drawn(figure: Figure, kind: Literal["svg", "pdf"]) -> bytes:
    """The bytes of a figure's file, without a date."""
    file = io.BytesIO()
    no_date = {"Date" if kind == "svg" else "CreationDate": None}
    with rc_context(STYLE), warnings.catch_warnings():
        # Characters that DejaVu lacks: the reader's own fonts show them in an SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format=kind, metadata=no_date)
    figure.set_layout_engine("none")  # found once, the layout holds for the other formats too
    return file.getvalue()


def _label(name: str) -> str:
    """A name that a figure takes: no control characters; a legend leaves out what begins with an underscore."""
    name = printable(name)
    short = name if len(name) <= 60 else name[:59] + "…"
    return f" {short}" if short.startswith("_") else short


def _grid(part: Figure | SubFigure, panels: int, sharey: bool) -> list[Axes]:
    columns = min(panels, PANELS_A_ROW)
    grid = part.subplots(math.ceil(panels / columns), columns, sharey=sharey, squeeze=False)
    for spare in grid.flat[panels:]:
        spare.remove()
    return list(grid.flat[:panels])


def _finite(estimate: Estimate) -> bool:
    return all(map(math.isfinite, (estimate.value, estimate.low, estimate.high)))


def _errorbar(axes: Axes, xs: Sequence[float], ys: Sequence[Estimate], number: int, line: str) -> Any:
    shown = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and _finite(y)]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
    style: Any = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.2}
    means = [y for _, y in shown]
    return axes.errorbar([x for x, _ in shown], [e.value for e in means], yerr=_reach(means), **style)


def _reach(estimates: Sequence[Estimate]) -> Any:
    """(2, n) lengths of the intervals below and above; a bootstrap's may leave its value out."""
    return np.array([[max(0.0, e.value - e.low), max(0.0, e.high - e.value)] for e in estimates]).reshape(-1, 2).T


def _percent(value: float, _: float) -> str:
    return f"{100 * value:g} %"


def _curves(part: SubFigure, panels: Sequence[Panel], families: Sequence[Family], levels: Sequence[str]) -> None:
    xs = sorted({x for family in families for x in family.members})
    marks: dict[str, Any] = {}
    for axes, panel in zip(_grid(part, len(panels), sharey=False), panels, strict=True):
        for number, family in enumerate(families):
            members = {x: panel.values[arm] for x, arm in family.members.items() if arm in panel.values}
            # Side by side, so that the intervals of several curves at one x can be told apart.
            places = [x * 1.04 ** (number - (len(families) - 1) / 2) for x in members]
            marks[family.name] = _errorbar(axes, places, [e for e, _ in members.values()], number, "-")
            seeds = [(x, y) for x, (_, each) in zip(places, members.values(), strict=True) for y in each]
            axes.plot([x for x, _ in seeds], [y for _, y in seeds], ".", color=COLOURS[number % 8], alpha=0.5, ms=4)
        for number, arm in enumerate(levels):
            if arm in panel.values and _finite(level := panel.values[arm][0]):
                marks[arm] = axes.axhline(level.value, color="#555", linewidth=1, linestyle=LINES[number + 1])
                axes.axhspan(level.low, level.high, color="#555", alpha=0.08, linewidth=0)
        axes.set(title=panel.title, xlabel=AXES[families[0].axis], xscale="log", xlim=(xs[0] / 1.4, xs[-1] * 1.4))
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", bottom=False)
        if panel.percent:
            axes.yaxis.set_major_formatter(_percent)
    part.legend(list(marks.values()), [_label(name) for name in marks], loc="outside lower center", ncols=3)


def _dots(axes: Axes, panel: Panel, arms: Sequence[str]) -> None:
    shown = [(y, *panel.values[a]) for y, a in enumerate(arms) if a in panel.values and _finite(panel.values[a][0])]
    places, means = [y for y, *_ in shown], [e for _, e, _ in shown]
    style: Any = {"fmt": "o", "color": COLOURS[0], "markersize": 4, "linewidth": 1.2}
    axes.errorbar([e.value for e in means], places, xerr=_reach(means), **style)
    seeds = [(x, y) for y, _, each in shown if len(each) > 1 for x in each]
    axes.plot([x for x, _ in seeds], [y for _, y in seeds], "|", color=COLOURS[1], ms=6)
    axes.set(title=panel.title, ylim=(len(arms) - 0.5, -0.5))
    axes.set_yticks(range(len(arms)), [_label(arm) for arm in arms])
    if panel.percent:
        axes.xaxis.set_major_formatter(_percent)
