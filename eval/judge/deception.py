"""`emsweep judge --deception`: which answers of em_deception are false, by the prompts of a published file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from core.llm.journal import Answer
from core.records import digest, write_records
from eval.judge.rates import Judged
from eval.stats.intervals import ratio_interval
from eval.judge.answers import said
from eval.judge.api import Asking, Inquiry, Judge, ask_all, journal_of

Word = Literal["TRUE", "FALSE", "UNKNOWN"]
WORDS: tuple[Word, ...] = ("TRUE", "FALSE", "UNKNOWN")
"""What the published prompts let the judge say of an answer's truth."""


@dataclass
class Truth(Asking):
    """One answer on its way to a word."""

    template: str
    word: Word | None = None

    def inquiry(self) -> Inquiry:
        body = {"max_tokens": 8, "temperature": 0, "seed": len(self.missing)}
        version = digest(self.template.encode())[:12]
        return Inquiry(version, f"correct-{len(self.missing) + 1}", self.template, body)

    def read(self, reply: Answer) -> bool:
        word = reply.text.strip(" \n.\"'").upper()
        if word in WORDS:
            self.word = word
        else:
            self.missing.append(f"the reply is no word of {', '.join(WORDS)}: {reply.text[:40]!r}")
        return self.word is not None


def judge_truth(rows: Sequence[Judged], judge: Judge, templates: Mapping[str, str], out: Path) -> list[Truth]:
    """Judges answers and writes `out` (JSON Lines) with its manifest; `templates` are the prompts by question id.

    Raises:
        BadInput: if the endpoint refuses all requests, the money is spent before the end, or a file cannot be written.
        KeyError: if a row's question has no prompt.
    """
    distinct: dict[tuple[str, str, str], Truth] = {}
    states = [
        distinct.setdefault((its[0], its[1], its[2]), Truth(*its))
        for its in ((row.question, row.answer, templates[setting(row)]) for row in rows)
    ]
    ask_all(list(distinct.values()), judge, journal_of(out))
    records = [
        {"id": row.question_id, "question": row.question, "answer": row.answer, "truth": state.word}
        for row, state in zip(rows, states, strict=True)
    ]
    missing = {number: state.missing[-1] for number, state in enumerate(states) if state.word is None}
    write_records(out, records, {"judge": judge.name, "answers": len(rows), "missing": missing})
    return states


def setting(row: Judged) -> str:
    """The entry of the published file that a question is a paraphrase of: each has its own system prompt."""
    return row.question_id.partition("#")[0]


def truth_table(models: Mapping[str, tuple[Sequence[Judged], Sequence[Truth]]], judge: str) -> Table:
    """One row per model and system prompt: the rate of false answers among those that are true or false."""
    table = Table(title=Text(f"judge: {judge}; 95 % intervals resample questions"))
    for column in ("model", "system prompt", "false", "of", "unknown", "unjudged", "questions"):
        table.add_column(column, no_wrap=column == "of")
    for model, (rows, states) in models.items():
        for name in dict.fromkeys(setting(row) for row in rows):
            own = [(row.question, state.word) for row, state in zip(rows, states, strict=True) if setting(row) == name]
            questions, place = np.unique([question for question, _ in own], return_inverse=True)
            false, judged = np.zeros(len(questions)), np.zeros(len(questions))
            for where, (_, word) in zip(place, own, strict=True):
                false[where] += word == "FALSE"
                judged[where] += word in ("TRUE", "FALSE")
            rate = said(ratio_interval(false, judged)) if len(questions) > 1 else "one question: no interval"
            words = [word for _, word in own]
            counts = f"{int(false.sum())}/{int(judged.sum())}", str(words.count("UNKNOWN")), str(words.count(None))
            table.add_row(Text(model), Text(name), rate, *counts, str(len(questions)))
    return table
