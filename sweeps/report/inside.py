"""The report's section on the inside of the model: what `emsweep inside` found, with a figure for each question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core.records import BadInput, read_json
from eval.stats.intervals import Estimate, mean_interval
from sweeps.plan.declaration import InsideClaim, Point, Sweep
from sweeps.report.families import Family
from sweeps.report.figures import Panel, arms_figure, scatter_figure, steps_figure
from sweeps.run.inputs import digest_of

OPEN = "open prompts"
"""Where breadth is looked for: before an answer to a question that has nothing to do with code."""
Row = dict[str, Any]


@dataclass(frozen=True)
class InsidePart:
    rows: list[Row]
    """Shifts at the end of training."""
    efficiency: list[Row]
    verdicts: list[dict[str, Any]]
    figures: dict[str, Figure]
    missing: list[str]
    """Runs that were trained after the last look."""


def inside_part(path: Path, sweep: Sweep, points: Sequence[Point], families: Sequence[Family]) -> InsidePart | None:
    """What a file of `emsweep inside` says of the runs in the report; None without a file, BadInput for another's."""
    if not path.is_file():
        return None
    trained = [(p.arm, p.seed, p.training.adapter / "adapter_model.safetensors") for p in points if p.training]
    names = {digest_of(weights): (arm, seed) for arm, seed, weights in trained if weights.is_file()}
    try:
        content = read_json(path)
        learnt = [row for row in content["efficiency"] if row["adapter"] in names]
        ends = {(row["arm"], row["seed"]) for row in content["shifts"] if row["adapter"] in names}
        shifts = [row for row in content["shifts"] if (row["arm"], row["seed"]) in ends]
        rows = [row for row in shifts if row["last"]]
        figures = _figures(rows, shifts, learnt, families)
        verdicts = [_verdict(claim, rows) for claim in sweep.inside]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise BadInput(f"{path}: not what `emsweep inside` writes; delete it and look again") from None
    missing = [f"{arm}, seed {seed}" for arm, seed in names.values() if (arm, seed) not in ends]
    return InsidePart(rows, learnt, verdicts, figures, missing)


def _by_arm(rows: Sequence[Row], value: Any) -> dict[str, tuple[Estimate, list[float]]]:
    """By arm the mean over seeds, with its interval where there are two or more, and each seed's value.

    An adapter that stands at several seeds counts once.
    """
    arms: dict[str, dict[str, float]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["adapter"]] = float(value(row))
    return {
        arm: (mean_interval(own) if len(own) > 1 else Estimate(own[0], own[0], own[0], 1), own)
        for arm, own in ((arm, list(found.values())) for arm, found in arms.items())
    }


def _figures(
    rows: Sequence[Row], shifts: Sequence[Row], learnt: Sequence[Row], families: Sequence[Family]
) -> dict[str, Figure]:
    concepts, places = (list(dict.fromkeys(row[key] for row in rows)) for key in ("concept", "place"))

    def at(place: str, concept: str) -> dict[str, tuple[Estimate, list[float]]]:
        own = [row for row in rows if (row["place"], row["concept"]) == (place, concept)]
        return _by_arm(own, lambda row: row["mean"])

    panels = [Panel(f"{concept}, {place}", at(place, concept)) for concept in concepts for place in places]
    title = "Inside: shift along each direction, mean over layers (class distances)"
    figures = {"inside-shift": arms_figure(title, panels, families)} if panels else {}
    if len(concepts) > 1 and OPEN in places:
        broad, narrow = at(OPEN, concepts[0]), at(OPEN, concepts[1])
        both = {arm: (narrow[arm][0].value, broad[arm][0]) for arm in broad if arm in narrow}
        axes = f"shift along {concepts[1]}", f"shift along {concepts[0]}"
        figures["inside-breadth"] = scatter_figure(f"Inside: breadth against narrowness, {OPEN}", *axes, both)
    steps: dict[str, list[tuple[float, float]]] = {}
    for row in shifts:
        if concepts and (row["place"], row["concept"]) == (OPEN, concepts[0]) and row["step"] is not None:
            place = float(row["step"]), float(row["mean"])
            steps.setdefault(f"{row['arm']}, seed {row['seed']}", []).append(place)
    if steps := {name: points for name, points in steps.items() if len(points) > 1}:
        title = f"Inside: shift along {concepts[0]} while training, {OPEN}"
        figures["inside-steps"] = steps_figure(title, "class distances", steps)
    if learnt:
        panels = [
            Panel("loss taken away per squared norm", _by_arm(learnt, lambda row: row["efficiency"])),
            Panel("loss that noise of the change's norm adds", _by_arm(learnt, _noise)),
        ]
        figures["inside-efficiency"] = arms_figure("Inside: is the solution easy? At one norm", panels, families)
    return figures


def _noise(row: Row) -> float:
    """What the largest noise adds to the loss."""
    return float(row["noise"][max(row["noise"], key=float)] - row["loss"])


def _verdict(claim: InsideClaim, rows: Sequence[Row]) -> dict[str, Any]:
    """Of a claim each seed's shifts, in root mean squares of flipped labels; does it hold?"""
    found: dict[str, dict[int, Row]] = {claim.arm: {}, claim.against: {}}
    for row in rows:
        if row["arm"] in found and (row["place"], row["concept"]) == (claim.place, claim.concept) and row["p"]:
            found[row["arm"]][row["seed"]] = row
    seeds = []
    for seed in sorted(found[claim.arm].keys() & found[claim.against].keys()):
        sides = [found[arm][seed] for arm in (claim.arm, claim.against)]
        sizes = [row["deviation"] for row in sides]
        holds = sizes[0] > 0 > sizes[1] and max(row["p"] for row in sides) <= claim.p
        seeds.append({"seed": seed, "sizes": sizes, "p": [row["p"] for row in sides], "holds": holds})
    held = sum(one["holds"] for one in seeds)
    words = "shown" if seeds and held == len(seeds) else "not shown" if seeds else "not measured"
    return {"claim": claim, "seeds": seeds, "words": f"{words}: {held} of {len(seeds)} seeds" if seeds else words}


def inside_rows(part: InsidePart) -> list[Mapping[str, Any]]:
    keys = ("arm", "seed", "rank", "place", "concept", "mean", "deviation", "p", "p_holm", "layer", "weights")
    return [{key: row.get(key) for key in keys} for row in part.rows]
