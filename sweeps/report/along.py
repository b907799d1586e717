"""The report's section on measures along training: curves, and at which point an effect is first there."""

import math
from collections.abc import Mapping, Sequence

from eval.stats.intervals import Estimate
from eval.stats.measure_names import JUDGED, TITLES
from eval.stats.measures import RATES, Seeds, measure
from sweeps.plan.declaration import Sweep, starts_from
from sweeps.report.figures import shares_figure
from sweeps.report.page import Section
from sweeps.run.folder import save_step

Along = Mapping[tuple[int, int], Mapping[str, Seeds]]
"""By point before the end of training (1 of 4, ...) what each arm logged there."""
Curve = list[tuple[float, Seeds]]
"""An arm's samples by share of its training, from the model that it starts from (0) to its end (1)."""


def curves(sweep: Sweep, samples: Mapping[str, Seeds], along: Along, steps: Mapping[str, int]) -> dict[str, Curve]:
    """The curve of each arm that was evaluated along its training, where the model that it starts from was too.

    `samples` are those of each arm at its end, as sweeps/report/sweep.py collects them; `steps` are of each arm's
    training, by which a point's place is rounded.
    """
    found: dict[str, Curve] = {}
    for arm in dict.fromkeys(arm for arms in along.values() for arm in arms):
        if (start := starts_from(sweep, arm)) not in samples:  # another model is no start to be off
            continue
        curve = [(0.0, samples[start])]
        for (place, count), arms in sorted(along.items()):
            if arm in arms:
                curve.append((place * save_step(steps[arm], count) / steps[arm], arms[arm]))
        found[arm] = [*curve, (1.0, samples[arm])] if arm in samples else curve
    return found


def first_effect(curve: Curve, name: str) -> float | None:
    """The first share of training from which on the measure's difference from the start keeps off 0; None if none."""
    start = curve[0][1]
    first: float | None = None
    for share, seeds in curve[1:]:
        shown = measure(name, seeds, start).estimate.off_zero
        first = (share if first is None else first) if shown else None
    return first


def along_part(
    sweep: Sweep, samples: Mapping[str, Seeds], along: Along, measures: Sequence[str], steps: Mapping[str, int]
) -> Section | None:
    """The section on what was measured before the end of training; None if nothing was."""
    if not (of_arms := curves(sweep, samples, along, steps)):
        return None
    judged = all(JUDGED in own for curve in of_arms.values() for _, seeds in curve for own in seeds.values())
    measures = [*(["em_rate"] if judged else []), *measures]
    if not measures:  # answers alone, and no judge of all of them
        return None
    panels: dict[str, tuple[Mapping[str, list[tuple[float, Estimate]]], bool]] = {}
    for name in measures:
        points = {
            arm: [(share, measure(name, seeds).estimate) for share, seeds in curve] for arm, curve in of_arms.items()
        }
        panels[TITLES[name]] = points, name in RATES
    figure = shares_figure("Along training: mean and 95 % interval", panels)
    sentences = []
    for arm, curve in of_arms.items():
        ends = {name: measure(name, curve[-1][1], curve[0][1]).estimate.value for name in measures}
        unknown = [name for name, end in ends.items() if math.isnan(end)]  # as of no coherent answer: that is no null
        firsts = {name: first_effect(curve, name) for name in measures if name not in unknown}
        shown = [f"{TITLES[name]} from {share:.0%}" for name, share in firsts.items() if share is not None]
        rest = [TITLES[name] for name, share in firsts.items() if share is None]
        said = f"off its start, and staying so: {', '.join(shown)}" if shown else "nothing keeps off its start"
        never = f"; not: {', '.join(rest)}" if shown and rest else ""
        blind = f"; not measured at the last: {', '.join(TITLES[name] for name in unknown)}" if unknown else ""
        sentences.append(f"{arm}, measured at {len(curve) - 1} points: {said}{never}{blind}.")
    left = dict.fromkeys(arm for arms in along.values() for arm in arms if arm not in of_arms)
    sentences += [
        f"{arm}: no curve, for {starts_from(sweep, arm)}, from which it starts, was not measured." for arm in left
    ]
    return Section({"along": figure}, sentences)
