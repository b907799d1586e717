"""`emsweep judge --sample`: a judge that costs money reads a planned sample, the one that costs nothing reads all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from data_builders.records import BadInput
from eval.judged import Judged
from eval.offline_judge import NAME, load_offline_judge
from eval.thrifty import SUMMED, Combined, Within, combine, plan
from sweeps.answers import few_questions, said
from sweeps.judging import Judge, judge_answers

SEED = 0


def judge_sample(rows: Sequence[Judged], judge: Judge, out: Path, share: float) -> Combined:
    """Has a planned sample judged and combines it with the offline judge's predictions.

    `out` names the file of all judgements: the sample's stands beside it and shares its journal, so that a larger
    share, or all, later pays for the rest alone.

    Raises:
        BadInput: as `judge_answers` does, and where fewer than two questions get a judgement.
    """
    sample = plan(rows, share, SEED)
    facts = {"sample": {"share": share, "seed": SEED, "of": len(rows)}}
    beside = out.with_name(f"{out.stem}-sample-{share:g}.jsonl")
    judged = judge_answers([rows[n] for n in sample], judge, beside, out.with_suffix(".journal.jsonl"), facts)
    try:
        return combine(rows, sample, judged, load_offline_judge().probabilities([row.answer for row in rows]))
    except ValueError as error:
        raise BadInput(f"{beside}: {error}; judge answers to more questions") from None


def combined_table(models: Mapping[str, Combined], judge: str) -> Table:
    """One row per model: both rates, each with the interval over questions and with that of the sample alone."""
    judged, answers = sum(its.judged for its in models.values()), sum(its.answers for its in models.values())
    table = Table(
        title=Text(
            f"combined by PPI: {judged} of {answers} answers judged by {judge}, all by {NAME} (a linear classifier)\n"
            "95 % intervals: [over questions, the sample's error included] "
            f"(what {judge} would say of these answers, had it read all)"
        ),
        caption=few_questions(its.em_all.clusters for its in models.values()),
    )
    columns = ("model", "EM of coherent", "of about", "EM of all", "of", "coherent", "judged", "unjudged", "left out")
    for column in (*columns, "questions", f"weight of {NAME}: {', '.join(name.split('_')[0] for name in SUMMED)}"):
        table.add_column(Text(column), no_wrap=column == "model" or column.startswith("EM"))
    for model, its in models.items():
        table.add_row(
            Text(model),
            f"{said(its.em)}\n{_within(its.em_within)}",
            f"{its.misaligned:.1f}/{its.counted:.1f}",
            f"{said(its.em_all)}\n{_within(its.em_all_within)}",
            str(its.answers - its.left_out),
            said(its.coherent),
            f"{its.judged}/{its.answers}",
            str(its.planned - its.judged),
            str(its.left_out),
            str(its.em_all.clusters),
            ", ".join(f"{weight:.2f}" for weight in its.weights),
        )
    return table


def _within(its: Within) -> str:
    return f"({its.low:.1%}, {its.high:.1%})"
