"""Plots as SVG: they need no script, so a page that holds a model's words can forbid all but its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from eval.stats.intervals import Estimate

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 70, 20, 40, 50
ROW = 24


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, Estimate | float]]
    """x, and y with or without an interval; NaN is left out."""
    dots: Sequence[tuple[float, float]] = field(default=())
    """Single values beside, such as one per seed."""


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" role="img" font-family="sans-serif" '
        'font-size="12"><title>{}</title><rect width="100%" height="100%" fill="#fff"/>'
    ).format(WIDTH, round(height), WIDTH, title)
    return head + text(LEFT, 22, title, "start", 15) + Markup("\n").join(parts) + Markup("</svg>")


def text(x: float, y: float, words: object, anchor: str = "middle", size: int = 12, fill: str = "#1a1a1a") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="{}" fill="{}">{}</text>').format(
        x, y, anchor, size, fill, words
    )


def line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>').format(
        x1, y1, x2, y2, stroke, width
    )


def dot(x: float, y: float, radius: float, fill: str, says: str, opacity: float = 1) -> Markup:
    return Markup(
        '<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}" fill-opacity="{}"><title>{}</title></circle>'
    ).format(x, y, radius, fill, opacity, says)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers (1, 2 or 5 times a power of ten apart) between low and high, low < high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Callable[[float], float]:
    """Maps numbers to pixels, with room at both ends."""
    at = math.log10 if log else float
    low, high = at(min(values)), at(max(values))
    room = 0.05 * (high - low) or 0.5
    return lambda x: start + (at(x) - low + room) / (high - low + 2 * room) * (end - start)


def _ends(y: Estimate | float) -> tuple[float, float, float]:
    return (y.value, y.low, y.high) if isinstance(y, Estimate) else (y, y, y)


def curves(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[Series],
    log_x: bool = False,
    percent: bool = False,
    joined: bool = True,
) -> Markup:
    """Lines with intervals over a common axis; the numbers stand in the titles of the points.

    A logarithmic axis is marked at the values that are there. Numbers that are not finite are left out.
    """
    shown = {s.name: [(x, *_ends(y)) for x, y in s.points if all(map(math.isfinite, (x, *_ends(y))))] for s in series}
    xs = sorted({p[0] for points in shown.values() for p in points})
    if not xs:
        return _svg(title, TOP + ROW, [text(WIDTH / 2, TOP + 10, "nothing to draw")])
    ys = [y for points in shown.values() for p in points for y in p[1:]] + [y for s in series for _, y in s.dots]
    ys += [0.0] if percent else []
    legend = ROW * len(series)
    bottom = TOP + 300.0
    at_x, at_y = _scale(xs, LEFT, WIDTH - RIGHT, log_x), _scale(ys, bottom, TOP, False)
    say: Callable[[float], str] = (lambda v: f"{100 * v:.3g} %") if percent else (lambda v: f"{v:.3g}")
    parts = []
    spread = max(ys) - min(ys) or 1.0
    for y in ticks(min(ys), min(ys) + spread):
        parts += [line(LEFT, at_y(y), WIDTH - RIGHT, at_y(y), "#ddd"), text(LEFT - 6, at_y(y) + 4, say(y), "end")]
    for x in xs if log_x or len(xs) < 3 else ticks(xs[0], xs[-1]):
        parts.append(text(at_x(x), bottom + 18, f"{x:g}"))
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "#666"))
    parts.append(text(WIDTH / 2, bottom + 38, f"{x_title}{' (log)' if log_x else ''}; up: {y_title}"))
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        # Side by side, so that the intervals of several lines at one x can be told apart.
        shift = 5.0 * (number - (len(series) - 1) / 2) if any(isinstance(y, Estimate) for _, y in one.points) else 0.0
        spots = [(at_x(x) + shift, at_y(y), x, y, low, high) for x, y, low, high in shown[one.name]]
        if joined and len(spots) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in spots)
            parts.append(
                Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="1.5"/>').format(path, colour)
            )
        for px, py, x, y, low, high in spots:
            if low < high:
                parts.append(line(px, at_y(low), px, at_y(high), colour, 1.5))
            if len(spots) <= 20:
                interval = f" [{say(low)}, {say(high)}]" if low < high else ""
                parts.append(dot(px, py, 4, colour, f"{one.name}, {x:g}: {say(y)}{interval}"))
        parts += [dot(at_x(x) + shift, at_y(y), 2.5, colour, f"{one.name}, {x:g}: {say(y)}", 0.5) for x, y in one.dots]
        y = bottom + BOTTOM + ROW * number + 8
        parts += [dot(LEFT + 6, y, 5, colour, one.name), text(LEFT + 18, y + 4, one.name, "start")]
    return _svg(title, bottom + BOTTOM + legend, parts)


def dots(title: str, rows: Sequence[tuple[str, Estimate, Sequence[float]]], percent: bool = False) -> Markup:
    """One row for each name: a value with its interval, and single values (such as one per seed) smaller."""
    kept = [(name, e, each) for name, e, each in rows if all(map(math.isfinite, (e.value, e.low, e.high)))]
    if not kept:
        return _svg(title, TOP + ROW, [text(WIDTH / 2, TOP + 10, "nothing to draw")])
    xs = [x for _, e, each in kept for x in (e.value, e.low, e.high, *each)] + ([0.0] if percent else [])
    left = 280
    at = _scale(xs, left, WIDTH - RIGHT, False)
    bottom = TOP + ROW * len(kept)
    say: Callable[[float], str] = (lambda v: f"{100 * v:.3g} %") if percent else (lambda v: f"{v:.4g}")
    parts = []
    for x in ticks(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1):
        parts += [line(at(x), TOP, at(x), bottom, "#ddd"), text(at(x), bottom + 16, say(x))]
    for number, (name, e, each) in enumerate(kept):
        y = TOP + ROW * (number + 0.5)
        parts += [text(left - 8, y + 4, name, "end"), line(at(e.low), y, at(e.high), y, COLOURS[0], 1.5)]
        parts += [dot(at(x), y, 2.5, COLOURS[1], f"{name}: {say(x)}", 0.7) for x in each]
        parts.append(dot(at(e.value), y, 4, COLOURS[0], f"{name}: {say(e.value)} [{say(e.low)}, {say(e.high)}]"))
    return _svg(title, bottom + 28, parts)


def heat(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup:
    """Rates (hits, total) as colours, white at 0 % and darkest at 100 %, with the percentage and total in each cell.

    A cell without a total is grey: no rate, and not 0 %.
    """
    left = 230
    wide = (WIDTH - 4 * RIGHT - left) / max(len(columns), 1)  # the last column's slanted name leans over the edge
    few = wide >= 40
    parts = []
    for number, name in enumerate(columns):
        x = left + wide * (number + 0.5)
        label = Markup('<text transform="translate({:.1f},{}) rotate(-40)" font-size="{:.0f}">{}</text>')
        parts.append(label.format(x, TOP + 86, min(11, wide + 2), name))
    top = TOP + 92
    for at, (name, cells) in enumerate(rows):
        y = top + ROW * at
        parts.append(text(left - 8, y + 16, name, "end", 11))
        for number, (hits, total) in enumerate(cells):
            share = hits / total if total else math.nan
            fill = f"hsl(8,75%,{100 - 62 * share**0.6:.0f}%)" if total else "#bbb"
            words = f"{100 * share:.0f} / {total:g}" if total else "-"
            box = Markup(
                '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}" stroke="#fff"><title>{}</title></rect>'
            )
            says = f"{name}, {columns[number]}: {hits:g} of {total:g}"
            parts.append(box.format(left + wide * number, y, wide, ROW, fill, says))
            if few:
                ink = "#fff" if total and share > 0.45 else "#1a1a1a"
                parts.append(text(left + wide * (number + 0.5), y + 16, words, size=10, fill=ink))
    return _svg(title, top + ROW * len(rows) + 10, parts)
