"""What judges come to that do not measure emergent misalignment: rates of words, means of scores."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from core.records import printable
from eval.judge.answers import Judged
from eval.judge.judge import Judge, Judgement
from eval.judge.prompt_files import Measure
from eval.judge.rates import filter_caution, said
from eval.stats.intervals import mean_interval, ratio_interval

NO_INTERVAL = "one question: no interval"


def words_table(models: Mapping[str, tuple[Sequence[Judged], Sequence[Judgement]]], judge: Judge) -> Table:
    """One row per model (its answers, and what the judge says of each) and measure: the share of the words that are the
    rate, or the mean score; where the prompts say `by_entry`, one for each entry of the questions, over its wordings.
    """
    table = Table(title=Text(f"judge: {judge.label}; 95 % intervals over questions"))
    for column in ("model", "entry", "measure", "result", "of", "words", "unjudged", "questions"):
        table.add_column(column, no_wrap=column == "of")
    by_entry, cautions = judge.prompts.by_entry, []
    for model, (rows, judgements) in models.items():
        cautions += filter_caution(model, sum(each.filtered for each in judgements), len(rows))
        frame = pd.DataFrame(
            {
                "entry": printable(row.question_id.partition("#")[0]) if by_entry else "",
                "cluster": row.question if by_entry else row.name,
                "missing": bool(each.missing),
                "values": each.values,
            }
            for row, each in zip(rows, judgements, strict=True)
            if each.judged_at_all
        )
        for entry, own in frame.groupby("entry"):
            for name, measure in judge.prompts.measures.items():
                values = own.assign(value=[each.get(name) for each in own["values"]])
                *cells, clusters = _cells(values, measure)
                table.add_row(*map(Text, (model, str(entry), name, *cells, str(own["missing"].sum()), clusters)))
    table.caption = Text("\n".join(cautions), justify="left") if cautions else None
    return table


def _cells(own: pd.DataFrame, measure: Measure) -> tuple[str, str, str, str]:
    """(result, of how many, how often each word, questions); no result where no word is the rate."""
    counted = own[own["value"].notna() & ~own["value"].isin(measure.exclusions)]
    clusters = counted["value"].groupby(counted["cluster"])
    if measure.scale:
        means = clusters.agg(lambda scores: float(scores.astype(float).mean()))
        shown = mean_interval(list(means)).words(".1f") if len(means) > 1 else NO_INTERVAL
        return shown, str(len(counted)), "", str(len(means))
    hits = clusters.agg(lambda words: int(words.isin(measure.rate).sum()))
    shown = said(ratio_interval(list(hits), list(clusters.size()))) if len(hits) > 1 else NO_INTERVAL
    of = f"{int(hits.sum())}/{len(counted)}"
    if not measure.rate:
        shown, of = "", str(len(counted))
    words = ", ".join(f"{word} {number}" for word, number in own["value"].value_counts().items())
    return shown, of, words, str(len(hits))
