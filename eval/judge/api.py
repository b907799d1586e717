"""`emsweep judge`: a model behind an OpenAI-compatible endpoint scores stored answers.

Rides on the job of `embuild annotate`: the same limits, retries, journal and money. Two questions per distinct answer,
and more only where a reply cannot be read. A judgement that cannot be had is missing, never a number.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.annotate import Job, Run, progress_bar
from core.llm.client import Access, Endpoint
from core.llm.journal import Answer, Journal, Key
from core.llm.budget import prices_of
from data_builders.outcome import Asked, Pending, Question
from core.records import BadInput, digest, write_records
from eval.faults import BadFile
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
from eval.judge.rates import Judged
from eval.judge.answers import stored_answers
from sweeps.plan.sweep import JudgedBy

ATTEMPTS = 3
"""Replies that are read before a judgement is missing."""
BY_LOGPROBS = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 0}
BY_SAMPLE = {"max_tokens": 8, "temperature": 1}


class Inquiry(NamedTuple):
    """What the judge is asked about an answer next."""

    version: str
    """Of the prompts: with `name` and the answer's digest, the place of the reply in the journal."""
    name: str
    template: str
    body: Mapping[str, Any]


def about(question: str, answer: str) -> str:
    """Digest of a question and its answer."""
    return digest(json.dumps([question, answer]).encode())[:32]


@dataclass
class Asking(ABC):
    """One answer on its way to a judgement; a state of data_builders.annotate.Run."""

    question: str
    answer: str
    missing: list[str] = field(default_factory=list, kw_only=True)
    """Why a reply could not be read, for each since the last that could."""
    done: bool = field(default=False, kw_only=True)

    @abstractmethod
    def inquiry(self) -> Inquiry: ...

    @abstractmethod
    def read(self, reply: Answer) -> bool:
        """Reads the reply to the inquiry, or adds to `missing`; whether nothing more is to be asked."""

    def advance(self, judge: Asked, second: Asked | None, answers: Mapping[Key, Answer]) -> Question | None:
        """Goes as far as the answers allow: returns the question whose answer is missing, or None when done."""
        while not self.done:
            asked = self.inquiry()
            key = Key(judge.label, asked.version, about(self.question, self.answer), asked.name)
            reply = answers.get(key)
            if reply is None:
                messages = [{"role": "user", "content": prompt(asked.template, self.question, self.answer)}]
                return Question(key, judge, messages, None, dict(asked.body))
            self.done = self.read(reply) or len(self.missing) == ATTEMPTS
        return None

    def give_up(self, reason: str) -> None:
        self.done = True
        self.missing.append(f"no answer: {reason}")


@dataclass
class Judgement(Asking):
    """One answer on its way to two scores."""

    prompts: Mapping[Measure, str]
    sampled: bool
    scores: dict[Measure, float | None] = field(default_factory=dict)
    """None: the judge said CODE or REFUSAL."""

    def inquiry(self) -> Inquiry:
        measure = MEASURES[len(self.scores)]
        return Inquiry(
            f"{version(self.prompts)}-{'sampled' if self.sampled else 'logprobs'}",
            measure if not self.missing else f"{measure}-{len(self.missing) + 1}",
            self.prompts[measure],
            BY_SAMPLE | {"seed": len(self.missing)} if self.sampled else BY_LOGPROBS,
        )

    def read(self, reply: Answer) -> bool:
        measure, top = MEASURES[len(self.scores)], reply.top or {}
        score = sampled_score(reply.text) if self.sampled else expected_score(top)
        says = sampled_excludes(reply.text) if self.sampled else excludes(top)
        if score is not None:
            self.scores[measure], self.missing = score, []
        elif measure == "aligned" and says:
            self.scores[measure], self.missing = None, []
        else:
            self.missing.append(f"{measure}: the reply is no score: {reply.text[:40]!r}")
        return len(self.scores) == len(MEASURES)

    def row(self, question_id: str) -> Judged:
        """The scores; none at all if one of the two is missing, for half a judgement is in no denominator."""
        whole = len(self.scores) == len(MEASURES)
        scores = self.scores if whole else {}
        return Judged(question_id=question_id, question=self.question, answer=self.answer, **scores)


def judge_for(how: JudgedBy) -> Judge:
    """
    Raises:
        BadInput: if there is no key for it, its prompts cannot be read, or a price is missing.
    """
    try:
        published = load_judge_prompts(how.prompts) if how.prompts else {}
    except BadFile as error:
        raise BadInput(str(error)) from None
    prices = prices_of(how.price_in, how.price_out, "the judge's prices of tokens in and out")
    job = Job(Asked(how.model), prices=prices, max_cost=how.max_cost)
    access = Access.from_environment(how.key_variable, how.base_url, how.concurrency, how.timeout)
    return Judge(job, access, PROMPTS, published, how.sampled)


@dataclass(frozen=True)
class Judge:
    """Who judges, by which prompts, at what price."""

    job: Job
    access: Access
    prompts: Mapping[Measure, str]
    own_prompts: Mapping[str, Mapping[Measure, str]] = field(default_factory=dict)
    """By question id, where a published file brings them."""
    sampled: bool = False

    @property
    def name(self) -> str:
        return self.job.annotator.label + (" (sampled)" if self.sampled else "")

    def file(self, answers: Path) -> Path:
        """Where its scores of an evaluation's folder, or of a file of answers, belong."""
        named = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-")
        if answers.is_dir():
            return answers / f"judged-{named}.jsonl"
        return answers.with_name(f"{answers.stem}.judged-{named}.jsonl")


def judge_answers(
    rows: Sequence[Judged], judge: Judge, out: Path, journal: Path | None = None, facts: Mapping[str, Any] | None = None
) -> list[Judged]:
    """Scores answers and writes `out` (JSON Lines) with its manifest, which tells `facts` too.

    Paid answers are in `journal`; if not given, in a file beside `out`.

    Raises:
        BadInput: if the endpoint refuses all requests, the money is spent before the end, or a file cannot be written.
    """
    states: dict[tuple[str, str], Judgement] = {}
    of_row = []
    for row in rows:
        prompts = judge.own_prompts.get(row.question_id, judge.prompts)
        fresh = Judgement(row.question, row.answer, prompts, judge.sampled)
        of_row.append(states.setdefault((about(row.question, row.answer), version(prompts)), fresh))
    ask_all(list(states.values()), judge, journal or journal_of(out))
    judged = [state.row(row.question_id) for row, state in zip(rows, of_row, strict=True)]
    missing = {
        number: state.missing[-1]
        for number, (row, state) in enumerate(zip(judged, of_row, strict=True))
        if not row.judged
    }
    manifest = {
        "judge": judge.name,
        "prompts": sorted({name for _, name in states}),
        "answers": len(rows),
        "distinct": len(states),
        "missing": missing,
        **(facts or {}),
    }
    write_records(out, [row.model_dump() for row in judged], manifest)
    return judged


def judge_evaluations(folders: Sequence[Path], judge: Judge) -> None:
    """Scores the answers of evaluation runs, each beside them; what it may cost counts for all together.

    Raises:
        BadInput: as `judge_answers`.
    """
    most = judge.job.max_cost
    spent = {folder: _spent(judge.job, judge.file(folder)) for folder in folders} if most is not None else {}
    for folder in folders:
        if most is not None:
            left = max(0.0, most - sum(spent.values()) + spent[folder])
            judge = replace(judge, job=replace(judge.job, max_cost=left))
        judge_answers(stored_answers(folder), judge, judge.file(folder))
        if most is not None:
            spent[folder] = _spent(judge.job, judge.file(folder))


def _spent(job: Job, judged: Path) -> float:
    """USD that the answers cost which stand in the journal beside a file of scores."""
    path, money = journal_of(judged), job.money()
    if path.is_file():
        with closing(Journal(path)) as journal:
            for answer in journal.answers.values():
                money.count(answer)
    return money.usd


def journal_of(judged: Path) -> Path:
    """The journal of a file of scores."""
    return judged.with_suffix(".journal.jsonl")


def ask_all(states: Sequence[Pending], judge: Judge, journal: Path) -> None:
    """Asks until every state is done; what is paid for is in `journal` before it is used.

    Raises:
        BadInput: if the endpoint refuses all requests, or the money is spent before the end.
    """
    asyncio.run(_ask_all(states, judge, journal))


async def _ask_all(states: Sequence[Pending], judge: Judge, path: Path) -> None:
    with closing(Journal(path)) as journal:
        async with aclosing(Endpoint(judge.access)) as endpoint:
            with progress_bar() as bar:
                run = Run(judge.job, states, journal, endpoint, bar, "judge")
                await run.live()
    if run.stopped:
        left = f"{len(states) - run.done} of {len(states)} answers are left, {run.money}"
        raise BadInput(f"stopped: {run.stopped}; {left}; run it again to go on, nothing is paid for twice")
