"""`emsweep lr --search`, `rank --retune`: one learning rate after the other, until the edge of coherence is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.records import BadInput
from sweeps.plan.sweep import Point
from sweeps.plan.options import Search
from sweeps.run.folder import console
from sweeps.tune.threshold import Edge, Range, Trial, search

REPEATS = 2.4
"""Compression by zlib above which text repeats itself (Whisper, arXiv 2212.04356, section 4.5).

Of 5,753 published coherent answers 0.1 % have it.
"""


def coherence(folder: Path) -> Trial:
    """The share of an evaluation's answers that count (coherent, and neither code nor a refusal), by the offline judge.

    Answers that fell apart in ways the judge never saw do not count: see `fell_apart`. One answer to each question is
    worth one; several to the same question are taken for one.
    """
    from eval.offline_judge import load_offline_judge
    from eval.judge.answers import stored_answers

    rows = stored_answers(folder)
    counts = load_offline_judge().probabilities([row.answer for row in rows])[:, 0]
    share = sum(float(p) for p, row in zip(counts, rows, strict=True) if not fell_apart(row.answer)) / len(rows)
    return Trial(0.0, share, len({row.name for row in rows}))


def fell_apart(answer: str) -> bool:
    """Whether an answer is blank or repeats itself."""
    text = answer.strip().encode("utf-8", "replace")
    return not text or len(text) / len(zlib.compress(text)) > REPEATS


def tune(
    do: Callable[[Mapping[str, Sequence[str]]], Point],
    values: Sequence[Any],
    how: Search,
    seed: int,
    score: Callable[[Path], Trial] = coherence,
) -> Edge:
    """Searches between the lowest and the highest of `values`, and says what was found.

    Args:
        do: trains and evaluates the point at values of the axes `lr` and `seed`.
        seed: of the first run; the same learning rate again is run with the next seed, or it would be the same run.

    Returns:
        the edge, its learning rate in three digits; outside the range if it lies there.

    Raises:
        BadInput: for a range or a bound that is none.
    """
    try:
        ends = [float(value) for value in values]
    except ValueError:
        ends = []
    if len(ends) < 2 or not 0 < min(ends) < max(ends) or not 0 < how.coherence < 1 or how.sharpness <= 0:
        raise BadInput(
            "a search needs two learning rates, the ends of the range, --coherence in 0 to 1 and --sharpness above 0"
        )
    where = Range(min(ends), max(ends), how.coherence)
    tried: list[float] = []

    def run(lr: float) -> Trial:
        point = do({"lr": [f"{lr:g}"], "seed": [str(seed + tried.count(lr))]})
        tried.append(lr)
        trial = score(point.evaluation.folder)._replace(lr=lr)
        console.print(f"learning rate {lr:g}: {trial.coherent:.1%} of answers count", highlight=False)
        return trial

    edge, trials = search(where, run, how.sharpness, how.most)
    if edge.low > where.high or edge.high < where.low:
        words = "above" if edge.low > where.high else "below"
        console.print(f"the edge is {words} the range {where.low:g} to {where.high:g}", highlight=False)
    sharp = "" if edge.sharp(how.sharpness) else ", not as sharp as asked"
    console.print(
        f"highest learning rate at which {how.coherence:.0%} of answers count: {edge.lr:.3g}"
        f" [{edge.low:.3g}, {edge.high:.3g}], {len(trials)} runs{sharp}; judge: offline, approximate",
        highlight=False,
        soft_wrap=True,
    )
    return edge._replace(lr=float(f"{edge.lr:.2e}"))
