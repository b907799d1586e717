"""Does a rate change along the ranks of a family of models, where is it highest, and what could be seen at all?

Everything pairs by question: a question that is easy to misalign is so at every rank.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from core.records import BadInput
from eval.judge.answers import Judged, per_question
from eval.stats.intervals import Estimate, Floats, ratio_difference
from eval.stats.trend import LEVEL, Shape, highest_shares, shape, slope, smallest_fall, trend_p, turn_p

Denominator = Literal["counted", "judged"]
Verdict = Shape | Literal["cannot tell"]
Ranks = Mapping[int, Sequence[Sequence[Judged]]]
"""Judged answers by rank, one list for each seed."""
UNKNOWN_SCALE = (
    "Rank and scale (alpha / r) are confounded here unless alpha grew with the rank: the files do not say how alpha "
    "was set, so a difference between ranks may be one of scale."
)


@dataclass(frozen=True)
class Trend:
    """What a family's ranks say about one rate."""

    family: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    """Over all questions of each rank, in the order of ranks."""
    questions: int
    """With an answer in the denominator at every rank; only these are compared."""
    left_out: int
    seeds: int
    """Of each rank; the fewest where they differ."""
    pooled: bool
    """Whether they differ: then the answers of all seeds of a rank are taken for one seed's."""
    difference: Estimate
    """The rate at the lowest rank less that at the highest."""
    highest: tuple[float, ...]
    """How often each rank has the highest rate when questions and seeds are resampled."""
    smallest_fall: float | None
    """The smallest even fall, as a share of the rate at the lowest rank, found in 4 of 5 sweeps; None if none is."""
    misaligned: int
    """Answers at all ranks over the questions that are compared."""
    slope: float
    """Of the trend: the change of the mean over questions from one rank to the next."""
    p: float
    """Of that trend (two-sided)."""
    p_peak: float
    """Of a peak between the first and the last rank, or of a dip: twice the smaller one."""
    p_holm: float
    p_peak_holm: float
    """Corrected for the number of families tested."""
    peaks: bool
    """Whether `p_peak` is of a peak and not of a dip."""

    @property
    def verdict(self) -> Verdict:
        """The shape that is shown."""
        return shape(self.p_holm, self.p_peak_holm, self.peaks, self.slope, self.difference.value) or "cannot tell"


def families(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Names that end in `_r<rank>` or `-r<rank>`, by what stands before and by rank (in order); two ranks or more.
    BadInput if two names are of one rank."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := re.fullmatch(r"(.+)[-_]r(\d+)", name, re.DOTALL):
            ranks, rank = found[match[1]], int(match[2])
            if rank in ranks:
                raise BadInput(f"{name}: {ranks[rank]} is rank {rank} of {match[1]} too; rename one, or leave it out")
            ranks[rank] = name
    return {family: dict(sorted(ranks.items())) for family, ranks in found.items() if len(ranks) > 1}


def _compared(ranks: Ranks, denominator: Denominator) -> tuple[Floats, Floats] | None:
    """Misaligned answers and the denominator, each (seeds, questions, ranks), over the questions that every rank has in
    the denominator; None if they are fewer than two, or the ranks than three."""
    if len(ranks) < 3:
        return None
    own = [ranks[rank] for rank in sorted(ranks)]
    if len({*map(len, own)}) > 1:
        own = [[[row for rows in seeds for row in rows]] for seeds in own]
    common = sorted(set.intersection(*({row.name for row in rows} for seeds in own for rows in seeds)))
    hits, totals = (
        np.array([[per_question(rows, what, common) for rows in seeds] for seeds in own]).transpose(1, 2, 0)
        for what in ("misaligned", denominator)
    )
    whole = (totals.sum(axis=0) > 0).all(axis=1)
    return (hits[:, whole], totals[:, whole]) if whole.sum() > 1 else None


def trend(family: str, ranks: Ranks, denominator: Denominator, tested: int = 1) -> Trend | None:
    """The trend over three ranks or more; None if fewer, or if fewer than two questions can be compared. `tested`: the
    number of families that Holm's correction will be for."""
    if (compared := _compared(ranks, denominator)) is None:
        return None
    hits, totals = compared
    ordered = sorted(ranks)
    pooled = [[row for rows in ranks[rank] for row in rows] for rank in ordered]
    summed, of = hits.sum(axis=0), totals.sum(axis=0)
    p, (peaks, p_peak) = float(trend_p(summed / of)), turn_p(summed / of)
    return Trend(
        family=family,
        ranks=tuple(ordered),
        rates=tuple(sum(row.misaligned for row in m) / sum(getattr(row, denominator) for row in m) for m in pooled),
        questions=len(summed),
        left_out=len({row.name for rows in pooled for row in rows}) - len(summed),
        seeds=min(map(len, ranks.values())),
        pooled=len({*map(len, ranks.values())}) > 1,
        difference=ratio_difference((hits[..., 0], hits[..., -1]), (totals[..., 0], totals[..., -1])),
        highest=tuple(map(float, highest_shares(hits, totals))),
        smallest_fall=smallest_fall(summed, of, tested),
        misaligned=int(summed.sum()),
        slope=slope(summed / of),
        p=p,
        p_peak=p_peak,
        p_holm=p,
        p_peak_holm=p_peak,
        peaks=peaks,
    )


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number. Source: Holm, Scand. J. Statist. 6 (1979), 65-70."""
    order = np.argsort(values)
    stepped = np.asarray(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def trends(ranks_of: Mapping[str, Ranks], denominator: Denominator) -> dict[str, Trend]:
    """The trends that there are over the ranks of each family, with p values corrected for the number of families."""
    tested = {family: ranks for family, ranks in ranks_of.items() if _compared(ranks, denominator)}
    found = [own for family, ranks in tested.items() if (own := trend(family, ranks, denominator, len(tested)))]
    p, p_peak = holm([one.p for one in found]), holm([one.p_peak for one in found])
    return {one.family: replace(one, p_holm=p[n], p_peak_holm=p_peak[n]) for n, one in enumerate(found)}


def points(difference: Estimate) -> str:
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:.1f} points [{low:.1f}, {high:.1f}]"


def sentences(found: Trend, scale: str, tested: int) -> list[str]:
    """The verdict in words; that nothing can be told is said as plainly as a fall. `scale` is a sentence on what is
    known of alpha / r over these ranks, `tested` the number of families tested together."""
    ranks = ", ".join(map(str, found.ranks))
    best = max(range(len(found.ranks)), key=lambda place: found.highest[place])
    shape = f"{found.verdict} with rank"
    if found.verdict == "cannot tell":
        shape = "is not shown to change with rank, and these answers cannot tell"
    holm_words = f", after Holm's correction for {tested} families" if tested > 1 else ""
    curve = ", ".join(f"{100 * rate:.2f} % at {rank}" for rank, rate in zip(found.ranks, found.rates, strict=True))
    shares = ", ".join(f"{rank} in {share:.0%}" for rank, share in zip(found.ranks, found.highest, strict=True))
    said = [
        f"{found.family}: EM {shape} ({ranks}): trend p = {found.p_holm:.3f}, a peak or a dip between the ends p = "
        f"{found.p_peak_holm:.3f} (ranks permuted within {found.questions} questions{holm_words}).",
        f"EM is {curve}. Rank {found.ranks[0]} less rank {found.ranks[-1]}, paired by question: "
        f"{points(found.difference)}.",
    ]
    if found.misaligned:
        sure = "which is clear" if found.highest[best] >= 1 - LEVEL else "which these questions leave open"
        seen = "not even an even fall to zero"
        if least := found.smallest_fall:
            seen = f"an even fall by {least:.0%} of the rate at rank {found.ranks[0]}, or by more"
        said += [
            f"Highest at rank {found.ranks[best]}, {sure}: of resamples of the questions, {shares}.",
            f"What the trend test could have seen in 4 of 5 such sweeps: {seen}.",
        ]
    else:
        said.append("No answer was misaligned at any rank, so nothing could have been seen.")
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    seeds += " or more, and their answers are pooled as if of one" * found.pooled
    said.append(f"Each rank is judged at {seeds}; the tests are over questions: other seeds may give other curves.")
    said.append(scale)
    if found.left_out:
        said.append(f"{found.left_out} questions are not compared: some rank has no answer to them in the denominator.")
    return said


def not_compared(family: str) -> str:
    return f"{family}: ranks are not compared, for fewer than two questions have a coherent answer at every rank."


def short(found: Trend) -> str:
    """The same over the other denominator in one sentence; a second look, so that it gives no verdict."""
    curve = ", ".join(f"{100 * rate:.1f} %" for rate in found.rates)
    return (
        f"Of all judged answers: {curve}; trend p = {found.p:.3f} (uncorrected, no verdict); lowest less highest rank "
        f"{points(found.difference)}."
    )
