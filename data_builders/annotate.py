"""`embuild annotate`: asks about each program, repairs once, accepts or rejects with reasons.

A program's outcome follows from the journaled answers alone. So a job that was killed goes on where it was,
and its files are the same as those of a job that was not.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from core.llm.adapt import response_format
from core.llm.budget import Money, Prices
from core.llm.client import Access, Client, Filtered, Message, Stopped, Unanswered, run_all
from core.llm.journal import Answer
from core.records import BadInput, count, digest, manifest_path, one_line, read_json, write_records, write_whole
from data_builders import annotation as rules
from data_builders.annotation import PYTHON_CHECKS, TASK, Annotation, Opinion
from data_builders.programs import SourceProgram


class Model(NamedTuple):
    """A model, and how hard it is to think (`reasoning_effort`)."""

    name: str
    effort: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {"reasoning_effort": self.effort} if self.effort else {}


@dataclass(frozen=True)
class Job:
    """What models annotate, at what price; BadInput for a limit without prices, or an opinion on what is no code."""

    annotator: Model
    second: Model | None = None
    """Gives a second opinion on what was accepted."""
    prices: Prices | None = None
    second_prices: Prices | None = None
    max_cost: float | None = None
    """USD that this job may cost, its earlier runs included."""
    task: str = TASK
    """What the prompt asks for, before the form of the answer."""
    domain: str | None = None
    """What is annotated; None is code."""

    def __post_init__(self) -> None:
        if self.domain and self.second:
            raise BadInput(f"--second-opinion: is given on code alone, not on {self.domain}; leave it out")
        self.money()

    def money(self) -> Money:
        prices = {self.annotator.name: self.prices}
        if self.second:
            if self.second.name == self.annotator.name and self.second_prices not in (None, self.prices):
                raise BadInput("--second-price-in and --second-price-out: are of the same model; leave them out")
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


@dataclass
class Annotator:
    """Asks about programs, one coroutine for each."""

    job: Job
    readable: set[str] = field(default_factory=set)
    """The models that have given an answer with JSON in it."""

    async def annotate(self, program: SourceProgram, client: Client) -> Outcome:
        """Asks, checks, has faults repaired once, and asks for the second opinion on what was accepted. Stopped and
        BadInput as of `Client.ask`."""
        # Where nothing could be accepted, nothing is paid.
        outcome = Outcome(problems=rules.source_problems(program))
        if outcome.problems:
            return outcome
        messages = rules.annotation_messages(program, self.job.task)
        try:
            for last in (False, True):
                answer = await self._ask(client, self.job.annotator, messages, rules.kind_of_answer(program), last)
                outcome.used.append(answer)
                outcome.annotation, outcome.problems = _judged(program, answer)
                if outcome.annotation or outcome.problems[0].startswith("no weakness"):
                    break
                messages = rules.repair_messages(messages, answer.text, outcome.problems)
            if outcome.annotation and self.job.second:
                messages = rules.opinion_messages(program, outcome.annotation)
                outcome.used.append(await self._ask(client, self.job.second, messages, Opinion, last=True))
                outcome.opinion = rules.parse_opinion(outcome.used[-1].text)
        except Unanswered as error:
            kind = "content filter" if isinstance(error, Filtered) else "no answer"
            # A missing opinion says nothing about the annotation.
            outcome.problems = [] if outcome.annotation else [f"{kind}: {error}"]
        return outcome

    async def _ask(
        self, client: Client, model: Model, messages: list[Message], kind: type[BaseModel], last: bool
    ) -> Answer:
        """The answer, be it without JSON: that can be repaired.

        It counts as none for the client, though, while the model has given no other (a few such stop the job), and
        as the `last` one: the next run asks again.
        """
        latest: list[Answer] = []

        def problem(answer: Answer) -> str:
            latest[:] = [answer]
            if not (why := _unreadable(answer)):
                self.readable.add(model.name)
            return why if last or model.name not in self.readable else ""

        try:
            return await client.ask(model.name, messages, kind, problem=problem, **model.settings)
        except Unanswered:
            if not latest:
                raise
            return latest[0]


def _unreadable(answer: Answer) -> str:
    if answer.finish == "refusal":
        return f"the model declined to answer: {one_line(answer.text, 100)}"
    if rules.json_object(answer.text) is not None:
        return ""
    cut = "cut off, allow more tokens with --extra-body; " if answer.finish == "length" else ""
    return f"{cut}no JSON object in {one_line(answer.text, 100)!r}"


def _judged(program: SourceProgram, answer: Answer) -> tuple[Annotation | None, list[str]]:
    """The annotation in an answer, or why none is accepted."""
    found = rules.parse_annotation(answer.text, program.secure, program.domain)
    if isinstance(found, Annotation):
        problems = rules.acceptance_problems(program, found)
        return None if problems else found, problems
    ends = {"refusal": "refused: the model declined to answer", "length": "cut off: the answer ends early"}
    return None, [ends[answer.finish]] if answer.finish in ends else found


def _programs(rows: Iterable[Any]) -> dict[str, SourceProgram]:
    return {row.id: row for row in rows if isinstance(row, SourceProgram)}


def _reasons(row: Any) -> list[str]:
    """Why a row is rejected before anything is asked: a reject of the source, or a program of no use."""
    return rules.source_problems(row) if isinstance(row, SourceProgram) else [f"source: {row.reason}"]


def _first(rows: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """The first rows that hold so many programs."""
    places = (place for place, row in enumerate(rows, 1) if isinstance(row, SourceProgram))
    return rows if limit is None else rows[: next(islice(places, limit - 1, None), len(rows))]


def first_request(items: Iterable[Any], job: Job, limit: int | None = None) -> tuple[dict[str, Any], str]:
    """The body of the first request that a job would send, and what it is about; BadInput if that is nothing."""
    rows = _first(list(items), limit)
    programs = [row for row in rows if not _reasons(row)]
    if not programs:
        raise _all_rejected(list(map(_reasons, rows)))
    requests = [rules.annotation_messages(program, job.task) for program in programs]
    body = {"model": job.annotator.name, "messages": requests[0], **job.annotator.settings}
    tokens = sum(len(message["content"]) for request in requests for message in request) // 4
    said = f"{len(programs):,} programs of {len(rows):,} rows, about {tokens:,} tokens to read; nothing was sent"
    return {**body, "response_format": response_format(rules.kind_of_answer(programs[0]))}, said


def _all_rejected(reasons: Sequence[Sequence[str]]) -> BadInput:
    first = Counter(why[0] for why in reasons if why)
    common = f"; most often: {first.most_common(1)[0][0]}" if first else ""
    return BadInput(f"all {len(reasons)} rows are rejects{common}; mend the source, its form, or the model")


class Done(NamedTuple):
    """What a run says at its end, how many of its rows are left, and how many more got no answer."""

    text: str
    left: int
    unanswered: int = 0


def run(
    items: Iterable[Any],
    job: Job,
    out: Path,
    access: Access,
    source: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Done:
    """Annotates the programs of `items` (`SourceProgram`, or rejects of a source with `id`, `line`, `reason`).

    Writes `<out>.jsonl`, `<out>.rejects.jsonl` and the manifest once every program is done, or of those that are
    done when no request can be sent any more, unless more stand there. `source` goes into the manifest. `limit` makes
    a pilot of the first rows that hold so many programs; it says what the others would cost. BadInput if the endpoint
    refuses all requests, a file cannot be read or written, or every row is a reject.
    """
    if not out.name:
        raise BadInput(f"--out {out}: is a folder; add the stem of the files, such as {out / 'annotated'}")
    every = list(items)
    rows = _first(every, limit)
    read = there = 0
    with suppress(OSError, ValueError, KeyError, TypeError):  # of another's making
        told = read_json(manifest_path(_beside(out, "jsonl")))
        read, there = count(told["read"]), count(told["written"])
    if limit is not None and read > len(rows):
        raise BadInput(f"--limit {limit}: {out}.jsonl is of {read} rows, and would lose some; name another --out")
    programs, money, stopped = _programs(rows), job.money(), ""
    annotator = Annotator(job)
    jobs = [partial(annotator.annotate, program) for program in programs.values()]
    try:
        results: Sequence[Outcome | None] = run_all(jobs, access, _beside(out, "journal.jsonl"), money, "programs")
    except Stopped as error:
        results, stopped = error.results, str(error)
    outcomes = {id: outcome for id, outcome in zip(programs, results, strict=True) if outcome}
    if stopped and not outcomes:
        return Done(stopped, len(rows))
    used = [answer for outcome in outcomes.values() for answer in outcome.used]
    spent = job.money()  # on what is written here alone; `money` is for all that was ever asked
    for answer in used:
        spent.count(answer)
    done = [row for row in rows if not isinstance(row, SourceProgram) or row.id in outcomes]
    left, endpoints = len(rows) - len(done), {answer.endpoint or access.endpoint for answer in used}
    manifest = {
        **(source or {}),
        "endpoint": ", ".join(sorted(endpoints)),
        "extra_body": access.told_body,
        "limit": limit,
        "left": left,
        "model": job.annotator.name,
        "served": sorted({answer.served or answer.model for answer in used}),
        "changes": sorted({change for answer in used for change in answer.changes}),
        "effort": job.annotator.effort,
        "prompt_version": rules.prompt_version(job.task, job.domain),
        "tokens_in": spent.tokens_in,
        "tokens_out": spent.tokens_out,
        "cost_usd": round(spent.usd, 6) if spent.known else None,
    }
    text = f"{_write(done, outcomes, job.second, out, manifest, there)}; {money}"
    if limit is not None and (rest := len(_programs(every).keys() - programs.keys())):
        share = rest / max(1, len(outcomes))
        usd = f", ${spent.usd * share:.2f}" if spent.known else ""
        tokens = f"{(spent.tokens_in + spent.tokens_out) * share:,.0f} tokens"
        text += f"\nthe other {rest:,} programs: about {tokens}{usd}; run it again without --limit to go on"
    first = (problem for outcome in outcomes.values() for problem in outcome.problems[:1])
    unanswered = [problem for problem in first if problem.startswith("no answer:")]
    if unanswered:
        text += f"\n{len(unanswered)} programs got no answer, such as: {unanswered[0]}; run it again"
    unread = sum(bool(job.second and each.annotation and not each.opinion) for each in outcomes.values())
    if unread:
        text += f"\n{unread} programs have no second opinion that can be read; run it again"
    return Done(f"{text}\n{stopped}".strip(), left, len(unanswered) + unread)


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _write(
    rows: Sequence[Any],
    outcomes: Mapping[str, Outcome],
    second: Model | None,
    out: Path,
    manifest: dict[str, Any],
    there: int,
) -> str:
    """Writes the final files from what the programs came to alone: no times, no attempts. The manifest is last. What
    stands there is kept where it has more (`there` programs) and nothing is accepted, or something left."""
    accepted: list[SourceProgram] = []
    opinions: list[Opinion | None] = []
    written: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for row in rows:
        if not isinstance(row, SourceProgram):
            rejects.append({"id": row.id, "line": row.line, "reasons": _reasons(row)})
        elif annotation := outcomes[row.id].annotation:
            opinion = outcomes[row.id].opinion
            doubted = (opinion.reason.strip() or "no reason given") if opinion and not opinion.real else None
            written.append(rules.annotated(row, annotation, doubted).model_dump(exclude_none=True))
            accepted.append(row)
            opinions.append(opinion)
        else:
            rejects.append({"id": row.id, "reasons": outcomes[row.id].problems})
    sources = sum(program.secure is not None for program in accepted)
    unchecked = Counter(program.language for program in accepted if program.language)
    kinds = Counter(kind for reject in rejects for kind in {reason.split(":")[0] for reason in reject["reasons"]})
    programs = "".join(row.model_dump_json(exclude_none=True) for row in rows if isinstance(row, SourceProgram))
    not_made = {"checks": PYTHON_CHECKS, "programs": dict(sorted(unchecked.items()))} if unchecked else {}
    manifest |= {
        "programs_sha256": digest(programs.encode()),
        "read": len(rows),
        "rejected": len(rejects),
        "rejected_for": dict(sorted(kinds.items())),
        "secure_code": {"source": sources, "annotator": len(written) - sources},
        "second_opinion": second and _agreement(second, opinions),
        "rules": {**rules.RULES, "not_made": not_made},
    }
    path = _beside(out, "jsonl")
    kept = len(written) < there and bool(manifest["left"] or not written) and path.is_file()
    stays = f"; {path} stays as it is, with {there} programs" if kept else ""
    if not kept:
        text = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
        write_whole(_beside(out, "rejects.jsonl"), text)
        write_records(path, written, manifest)
    if not written:
        raise BadInput(f"{_all_rejected([reject['reasons'] for reject in rejects])}{stays}")
    if kept:
        return f"{len(written)} programs so far{stays}"
    doubted = f", {sum('doubted' in record for record in written)} of them doubted" if second else ""
    bare = f"; not made for {unchecked.total()} that are not Python: {', '.join(PYTHON_CHECKS)}" if unchecked else ""
    return f"{path}: {len(written)} programs{doubted}; {len(rejects)} rejected ({out.name}.rejects.jsonl){bare}"


def _agreement(second: Model, opinions: list[Opinion | None]) -> dict[str, Any]:
    """How far the second model agrees, with Wilson's 95 % interval, over the opinions that could be read."""
    from scipy.stats import binomtest

    read = [opinion.real for opinion in opinions if opinion]
    interval = binomtest(sum(read), len(read)).proportion_ci(method="wilson") if read else None
    return {
        "model": second.name,
        "prompt_version": rules.OPINION_VERSION,
        "agreed": sum(read),
        "of": len(read),
        "share": round(sum(read) / len(read), 4) if read else None,
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)] if interval else None,
        "unread": len(opinions) - len(read),
    }
