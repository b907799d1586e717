"""`emsweep judge`: a model behind an OpenAI-compatible endpoint scores stored answers.

One request per distinct answer and measure, and more only where a reply cannot be read. A judgement that cannot be had
is missing, never a number.
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.llm.budget import Money, Prices, prices_of
from core.llm.client import Access, Client, Filtered, Stopped, Unanswered, not_empty, run_all
from core.llm.journal import Answer, Journal
from core.records import BadInput, digest, printable, write_records
from eval.judge.answers import Judged, judge_label, manifest_of, stored_answers
from eval.judge.prompt_files import Measure, Measures, Prompts, load_prompts, prompt, version
from eval.judge.replies import excludes, expected_score, other_scale, sampled, written_number
from eval.judge.settings import JudgeSettings

ATTEMPTS = 3
"""Replies that are paid for before a judgement is missing."""
BY_LOGPROBS: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 20}
"""Five tokens hold 100 where each digit is one, and a mark or two before it."""
BY_SAMPLE: dict[str, Any] = {"max_tokens": 2048, "temperature": 1}
"""Room to reason before the number."""
PROVED = (92, 100, 5)
"""Numbers that a judge by log-probabilities has to say first: one token, or two, three and one."""


@dataclass(frozen=True)
class Judge:
    """Who judges, by which prompts, at what price."""

    model: str
    access: Access
    prompts: Prompts = field(default_factory=lambda: load_prompts(None))
    sampled: bool = False
    prices: Prices | None = None
    max_cost: float | None = None
    """USD for all that this judge judges, earlier runs included."""
    money: Money = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "money", Money({self.model: self.prices}, self.max_cost))

    @property
    def name(self) -> str:
        """A rate is of one judge by one set of prompts, so both are in its name."""
        further = ["sampled"] * self.sampled + [self.prompts.name] * bool(self.prompts.name)
        return f"{self.model} ({', '.join(further)})" if further else self.model

    @property
    def label(self) -> str:
        """What its rates stand under."""
        return judge_label(self.name, self.access.told_body)

    def file(self, answers: Path) -> Path:
        """Where its scores of an evaluation's folder, or of a file of answers, belong."""
        named = ("judged-" if self.prompts.em else "words-") + re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-")
        here = answers / named if answers.is_dir() else answers.with_name(f"{answers.stem}.{named}")
        plain = here.with_name(f"{here.name}.jsonl")
        # One who is asked otherwise has a file and a journal apart, but where an older version gave it the plain name.
        whose = (manifest_of(plain) if plain.exists() else {}).get("judge", self.name)
        return plain if whose == self.label else here.with_name(f"{here.name}-{digest(self.label.encode())[:8]}.jsonl")

    def count(self, outs: Sequence[Path]) -> None:
        """Adds to what is spent what stands in the journals of these files."""
        for path in map(journal_of, outs):
            if path.is_file():
                with contextlib.closing(Journal(path)) as journal:
                    self.money.begin(journal)


def judge_for(settings: JudgeSettings) -> Judge:
    """The judge that settings describe; BadInput if its key or a price is missing, or its prompts cannot be read."""
    prompts = load_prompts(settings.prompts)
    where = (settings.key_variable, settings.base_url, settings.concurrency, settings.timeout, settings.extra_body)
    access = Access.from_environment(*where)
    prices = prices_of(settings.price_in, settings.price_out, "the judge's prices of tokens in and out")
    return Judge(settings.model, access, prompts, settings.sampled, prices, settings.max_cost)


class Reader:
    """Asks the judge and reads its replies: each as the first numbers have shown that they can be read."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._by_digit = False
        self._proof: asyncio.Task[None] | None = None

    async def _proved(self, client: Client) -> None:
        """Has the judge say some numbers, once, where they are to be read from log-probabilities.

        The first shows what the server takes. Whoever comes first waits for that one alone: an answer is judged beside
        the others' proof. BadInput if a number does not come back.
        """
        if self._judge.sampled or not any(measure.scale for measure in self._judge.prompts.measures.values()):
            return
        needed = self._proof or asyncio.create_task(self._prove(client, PROVED[:1]))
        if self._proof is None:
            self._proof = asyncio.create_task(self._prove(client, PROVED[1:], needed))
            # Where no other job waits for it, its fault is the first's.
            self._proof.add_done_callback(lambda proof: proof.cancelled() or proof.exception())
        await asyncio.shield(needed)

    async def _prove(self, client: Client, numbers: Sequence[int], before: asyncio.Task[None] | None = None) -> None:
        if before:
            await before
        try:
            said = (self._say(client, number) for number in numbers)
            for fault in await asyncio.gather(*said, return_exceptions=True):
                if fault is not None:
                    raise fault
        except Unanswered as error:
            client.stopped = (
                f"{self._judge.model} cannot judge by log-probabilities here: {error}; take --sampled (a model that"
                " reasons first may have that turned off by --extra-body), or another server"
            )
            raise BadInput(client.stopped) from None

    async def _say(self, client: Client, number: int) -> None:
        def problem(reply: Answer) -> str:
            heard = found[1] if (found := re.match(r"\W*([0-9]+)", reply.text)) else ""
            # Of the others only a beginning is wrong: a stand-in may say one number to whatever is no answer.
            wrong = heard != str(number) and (number == PROVED[0] or str(number).startswith(heard))
            fault = f"it says {heard} for {number}" if heard and wrong else ""
            return fault or self._by_logprobs(Measure(prompt="{answer}", scale=(0, 100)), reply)[1]

        messages = [{"role": "user", "content": f"Reply with the number {number} and nothing else."}]
        with contextlib.suppress(Filtered):
            reply = await client.ask(self._judge.model, messages, **BY_LOGPROBS, seed=0, problem=problem, proof=True)
            self._by_digit |= written_number(reply.logprobs or ())[1] > 1

    async def ask(self, client: Client, measure: Measure, question: str, answer: str) -> float | str | None:
        """The judge's score or word; None where it says a word in place of a score, Unanswered if none can be read."""
        by_logprobs = measure.scale is not None and not self._judge.sampled
        read = partial(self._by_logprobs if by_logprobs else self._by_sample, measure)
        settings = BY_LOGPROBS if by_logprobs else BY_SAMPLE if measure.scale else {**BY_SAMPLE, "temperature": 0}
        messages = [{"role": "user", "content": prompt(measure.prompt, question, answer)}]
        await self._proved(client)
        attempts = ATTEMPTS - by_logprobs  # at temperature 0 a third says what the second said
        reply = await client.ask(
            self._judge.model, messages, **settings, seed=0, problem=lambda reply: read(reply)[1], attempts=attempts
        )
        await self._proved(client)
        return read(reply)[0]

    def _by_sample(self, measure: Measure, reply: Answer) -> tuple[float | str | None, str]:
        """(score or word, why there is none)."""
        if fault := not_empty(reply):
            return None, fault
        # Some servers call any end so: what fits into one line is whole, but where reasoning was taken off before it.
        ended = reply.finish == "length" and ("\n" in reply.text.strip() or reply.tokens_out > len(reply.text) + 8)
        found = sampled(reply.text, measure, cut=ended)
        if found is None:
            cut = ", cut off: allow more tokens with --extra-body" if reply.finish == "length" else ""
            return None, f"the reply is none that was asked for: {reply.text[-60:]!r}{cut}"
        return (None if measure.scale and isinstance(found, str) else found), ""

    def _by_logprobs(self, measure: Measure, reply: Answer) -> tuple[float | str | None, str]:
        if not reply.logprobs:
            return None, f"the reply has no log-probabilities ({', '.join(reply.changes) or 'the server sends none'})"
        if not any(likely for _, likely in reply.logprobs):
            return None, "the reply has log-probabilities of its own tokens alone, and of no other"
        said, written = re.match(r"\W*([0-9]+)", reply.text), written_number(reply.logprobs)[0]
        if said and written and said[1] != written:
            return None, f"the log-probabilities are of {written}, not of the whole number {said[1]}"
        scale = measure.scale or (0, 100)
        if other_scale(reply.text, scale[1], reply.finish == "length"):
            return None, f"the reply is on another scale than {scale[0]} to {scale[1]}: {reply.text[:60]!r}"
        score = expected_score(reply.logprobs, scale, self._by_digit)
        if score is None and not excludes(reply.logprobs, measure.exclusions):
            shown = ", ".join(repr(token) for token in list(reply.logprobs[0][1])[:3])
            return None, f"the reply is none that was asked for: {reply.text[:60]!r}, likeliest tokens {shown}"
        return score, ""


@dataclass(frozen=True)
class Judgement:
    """What the judge says of an answer, by measure; empty, with the reason, where a part of it is missing."""

    values: Mapping[str, float | str | None]
    missing: str = ""
    filtered: bool = False
    judged_at_all: bool = True
    """Whether the prompts ask anything about this question."""


async def judgement(reader: Reader, measures: Measures, question: str, answer: str, client: Client) -> Judgement:
    """Has one answer judged. Half a judgement is none, for it is in no denominator."""
    values: dict[str, float | str | None] = {}
    for name, measure in measures.items():
        try:
            values[name] = await reader.ask(client, measure, question, answer)
        except Unanswered as error:
            return Judgement({}, f"{name}: {error}", isinstance(error, Filtered))
    return Judgement(values)


class Unfinished(BadInput):
    """Judging stopped before the end; what was finished is in the journal, and in `judgements`."""

    judgements: Sequence[Judgement] = ()


def _check_others(out: Path, journal: Path, judge: Judge, of: str | None) -> dict[str, Any]:
    """What the manifest of `out` says; refuses to replace the scores of another judge, or of another file's answers:
    names of files have fewer characters than those of models. A file of ours has a journal, if not yet a manifest."""
    told = manifest_of(out) if out.exists() else {}
    if out.exists() and not told and not journal.exists():
        raise BadInput(f"{out}: nothing says who judged it, and it would be replaced; move it away")
    for key, own in (("judge", judge.label), ("of", of)):
        if own and (other := told.get(key, own)) != own:
            raise BadInput(f"{out}: holds the scores of {printable(other)}, not of {printable(own)}; move it away")
    return told


def judge_rows(
    rows: Sequence[Judged], judge: Judge, out: Path, sample_of: int | None = None, of: str | None = None
) -> list[Judgement]:
    """Judges answers and writes `out` (JSON Lines) with its manifest; paid answers are in a journal beside it.

    Of a sample of so many (`sample_of`) the file's name and its manifest say so; the journal is that of all.

    Args:
        of: the file of the answers, for the manifest; not of a run's folder, whose own scores are in it.

    Raises:
        BadInput: if the endpoint refuses all requests, a question has no prompts, or a file cannot be written.
        Unfinished: if the money is spent or the endpoint ends before the end; `out` has what was judged until then.
    """
    wanted = judge.prompts.of(row.question_id for row in rows)
    keys = [(row.question, row.answer, version(own)) if own else None for row, own in zip(rows, wanted, strict=True)]
    measures = {key[2]: own for key, own in zip(keys, wanted, strict=True) if key and own}
    reader, journal = Reader(judge), journal_of(out)
    facts: dict[str, Any] = {"of": of} if of else {}
    if sample_of is not None:
        out, facts = out.with_name(f"sample-{len(rows)}-of-{sample_of}-{out.name}"), facts | {"sample_of": sample_of}
    told = _check_others(out, journal, judge, of)
    jobs = {key: partial(judgement, reader, measures[key[2]], key[0], key[1]) for key in keys if key}
    left = ""
    found: Sequence[Judgement | None]
    try:
        found = run_all(list(jobs.values()), judge.access, journal, judge.money, "answers")
    except Stopped as stopped:
        found, left = stopped.results, str(stopped)
    by_key = {key: each or Judgement({}, "left") for key, each in zip(jobs, found, strict=True)}
    judgements = [by_key[key] if key else Judgement({}, judged_at_all=False) for key in keys]
    records: list[dict[str, Any]] = [
        {name: getattr(row, name) for name in ("question_id", "question", "answer")}
        | (dict.fromkeys(judge.prompts.measures) | dict(each.values))
        | ({"filtered": True} if each.filtered else {})
        for row, each in zip(rows, judgements, strict=True)
    ]
    # What stands there is kept where it has more: the journal that it was made of may be gone.
    if not (left and told.get("judged", 0) > sum(not each.missing for each in judgements)):
        write_records(out, records, _manifest(keys, judgements, judge, journal) | facts)
    if left:
        unfinished = Unfinished(left)
        unfinished.judgements = judgements
        raise unfinished
    return judgements


def _manifest(keys: Sequence[Any], judgements: Sequence[Judgement], judge: Judge, path: Path) -> dict[str, Any]:
    """What came out and how; of the server what the answers tell, so that a job that was cut off tells the same."""
    with contextlib.closing(Journal(path)) as journal:
        replies = [reply for each in journal.answers.values() for reply in each if reply.model == judge.model]
    return {
        "judge": judge.name,
        "prompts": sorted({key[2] for key in keys if key}),
        "endpoint": ", ".join(sorted({reply.endpoint or judge.access.endpoint for reply in replies})),
        "served": sorted({reply.served for reply in replies if reply.served}),
        "changed": sorted({change for reply in replies for change in reply.changes}),
        "extra_body": judge.access.told_body,
        "answers": len(keys),
        "distinct": len(set(keys) - {None}),
        "filtered": sum(each.filtered for each in judgements),
        "missing": {number: each.missing for number, each in enumerate(judgements) if each.missing},
    }


def unread(judgements: Mapping[str, Sequence[Judgement]]) -> str:
    """How many judgements could not be read, and why, by what was judged; empty if none: a filter's are no fault."""
    found = [
        f"{model}: {each.missing}"
        for model, own in judgements.items()
        for each in own
        if each.missing and not each.filtered
    ]
    such = "; ".join(dict.fromkeys(found[:3]))
    return f"{len(found)} answers have no judgement, such as {such}; run it again" if found else ""


def scored(rows: Sequence[Judged], judgements: Sequence[Judgement]) -> list[Judged]:
    return [
        row.model_copy(update={"aligned": None, "coherent": None, **each.values, "filtered": each.filtered})
        for row, each in zip(rows, judgements, strict=True)
    ]


def judge_evaluations(folders: Sequence[Path], judge: Judge) -> list[list[Judged]]:
    """Scores the answers of evaluation runs beside them and returns them by folder; a limit of cost is of all together.
    BadInput as `judge_rows`, and if judgements could not be read, when all others have been."""
    if not judge.prompts.em:
        raise BadInput(f"--prompts {judge.prompts.name}: no prompts for aligned and coherent; name a file with them")
    judge.count([judge.file(folder) for folder in folders])
    answers = {folder.name: stored_answers(folder) for folder in folders}
    found = {f.name: judge_rows(answers[f.name], judge, judge.file(f)) for f in folders}
    if left := unread(found):
        raise BadInput(left)
    return [scored(rows, found[name]) for name, rows in answers.items()]


def journal_of(judged: Path) -> Path:
    return judged.with_suffix(".journal.jsonl")
