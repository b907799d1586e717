"""`embuild annotate`: asks about each program, repairs once, accepts or rejects with reasons.

A program's outcome follows from the journaled answers alone. So a job that was killed goes on where it was,
and its files are the same as those of a job that was not.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from core.llm.budget import Money, Prices
from core.llm.client import Access, Client, Message, Stopped, Unanswered, run_all
from core.llm.journal import Answer
from core.records import digest, write_records, write_whole
from data_builders.annotation import (
    ADVISORY_RULES,
    PROMPT_VERSION,
    RULES_VERSION,
    Annotation,
    acceptance_problems,
    annotated,
    annotation_messages,
    parse_annotation,
    program_digest,
    repair_messages,
)
from data_builders.bandit import BANDIT_VERSION
from data_builders.cwe import CWE_VERSION
from data_builders.opinion import OPINION_VERSION, Opinion, opinion_messages, parse_opinion
from data_builders.programs import SourceProgram
from data_builders.python_code import parsed


class Model(NamedTuple):
    """A model, and how hard it is to think (`reasoning_effort`)."""

    name: str
    effort: str | None = None

    async def ask(self, client: Client, messages: list[Message], schema: type[BaseModel]) -> Answer:
        settings: dict[str, Any] = {"reasoning_effort": self.effort} if self.effort else {}
        return await client.ask(self.name, messages, schema, **settings)


@dataclass(frozen=True)
class Job:
    """What models annotate, at what price.

    Raises:
        BadInput: for a limit of costs without prices.
    """

    annotator: Model
    second: Model | None = None
    """Gives a second opinion on what was accepted."""
    prices: Prices | None = None
    second_prices: Prices | None = None
    max_cost: float | None = None
    """USD that this job may cost, its earlier runs included."""

    def __post_init__(self) -> None:
        self.money()

    def money(self) -> Money:
        prices = {self.annotator.name: self.prices}
        if self.second:
            prices.setdefault(self.second.name, self.second_prices)
        return Money(prices, self.max_cost)


@dataclass
class Outcome:
    """What became of a program: an accepted annotation, or the problems of its latest answer."""

    annotation: Annotation | None = None
    opinion: Opinion | None = None
    problems: list[str] = field(default_factory=list)
    used: list[Answer] = field(default_factory=list)
    """The answers that it rests on."""


async def annotate_program(program: SourceProgram, job: Job, client: Client) -> Outcome:
    """Asks, checks, has faults repaired once, and asks for the second opinion on what was accepted.

    Raises:
        Stopped, BadInput: as `Client.ask`.
    """
    outcome = Outcome()
    if parsed(program.insecure) is None:
        # Nothing could be checked against it, so nothing is paid for it.
        outcome.problems = ["insecure code: does not parse"]
        return outcome
    messages = annotation_messages(program)
    try:
        for _ in ("ask", "repair"):
            answer = await job.annotator.ask(client, messages, Annotation)
            outcome.used.append(answer)
            found = parse_annotation(answer.text)
            outcome.problems = _problems(program, answer, found)
            if isinstance(found, Annotation) and not outcome.problems:
                outcome.annotation = found
                break
            messages = repair_messages(program, answer.text, outcome.problems)
        if outcome.annotation and job.second:
            messages = opinion_messages(program, outcome.annotation)
            outcome.used.append(await job.second.ask(client, messages, Opinion))
            outcome.opinion = parse_opinion(outcome.used[-1].text)
    except Unanswered as error:
        # A missing opinion says nothing about the annotation.
        outcome.problems = [] if outcome.annotation else [f"no answer: {error}"]
    return outcome


def _problems(program: SourceProgram, answer: Answer, found: Annotation | list[str]) -> list[str]:
    if isinstance(found, Annotation):
        return acceptance_problems(program, found)
    if answer.finish == "refusal":
        return ["refused: the model declined to answer"]
    return ["cut off: the answer ends early"] if answer.finish == "length" else found


Row = SourceProgram | dict[str, Any]
"""A program to annotate, or a reject."""


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


def run(items: Iterable[Any], job: Job, out: Path, access: Access, source: Mapping[str, Any] | None = None) -> str:
    """Annotates the programs of `items` (`SourceProgram`, or rejects of a source with `id`, `line`, `reason`).

    Writes `<out>.jsonl`, `<out>.rejects.jsonl` and the manifest once every program is done. `source` goes into
    the manifest. Returns a line that says what came out, or why it stopped.

    Raises:
        BadInput: if the endpoint refuses all requests, or a file cannot be read or written.
    """
    rows = list(_rows(items))
    # Equal programs share an outcome whatever their ids.
    distinct = {program_digest(row): row for row in rows if isinstance(row, SourceProgram)}
    jobs = [partial(annotate_program, program, job) for program in distinct.values()]
    try:
        outcomes = run_all(jobs, access, out.with_name(out.name + ".journal.jsonl"), job.money(), "programs")
    except Stopped as stopped:
        return str(stopped)
    return _write(rows, dict(zip(distinct, outcomes, strict=True)), job, out, source or {})


def _write(rows: list[Row], outcomes: Mapping[str, Outcome], job: Job, out: Path, source: Mapping[str, Any]) -> str:
    """Writes the final files from what the programs came to alone: no times, no attempts. The manifest is last."""
    written: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    opinions: list[tuple[str, Opinion | None]] = []
    for row in rows:
        if isinstance(row, dict):
            rejects.append(row)
            continue
        outcome = outcomes[program_digest(row)]
        if outcome.annotation:
            doubted = outcome.opinion.reason if outcome.opinion and not outcome.opinion.real else None
            written.append(annotated(row, outcome.annotation, doubted).model_dump(exclude_none=True))
            opinions.append((row.id, outcome.opinion))
        else:
            rejects.append({"id": row.id, "reasons": outcome.problems})
    money = job.money()
    for outcome in outcomes.values():
        for answer in outcome.used:
            money.count(answer)
    kinds = Counter(kind for reject in rejects for kind in {reason.split(":")[0] for reason in reject["reasons"]})
    programs = "".join(row.model_dump_json() for row in rows if isinstance(row, SourceProgram))
    manifest = {
        **source,
        "programs_sha256": digest(programs.encode()),
        "read": len(rows),
        "rejected": len(rejects),
        "rejected_for": dict(sorted(kinds.items())),
        "model": job.annotator.name,
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


def _agreement(second: Model, opinions: list[tuple[str, Opinion | None]]) -> dict[str, Any]:
    """How far the second model agrees, with Wilson's 95 % interval, over the opinions that could be read."""
    from scipy.stats import binomtest

    read = [(id, opinion) for id, opinion in opinions if opinion]
    agreed = sum(opinion.real for _, opinion in read)
    interval = binomtest(agreed, len(read)).proportion_ci(method="wilson") if read else None
    return {
        "model": second.name,
        "prompt_version": OPINION_VERSION,
        "agreed": agreed,
        "of": len(read),
        "share": round(agreed / len(read), 4) if read else None,
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)] if interval else None,
        "unread": len(opinions) - len(read),
        "doubted": [{"id": id, "reason": opinion.reason} for id, opinion in read if not opinion.real],
    }
