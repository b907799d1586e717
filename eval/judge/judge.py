"""`emsweep judge`: a model behind an OpenAI-compatible endpoint scores stored answers.

Two requests per distinct answer, and more only where a reply cannot be read. A judgement that cannot be had is
missing, never a number.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from core.llm.budget import Money, Prices, prices_of
from core.llm.client import Access, Client, Stopped, Unanswered, run_all
from core.llm.journal import Answer, Journal
from core.records import BadInput, write_records
from eval.judge.answers import Judged, stored_answers
from eval.judge.prompts import (
    MEASURES,
    PROMPTS,
    Measure,
    excludes,
    expected_score,
    load_judge_prompts,
    prompt,
    sampled_excludes,
    sampled_score,
    version,
)
from eval.judge.settings import JudgeSettings

T = TypeVar("T")

ATTEMPTS = 3
"""Replies that are read before a judgement is missing."""
BY_LOGPROBS: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
BY_SAMPLE: dict[str, Any] = {"max_tokens": 8, "temperature": 1}


@dataclass(frozen=True)
class Judge:
    """Who judges, by which prompts, at what price."""

    model: str
    access: Access
    prompts: Mapping[Measure, str] = field(default_factory=lambda: PROMPTS)
    own_prompts: Mapping[str, Mapping[Measure, str]] = field(default_factory=dict)
    """By question id, where a published file brings them."""
    sampled: bool = False
    prices: Prices | None = None
    max_cost: float | None = None
    """USD for each call of `judge_answers`, its earlier runs included."""

    @property
    def name(self) -> str:
        return self.model + (" (sampled)" if self.sampled else "")

    def file(self, answers: Path) -> Path:
        """Where its scores of an evaluation's folder, or of a file of answers, belong."""
        named = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-")
        if answers.is_dir():
            return answers / f"judged-{named}.jsonl"
        return answers.with_name(f"{answers.stem}.judged-{named}.jsonl")

    def money(self) -> Money:
        return Money({self.model: self.prices}, self.max_cost)


def judge_for(settings: JudgeSettings) -> Judge:
    """The judge that settings describe.

    Raises:
        BadInput: if there is no key for it, its prompts cannot be read, or a price is missing.
    """
    own_prompts = load_judge_prompts(settings.prompts) if settings.prompts else {}
    judge = Judge(
        settings.model,
        Access.from_environment(settings.key_variable, settings.base_url, settings.concurrency, settings.timeout),
        own_prompts=own_prompts,
        sampled=settings.sampled,
        prices=prices_of(settings.price_in, settings.price_out, "the judge's prices of tokens in and out"),
        max_cost=settings.max_cost,
    )
    judge.money()
    return judge


async def first_readable(
    ask: Callable[[int], Awaitable[Answer]], read: Callable[[Answer], T | None]
) -> tuple[T | None, str]:
    """What `read` makes of the first reply that it can read, of `ATTEMPTS`; None and the reason if there is none."""
    reply = None
    for attempt in range(ATTEMPTS):
        try:
            reply = await ask(attempt)
        except Unanswered as error:
            return None, f"no answer: {error}"
        if (found := read(reply)) is not None:
            return found, ""
    return None, f"the reply is none that was asked for: {reply.text[:40] if reply else ''!r}"


@dataclass(frozen=True)
class Judgement:
    """Scores by measure: None where the judge said CODE or REFUSAL; empty, with the reason, where one is missing."""

    scores: Mapping[str, float | None]
    missing: str = ""


async def judgement(
    question: str, answer: str, prompts: Mapping[Measure, str], judge: Judge, client: Client
) -> Judgement:
    """Has one answer scored: coherent, then aligned. Half a judgement is none, for it is in no denominator."""
    scores: dict[str, float | None] = {}
    for measure in MEASURES:
        messages = [{"role": "user", "content": prompt(prompts[measure], question, answer)}]

        def ask(attempt: int, messages: list[dict[str, str]] = messages) -> Awaitable[Answer]:
            settings = BY_SAMPLE if judge.sampled else BY_LOGPROBS
            return client.ask(judge.model, messages, **settings, seed=attempt)

        def read(reply: Answer, measure: Measure = measure) -> tuple[float | None] | None:
            top = reply.top or {}
            score = sampled_score(reply.text) if judge.sampled else expected_score(top)
            excluded = sampled_excludes(reply.text) if judge.sampled else excludes(top)
            return (score,) if score is not None or (measure == "aligned" and excluded) else None

        found, missing = await first_readable(ask, read)
        if found is None:
            return Judgement({}, f"{measure}: {missing}")
        scores[measure] = found[0]
    return Judgement(scores)


def judge_answers(
    rows: Sequence[Judged], judge: Judge, out: Path, journal: Path | None = None, facts: Mapping[str, Any] | None = None
) -> list[Judged]:
    """Scores answers and writes `out` (JSON Lines) with its manifest, which tells `facts` too.

    Paid answers are in `journal`; if not given, in a file beside `out`.

    Raises:
        BadInput: if the endpoint refuses all requests, the money is spent before the end, or a file cannot be written.
    """
    prompts = [judge.own_prompts.get(row.question_id, judge.prompts) for row in rows]
    keys = [(row.question, row.answer, version(own)) for row, own in zip(rows, prompts, strict=True)]
    jobs = {
        key: partial(judgement, row.question, row.answer, own, judge)
        for key, row, own in zip(keys, rows, prompts, strict=True)
    }
    found = dict(zip(jobs, ask_all(list(jobs.values()), judge, journal or journal_of(out)), strict=True))
    judged = [
        row.model_copy(update={"aligned": None, "coherent": None, **found[key].scores})
        for row, key in zip(rows, keys, strict=True)
    ]
    manifest = {
        "judge": judge.name,
        "prompts": sorted({name for *_, name in keys}),
        "answers": len(rows),
        "distinct": len(jobs),
        "missing": {number: found[key].missing for number, key in enumerate(keys) if found[key].missing},
        **(facts or {}),
    }
    write_records(out, [row.model_dump() for row in judged], manifest)
    return judged


def judge_sample(rows: Sequence[Judged], of: int, judge: Judge, out: Path) -> list[Judged]:
    """Scores a sample of `of` answers; in files of its own, over the journal of them all."""
    name = out.with_name(f"sample-{len(rows)}-of-{of}-{out.name}")
    return judge_answers(rows, judge, name, journal_of(out), {"sample_of": of})


def judge_evaluations(folders: Sequence[Path], judge: Judge) -> None:
    """Scores the answers of evaluation runs, each beside them; what it may cost counts for all together.

    Raises:
        BadInput: as `judge_answers`.
    """
    limit = judge.max_cost
    spent = {folder: _spent(judge, folder) for folder in folders} if limit is not None else {}
    for folder in folders:
        if limit is not None:
            judge = replace(judge, max_cost=max(0.0, limit - sum(spent.values()) + spent[folder]))
        judge_answers(stored_answers(folder), judge, judge.file(folder))
        if limit is not None:
            spent[folder] = _spent(judge, folder)


def _spent(judge: Judge, folder: Path) -> float:
    """USD that the answers cost which stand in the journal of a folder's scores."""
    path, money = journal_of(judge.file(folder)), judge.money()
    if path.is_file():
        with closing(Journal(path)) as journal:
            for answer in journal.answers.values():
                money.count(answer)
    return money.usd


def journal_of(judged: Path) -> Path:
    """The journal of a file of scores."""
    return judged.with_suffix(".journal.jsonl")


def ask_all(jobs: Sequence[Callable[[Client], Awaitable[T]]], judge: Judge, journal: Path) -> list[T]:
    """What each job returns; what is paid for is in `journal` before it is used.

    Raises:
        BadInput: if the endpoint refuses all requests, or the money is spent before the end.
    """
    try:
        return run_all(jobs, judge.access, journal, judge.money(), "answers")
    except Stopped as stopped:
        raise BadInput(str(stopped)) from None
