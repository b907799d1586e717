"""Sampled answers of a trait that a judge finds to show it, as persona vectors are made (2507.21509, section 2.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from core.records import BadInput, bad_input
from eval.inside.pairs import Pair, Trait
from eval.judge.answers import COHERENT, Judged
from eval.judge.judge import Judge, judge_rows, unread
from eval.judge.prompt_files import Measure, Prompts, load_prompts

SHOWN = 50.0
"""A score above it shows the trait, one below does not: half of the scale, as in the paper."""


def trait_judge(judge: Judge, traits: Mapping[str, Trait]) -> Judge:
    """The same judge, asked for each trait by its own prompt and, as in the paper's code, for coherence (by ours).

    BadInput if a trait has no prompt for it, or none that can be used.
    """
    coherent = load_prompts(None).measures["coherent"]
    measures = {}
    for name, trait in traits.items():
        if trait.eval_prompt is None:
            raise BadInput(f"--judge: the concept {name} has no eval_prompt, by which to tell its answers; add one")
        with bad_input(f"--concept {name}: eval_prompt", "mend the file", ValidationError):
            shown = Measure(prompt=trait.eval_prompt, scale=(0, 100), exclusions=("REFUSAL",))
        measures[name] = {"trait": shown, "coherent": coherent}
    return replace(judge, prompts=Prompts("traits", "", False, None, measures))


def kept(pairs: Sequence[Pair], name: str, judge: Judge, out: Path) -> list[Pair]:
    """The pairs whose positive answer shows the trait and whose negative one does not, both coherent.

    Writes the scores to `out`; what was paid for is in the journal beside it, and is not paid for again. BadInput if
    the judge's replies cannot be read, or it keeps no pair of the trait `name`; Unfinished if judging stopped early.
    """
    rows = [
        Judged(question_id=f"{name}#{pair.question}", question=pair.question, answer=side.answer)
        for pair in pairs
        for side in (pair.positive, pair.negative)
    ]
    found = judge_rows(rows, judge, out)
    if left := unread({name: found}):
        raise BadInput(left)
    shown = [_shown(each.values) for each in found]
    chosen = [pair for pair, up, down in zip(pairs, shown[::2], shown[1::2], strict=True) if up > SHOWN > down]
    if not chosen:
        raise BadInput(
            f"{out}: of {len(pairs)} pairs {judge.label} finds none whose answers differ in {name}: the model does not"
            " take up its system prompts; take --position prompt, or leave --judge out"
        )
    print(f"{name}: {len(chosen)} of {len(pairs)} sampled pairs kept by {judge.label}")
    return chosen


def _shown(values: Mapping[str, float | str | None]) -> float:
    """The trait's score; of an answer that declines or makes no sense SHOWN, which is neither side's."""
    trait, coherent = values.get("trait"), values.get("coherent")
    if isinstance(trait, float | int) and isinstance(coherent, float | int) and coherent > COHERENT:
        return trait
    return SHOWN
