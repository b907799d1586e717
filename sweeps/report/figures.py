"""The plots of a sweep's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.stats.measures import WHERE_SAMPLED, Samples, measure
from sweeps.plan.sweep import Point
from sweeps.report.draw import Series, curves, dots
from sweeps.report.families import AXES, Family

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


def names(points: Sequence[Point]) -> list[str]:
    return [p.arm if p.seed is None else f"{p.arm}, seed {p.seed}" for p in points]


def columns(samples: Mapping[str, Sequence[Samples]]) -> dict[str, str]:
    """The measures that every arm has, with their titles."""
    tasks = set.intersection(*(set(its) for seeds in samples.values() for its in seeds))
    return {name: title for name, title in COLUMNS.items() if WHERE_SAMPLED.get(name) in {None, *tasks}}


def sweep_plots(
    rows: Sequence[dict[str, Any]],
    points: Sequence[Point],
    samples: Mapping[str, Sequence[Samples]],
    lines: Sequence[Family],
) -> dict[str, Markup]:
    """Every measure by arm, over ranks and over learning rates; losses; narrow against broad effects."""
    titles = columns(samples)
    measures = {row["arm"]: row["measures"] for row in rows}
    plots = {}
    for axis, says in AXES.items():
        found = [line for line in lines if line.axis == axis]
        for name, title in titles.items() if found else ():
            series = [
                Series(
                    family.label,
                    [(x, measures[arm][name].estimate) for x, arm in family.members.items()],
                    [(x, y) for x, arm in family.members.items() for y in measures[arm][name].per_seed],
                )
                for family in found
            ]
            plots[f"{name}-by-{axis}"] = curves(title, says, title, series, log_x=True)
    for name, title in titles.items():
        plots[f"{name}-by-arm"] = dots(
            title, [(arm, its[name].estimate, its[name].per_seed) for arm, its in measures.items()]
        )
    base, broad = samples["base"], "log_odds_per_byte"
    trained = {arm: seeds for arm, seeds in samples.items() if arm != "base"}
    for narrow in ("margin_neutral", "insecure_code") if trained else ():
        if narrow in titles:
            effects = [
                Series(arm, [(measure(narrow, seeds, base).estimate.value, measure(broad, seeds, base).estimate)])
                for arm, seeds in trained.items()
            ]
            title = "Breadth: narrow against broad effect, less the base model"
            plots[f"breadth-{narrow}"] = curves(title, titles[narrow], titles[broad], effects)
    losses: dict[str, list[Series]] = {}
    for point, name in zip(points, names(points), strict=True):
        if point.training and (steps := point.training.record().get("losses")):
            line = Series(name, [(float(step), float(loss)) for step, loss in steps])
            losses.setdefault(point.training.stage, []).append(line)
    for stage, its in losses.items():
        plots[f"training-{stage}"] = curves(f"Training loss, {stage}", "step", "loss", its)
    return plots
