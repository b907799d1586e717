"""What follows from a sweep's numbers, in words: whether its claims are shown, how its measures change with rank."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from eval.stats.intervals import Estimate, Floats
from eval.stats.measure_names import DIGITS, JUDGED, TASKS, TITLES
from eval.stats.measures import Seeds, below_noise, measure, per_cluster
from eval.stats.ranks import holm
from eval.stats.trend import highest_shares, shape, slope, smallest_shift, trend_p, turn_p
from sweeps.plan.declaration import Sweep
from sweeps.report.families import Family


def verdict_words(expect: str, estimate: Estimate, digits: int) -> str:
    """`shown`, `not shown` or `opposite` for a claim; for an expected null, whether one was found, and the largest
    effect that is not excluded: of a wide interval "null" alone would say too much."""
    if math.isnan(estimate.value):
        return "not measured"
    if math.isclose(estimate.low, estimate.high, abs_tol=1e-12):  # no scatter tells of no others
        return "cannot be told: all alike"
    if expect == "null":
        bound = max(abs(estimate.low), abs(estimate.high))
        return "NOT null: interval off 0" if estimate.off_zero else f"null, as expected (within ±{bound:.{digits}f})"
    if estimate.low > 0:
        return "shown"
    return "opposite" if estimate.high < 0 else "not shown"


def claim_verdicts(
    sweep: Sweep, samples: Mapping[str, Seeds], rounded: bool = True, judge: str = ""
) -> list[dict[str, Any]]:
    """The claims whose arms were trained, with what was measured and what follows.

    `rounded`: whether models were scored in bf16, so that small differences may be its noise. `judge`: whose rates of
    EM these are; a rate without its judge is none.
    """
    rows = []
    for claim in (claim for claim in sweep.claims if {claim.arm, claim.against} <= samples.keys()):
        task = TASKS[claim.measure]
        # A seed whose answers a judge did not get to costs its own number alone.
        arm, against = (
            {seed: own for seed, own in samples[name].items() if task in own} for name in (claim.arm, claim.against)
        )
        measured = measure(claim.measure, arm, against)
        noise = ", below the noise of bf16" if rounded and below_noise(claim.measure, measured.estimate) else ""
        rows.append(
            {
                "words": verdict_words(claim.expect, measured.estimate, DIGITS[claim.measure]) + noise,
                "claim": claim,
                "measured": measured,
                "title": TITLES[claim.measure] + f", judge {judge}" * bool(judge and task == JUDGED),
            }
        )
    return rows


def rank_verdicts(
    ranks: Sequence[Family], samples: Mapping[str, Seeds], measures: Sequence[str], rounded: bool = True
) -> list[str]:
    """How a sweep's measures change with rank: permutation tests of a trend and of a peak, over programs or questions.

    These are over means of seeds; the difference of the ends and the highest rank hold what another seed would change.
    Holm's correction is for all sentences together. `rounded` is as of `claim_verdicts`.
    """
    tested: list[tuple[Family, str, list[list[Floats]], Floats, bool, float, float]] = []
    sentences = [family.refusal for family in ranks if family.differ]
    for family in (family for family in ranks if not family.differ and len(family.members) > 2):
        for name in measures:
            trained = [samples[arm] for arm in family.members.values()]
            values = iter(per_cluster(name, [one for own in trained for one in own.values()]))
            seeds = [list(islice(values, len(own))) for own in trained]
            table = np.array([np.mean(own, axis=0) for own in seeds]).T
            if not np.isfinite(table).all():
                sentences.append(f"{family.name}, {TITLES[name]}: ranks are not compared, for a number of one is NaN.")
            elif len(table) > 1:
                peaks, p_turn = turn_p(table)
                tested.append((family, name, seeds, table, peaks, float(trend_p(table)), p_turn))
    p_trends, p_peaks = holm([row[5] for row in tested]), holm([row[6] for row in tested])
    for (family, name, seeds, table, peaks, *_), p_trend, p_peak in zip(tested, p_trends, p_peaks, strict=True):
        members, arms = [f"{rank:g}" for rank in family.members], list(family.members.values())
        difference = measure(name, samples[arms[0]], samples[arms[-1]]).estimate
        fall = float(table[:, 0].mean() - table[:, -1].mean())
        shown = shape(p_trend, p_peak, peaks, slope(table), fall)
        verdict = f"{shown} with rank" if shown in ("falls", "rises") else shown or "no change with rank is shown"
        even = len({len(own) for own in seeds}) == 1
        drawn = np.array(seeds).transpose(1, 2, 0) if even else table[None]
        shares = highest_shares(drawn, np.ones_like(drawn))
        least = smallest_shift(table, len(tested))
        seen = f"an even change by {least:.{DIGITS[name]}f} would be seen" if least else "nothing could have been seen"
        noise = " (below the noise of bf16)" if rounded and below_noise(name, difference) else ""
        sentences.append(
            f"{family.name}, {TITLES[name]}: {verdict} (trend p = {p_trend:.3f}, peak or dip p = {p_peak:.3f}, after "
            f"Holm's correction for {len(tested)} measures); highest at rank {members[shares.argmax()]} in "
            f"{shares.max():.0%} of resamples; rank {members[0]} less rank {members[-1]} "
            f"{difference.words(f'.{DIGITS[name]}f')}{noise}; {seen} in 4 of 5 such sweeps."
        )
    return sentences + [f"{family.name}: {family.scale}" for family in ranks if not family.differ]
