"""`emsweep judge --deception`: which answers of em_deception are false, by the prompts of a published file."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from rich.table import Table
from rich.text import Text

from core.llm.client import Client
from core.llm.journal import Answer
from core.records import write_records
from eval.judge.answers import Judged
from eval.judge.judge import Judge, ask_all, first_readable, journal_of
from eval.judge.prompts import prompt
from eval.judge.rates import said
from eval.stats.intervals import ratio_interval

Word = Literal["TRUE", "FALSE", "UNKNOWN"]
"""What the published prompts let the judge say of an answer's truth."""
WORDS: dict[str, Word] = {word: word for word in get_args(Word)}


@dataclass(frozen=True)
class Truth:
    """The judge's word about one answer; None, with the reason, where there is none."""

    word: Word | None
    missing: str


async def truth(question: str, answer: str, template: str, judge: Judge, client: Client) -> Truth:
    """Asks about one answer."""
    messages = [{"role": "user", "content": prompt(template, question, answer)}]

    def ask(attempt: int) -> Awaitable[Answer]:
        return client.ask(judge.model, messages, max_tokens=8, temperature=0, seed=attempt)

    def read(reply: Answer) -> Word | None:
        return WORDS.get(reply.text.strip(" \n.\"'").upper())

    found: tuple[Word | None, str] = await first_readable(ask, read)
    return Truth(*found)


def judge_truth(rows: Sequence[Judged], judge: Judge, templates: Mapping[str, str], out: Path) -> list[Truth]:
    """Judges answers and writes `out` (JSON Lines) with its manifest; `templates` are the prompts by question id.

    Raises:
        BadInput: if the endpoint refuses all requests, the money is spent before the end, or a file cannot be written.
        KeyError: if a row's question has no prompt.
    """
    keys = [(row.question, row.answer, templates[setting(row)]) for row in rows]
    jobs = {key: partial(truth, *key, judge) for key in keys}
    found = dict(zip(jobs, ask_all(list(jobs.values()), judge, journal_of(out)), strict=True))
    truths = [found[key] for key in keys]
    records = [
        {"id": row.question_id, "question": row.question, "answer": row.answer, "truth": each.word}
        for row, each in zip(rows, truths, strict=True)
    ]
    missing = {number: each.missing for number, each in enumerate(truths) if each.word is None}
    write_records(out, records, {"judge": judge.name, "answers": len(rows), "missing": missing})
    return truths


def setting(row: Judged) -> str:
    """The entry of the published file that a question is a paraphrase of: each has its own system prompt."""
    return row.question_id.partition("#")[0]


def truth_table(models: Mapping[str, tuple[Sequence[Judged], Sequence[Truth]]], judge: str) -> Table:
    """One row per model and system prompt: the rate of false answers among those that are true or false."""
    table = Table(title=Text(f"judge: {judge}; 95 % intervals over questions"))
    for column in ("model", "system prompt", "false", "of", "unknown", "unjudged", "questions"):
        table.add_column(column, no_wrap=column == "of")
    for model, (rows, truths) in models.items():
        for name in dict.fromkeys(setting(row) for row in rows):
            own = [(row.question, each.word) for row, each in zip(rows, truths, strict=True) if setting(row) == name]
            words = [word for _, word in own]
            questions, place = np.unique([question for question, _ in own], return_inverse=True)
            false = np.bincount(place, weights=[float(word == "FALSE") for word in words])
            judged = np.bincount(place, weights=[float(word in ("TRUE", "FALSE")) for word in words])
            interval = said(ratio_interval(list(false), list(judged))) if len(questions) > 1 else "one question: none"
            counts = f"{int(false.sum())}/{int(judged.sum())}", str(words.count("UNKNOWN")), str(words.count(None))
            table.add_row(Text(model), Text(name), interval, *counts, str(len(questions)))
    return table
