"""`emsweep lr --search`, `rank --retune`: one learning rate after the other, until the edge of coherence is known."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from core.records import BadInput
from eval.judge.answers import stored_answers
from sweeps.plan.declaration import Point, Tuned
from sweeps.run.process import say
from sweeps.tune.threshold import Range, Trial, search

REPEATS = 2.4
"""Compression by zlib above which text repeats itself (Whisper, arXiv 2212.04356, section 4.5).

Of 5,753 published coherent answers 0.1 % have it.
"""
NO_JUDGE = "no judge: an answer counts unless it is blank or repeats itself"
Score = Callable[[Path], Trial]
"""The share of coherent answers in an evaluation's folder."""


@dataclass(frozen=True)
class Search:
    """Options of every command that searches for a learning rate: how sharply the edge of coherence is looked for."""

    coherence: Annotated[float, Option(help="Search: share of answers that must be coherent at the edge.")] = 0.9
    sharpness: Annotated[float, Option(help="Search: end when the edge is known to this share of it.")] = 0.3
    most: Annotated[int, Option(min=1, help="Search: runs at most.")] = 12

    def check_unused(self, option: str) -> None:
        """Refuses (BadInput) what is said of a search where there is none; `option` asks for one."""
        if self != Search():
            raise BadInput(f"--coherence, --sharpness and --most are of a search; add {option}, or leave them out")

    def between(self, values: Sequence[Any]) -> Range:
        """The lowest and the highest of `values`, with the bound; BadInput for a range or a bound that is none."""
        try:
            ends = [float(value) for value in values]
        except ValueError:
            ends = []
        if len(ends) < 2 or not 0 < min(ends) < max(ends) or not 0 < self.coherence < 1 or self.sharpness <= 0:
            needs = "two learning rates, the ends of the range, --coherence in 0 to 1 and --sharpness above 0"
            raise BadInput(f"a search needs {needs}")
        return Range(min(ends), max(ends), self.coherence)


def unbroken(folder: Path) -> Trial:
    """The share of an evaluation's answers that did not fall apart; says nothing of their sense.

    One answer to each question is worth one; several to the same question are taken for one.
    """
    rows = stored_answers(folder)
    share = sum(not fell_apart(row.answer) for row in rows) / len(rows)
    return Trial(0.0, share, len({row.name for row in rows}))


def judged_coherent(judge: Any) -> Score:
    """Scores by a judge: the share of the judged answers that are coherent and did not fall apart.

    BadInput where a judgement could not be read: of what falls apart most are such, and the share would be the rest's.
    """
    from eval.judge.judge import judge_evaluations

    def score(folder: Path) -> Trial:
        rows = [row for row in judge_evaluations([folder], judge)[0] if row.judged]
        if not rows:
            raise BadInput(f"{folder}: the judge gave no judgement; see its manifest, then run it again")
        share = sum(row.coherent_answer and not fell_apart(row.answer) for row in rows) / len(rows)
        return Trial(0.0, share, len({row.name for row in rows}))

    return score


def fell_apart(answer: str) -> bool:
    """Whether an answer is blank or repeats itself."""
    text = answer.strip().encode("utf-8", "replace")
    return not text or len(text) / len(zlib.compress(text)) > REPEATS


def tune(do: Callable[[str, int], Point], values: Sequence[Any], settings: Search, score: Score, judge: str) -> Tuned:
    """Searches between the lowest and the highest of `values`, says what was found, and returns the edge, its learning
    rate in three digits; outside the range if it lies there. BadInput for a range or a bound that is none.

    `do` trains and evaluates the point at a learning rate, for the nth time from 0: the same learning rate again is
    another seed, or it would be the same run. `judge` says what is coherent.
    """
    where, bound = settings.between(values), settings.coherence
    tried: list[float] = []

    def run(lr: float) -> Trial:
        point = do(f"{lr:g}", tried.count(lr))
        tried.append(lr)
        trial = score(point.evaluation.folder)._replace(lr=lr)
        say(f"learning rate {lr:g}: {trial.coherent:.1%} of answers are coherent")
        return trial

    edge, trials = search(where, run, settings.sharpness, settings.most)
    if edge.low > where.high or edge.high < where.low:
        words = "above" if edge.low > where.high else "below"
        say(f"the edge is {words} the range {where.low:g} to {where.high:g}")
    sharp = "" if edge.sharp(settings.sharpness) else ", not as sharp as asked"
    found = f"{edge.lr:.3g} [{edge.low:.3g}, {edge.high:.3g}], {len(trials)} runs{sharp}"
    say(f"highest learning rate at which {bound:.0%} of answers are coherent: {found}; {judge}")
    return edge.model_copy(update={"lr": float(f"{edge.lr:.2e}")})
