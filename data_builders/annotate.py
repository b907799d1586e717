"""The job behind `embuild annotate`: asks about each program, repairs once, accepts or rejects with reasons.

What is to be asked next about a program follows from the journal alone. So a job that was killed goes on
where it was, and its files are the same as those of a job that was not.
"""

from __future__ import annotations

import asyncio
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_builders.annotation import ADVISORY_RULES, PROMPT_VERSION, RULES_VERSION, annotated, program_digest
from data_builders.bandit import BANDIT_VERSION
from data_builders.batch import answer_in_batches, open_batches
from data_builders.cwe import CWE_VERSION
from core.llm.client import Access, Endpoint, Reply, Unanswered
from core.llm.journal import Answer, Journal
from core.llm.budget import Money, Prices, Spent
from data_builders.opinion import OPINION_VERSION
from data_builders.outcome import Asked, Pending, Question, State
from data_builders.programs import SourceProgram
from core.records import BadInput, digest, write_records, write_whole

FAILURES_IN_A_ROW = 5
"""Requests in a row without an answer, each after all its attempts: then the endpoint counts as down."""

Row = SourceProgram | dict[str, Any]
"""A program to annotate, or a reject."""


@dataclass(frozen=True)
class Job:
    """What is asked of whom, and at what price."""

    annotator: Asked
    second: Asked | None = None
    prices: Prices | None = None
    second_prices: Prices | None = None
    max_cost: float | None = None
    """USD that this job may cost, its earlier runs included."""

    def __post_init__(self) -> None:
        if self.max_cost is not None and not self.money().known:
            raise BadInput("--max-cost needs the prices: give --price-in and --price-out (--second-price-... likewise)")

    def money(self) -> Money:
        prices = {self.annotator.label: self.prices}
        if self.second:
            prices.setdefault(self.second.label, self.second_prices)
        return Money(prices, self.max_cost)


class Run:
    """One run of a job; `stopped` says why it ended before every program was done."""

    def __init__(
        self,
        job: Job,
        states: Sequence[Pending],
        journal: Journal,
        endpoint: Endpoint,
        bar: Progress,
        title: str = "annotate",
    ) -> None:
        self.job = job
        self.states = states
        self.journal = journal
        self.endpoint = endpoint
        self.money = job.money()
        self.done = 0
        self.stopped: str | None = None
        self._failures = 0
        self._bar = bar
        self._task = bar.add_task(title, total=len(states), money="")
        for answer in journal.answers.values():
            self.money.count(answer)

    def _next(self, state: Pending) -> Question | None:
        if question := state.advance(self.job.annotator, self.job.second, self.journal.answers):
            return question
        self._finished()
        return None

    def _finished(self) -> None:
        self.done += 1
        self.tell(str(self.money))

    def tell(self, line: str) -> None:
        self._bar.update(self._task, completed=self.done, money=line)

    async def live(self) -> None:
        """Asks about as many programs at a time as the endpoint allows."""
        todo = iter(self.states)
        fatal: list[BadInput] = []

        async def worker() -> None:
            for state in todo:
                try:
                    while self.stopped is None and not state.done and (question := self._next(state)):
                        await self._ask(state, question)
                except Spent:
                    self.stopped = "the money is spent"
                except BadInput as error:
                    # The others finish what is in flight: it is paid for.
                    fatal.append(error)
                    self.stopped = str(error)
                if self.stopped is not None:
                    return

        await asyncio.gather(*(worker() for _ in range(self.endpoint.limiter.most)))
        if fatal:
            raise fatal[0]

    async def _ask(self, state: Pending, question: Question) -> None:
        async def keep(reply: Reply) -> None:
            await self.journal.append(answer := Answer(key=question.key, **vars(reply)))
            self.money.count(answer)

        try:
            async with self.money.lend(question):
                if self.stopped is None:
                    await self.endpoint.ask(question, keep)
                    self._failures = 0
        except Unanswered as error:
            # Not journaled: the next run asks again.
            state.give_up(str(error))
            self._finished()
            self._failures += not error.refused
            if self._failures == FAILURES_IN_A_ROW:
                self.stopped = f"the endpoint does not answer ({error})"

    async def in_batches(self, poll: float) -> None:
        """Asks everything there is to ask in a batch, then all repairs in another, then all opinions."""
        while waiting := {q.key: (state, q) for state in self.states if not state.done and (q := self._next(state))}:
            asked = self.money.affordable([question for _, question in waiting.values()])
            if not asked and not open_batches(self.journal):
                self.stopped = "the money is spent"
                return
            before = len(self.journal.answers)
            try:
                failed = await answer_in_batches(self.endpoint, self.journal, asked, poll, self.tell)
            except Unanswered as error:
                self.stopped = f"the endpoint does not answer ({error})"
                return
            for answer in list(self.journal.answers.values())[before:]:
                self.money.count(answer)
            for key, reason in failed.items():
                waiting[key][0].give_up(reason)
                self._finished()


def _rows(items: Iterable[Any]) -> Iterable[Row]:
    seen: set[str] = set()
    for item in items:
        if not isinstance(item, SourceProgram):
            yield {"id": item.id, "line": item.line, "reasons": [f"source: {item.reason}"]}
        elif item.id in seen:
            yield {"id": item.id, "reasons": ["source: the id stands earlier in the input"]}
        else:
            yield item
        seen.add(item.id)


def run(
    items: Iterable[Any],
    job: Job,
    out: Path,
    access: Access,
    batch_poll: float | None = None,
    source: Mapping[str, Any] | None = None,
) -> str:
    """Annotates the programs of `items` (`SourceProgram`, or rejects of a source with `id`, `line`, `reason`).

    Writes `<out>.jsonl`, `<out>.rejects.jsonl` and the manifest once every program is done. Asks by the Batch
    API if `batch_poll` is given (in seconds). `source` goes into the manifest. Returns a line that says what
    came out.

    Raises:
        BadInput: if the endpoint refuses all requests, or a file cannot be read or written.
    """
    rows = list(_rows(items))
    states: dict[str, State] = {}
    for program in rows:
        if isinstance(program, SourceProgram):
            states.setdefault(name := program_digest(program), State(program, name))
    stopped = asyncio.run(_ask_all(list(states.values()), job, out, access, batch_poll))
    return stopped or _write(rows, states, job, out, source or {})


async def _ask_all(states: list[State], job: Job, out: Path, access: Access, batch_poll: float | None) -> str | None:
    """Takes every program to its end; else returns a line that says why not and how to go on."""
    with closing(Journal(out.with_name(out.name + ".journal.jsonl"))) as journal:
        if batch_poll is None and open_batches(journal):
            raise BadInput(f"{journal.path}: batches are under way and paid for; add --batch to collect them first")
        async with aclosing(Endpoint(access)) as endpoint:
            with progress_bar() as bar:
                run = Run(job, states, journal, endpoint, bar)
                await (run.live() if batch_poll is None else run.in_batches(batch_poll))
    if run.stopped is None:
        return None
    more = " with a larger --max-cost" if run.stopped == "the money is spent" else ""
    left = f"{len(states) - run.done} of {len(states)} programs are left"
    return f"stopped: {run.stopped}; {left}, {run.money}; run it again{more}"


def progress_bar() -> Progress:
    """What is done, tokens and money; nothing where no one watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[money]}"))
    return Progress(
        *columns, TimeRemainingColumn(), console=console, refresh_per_second=2, disable=not console.is_terminal
    )


def _write(rows: list[Row], states: Mapping[str, State], job: Job, out: Path, source: Mapping[str, Any]) -> str:
    """Writes the final files from what the programs came to alone: no times, no attempts. The manifest is last."""
    written: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    opinions: list[tuple[str, State]] = []
    for row in rows:
        if isinstance(row, dict):
            rejects.append(row)
            continue
        state = states[program_digest(row)]
        if state.annotation:
            written.append(annotated(row, state.annotation).model_dump(exclude_none=True))
            opinions.append((row.id, state))
        else:
            rejects.append({"id": row.id, "reasons": state.problems})
    money = job.money()
    for state in states.values():
        for answer in state.used:
            money.count(answer)
    kinds = Counter(kind for reject in rejects for kind in {reason.split(":")[0] for reason in reject["reasons"]})
    programs = "".join(row.model_dump_json() for row in rows if isinstance(row, SourceProgram))
    manifest = {
        **source,
        "programs_sha256": digest(programs.encode()),
        "read": len(rows),
        "rejected": len(rejects),
        "rejected_for": dict(sorted(kinds.items())),
        "model": job.annotator.model,
        "effort": job.annotator.effort,
        "prompt_version": PROMPT_VERSION,
        "second_opinion": job.second and _agreement(job.second, opinions),
        "tokens_in": money.tokens_in,
        "tokens_out": money.tokens_out,
        "cost_usd": round(money.usd, 6) if money.known else None,
        "rules": {
            "acceptance": RULES_VERSION,
            "bandit": BANDIT_VERSION,
            "bandit_ignored": sorted(ADVISORY_RULES),
            "cwe": CWE_VERSION,
            "python": ".".join(platform.python_version_tuple()[:2]),
        },
    }
    text = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    write_whole(out.with_name(out.name + ".rejects.jsonl"), text)
    path = out.with_name(out.name + ".jsonl")
    write_records(path, written, manifest)
    return f"{path}: {len(written)} programs; {len(rejects)} rejected ({out.name}.rejects.jsonl); {money}"


def _agreement(second: Asked, opinions: list[tuple[str, State]]) -> dict[str, Any]:
    """How far the second model agrees, with Wilson's 95 % interval, over the opinions that could be read."""
    from scipy.stats import binomtest

    read = [(id, state.opinion) for id, state in opinions if state.opinion]
    agreed = sum(opinion.real for _, opinion in read)
    interval = binomtest(agreed, len(read)).proportion_ci(method="wilson") if read else None
    return {
        "model": second.model,
        "prompt_version": OPINION_VERSION,
        "agreed": agreed,
        "of": len(read),
        "share": round(agreed / len(read), 4) if read else None,
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)] if interval else None,
        "unread": len(opinions) - len(read),
        "doubted": [{"id": id, "reason": opinion.reason} for id, opinion in read if not opinion.real],
    }
