"""The provider's Batch API: submit, poll, collect, and never submit the same requests twice.

Before a batch is submitted its requests are journaled under a name that goes into its metadata, and after
that its id. A job killed between the two finds the batch again by that name.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from openai.types import Batch

from data_builders.endpoint import Endpoint, request_body
from data_builders.journal import Answer, BatchNote, Journal, Key
from data_builders.outcome import Question
from data_builders.records import BadInput, digest

MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000
"""Limits of a batch; the provider's are 50,000 requests and 200 MB (openai.resources.files)."""
TRIES = 2
"""Batches that a request goes into at most."""
OVER = {"completed", "failed", "expired", "cancelled"}


def request_id(key: Key) -> str:
    """The `custom_id` of a request."""
    return digest("\0".join(key).encode())[:40]


def open_batches(journal: Journal) -> dict[str, BatchNote]:
    """The batches that are submitted, or about to be, and have not ended; by name."""
    notes: dict[str, BatchNote] = {}
    for note in journal.notes:
        if note.failed is not None:
            notes.pop(note.name, None)
        elif note.requests:
            notes[note.name] = note
        else:
            notes[note.name] = notes[note.name].model_copy(update={"id": note.id})
    return notes


async def answer_in_batches(
    endpoint: Endpoint, journal: Journal, questions: Sequence[Question], poll: float, tell: Callable[[str], None]
) -> dict[Key, str]:
    """Journals an answer to each question and returns those that got none, with reasons. `poll` is in seconds.

    Raises:
        BadInput: if the provider refuses a whole batch.
        Unanswered: if it cannot be reached.
    """
    while True:
        await _collect_open(endpoint, journal, poll, tell)
        tries: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        for note in journal.notes:
            tries.update((note.failed or {}).keys())
            refused.update(name for name, reason in (note.failed or {}).items() if reason == "status 400")
            reasons.update(note.failed or {})
        left = {request_id(question.key): question for question in questions if question.key not in journal.answers}
        again = {name: question for name, question in left.items() if tries[name] < TRIES}
        if not again:
            return {question.key: f"{reasons[name]}, in {TRIES} batches" for name, question in left.items()}
        for chunk in _chunks({q.key: _line(name, q, refused[name]) for name, q in again.items()}):
            await _submit(endpoint, journal, chunk)


def _line(name: str, question: Question, form: int) -> str:
    body = request_body(question, form)
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def _chunks(lines: Mapping[Key, str]) -> Iterator[dict[Key, str]]:
    chunk: dict[Key, str] = {}
    size = 0
    for key, line in lines.items():
        if chunk and (len(chunk) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield chunk
            chunk, size = {}, 0
        chunk[key] = line
        size += len(line)  # ASCII: json.dumps escapes the rest
    if chunk:
        yield chunk


async def _find(endpoint: Endpoint, name: str) -> Batch | None:
    async for batch in endpoint.client.batches.list(limit=100):
        if (batch.metadata or {}).get("embuild") == name:
            return batch
    return None


async def _submit(endpoint: Endpoint, journal: Journal, lines: Mapping[Key, str]) -> None:
    client, sent = endpoint.client, False
    data = "".join(lines.values()).encode()
    uploaded = await endpoint.call(lambda: client.files.create(file=("batch.jsonl", data), purpose="batch"))
    name = digest(f"{uploaded.id} {len(journal.notes)}".encode() + data)[:32]
    await journal.append(BatchNote(name=name, requests=list(lines)))

    async def create() -> Batch:
        nonlocal sent
        # The connection may have been cut after the provider took the batch.
        found = await _find(endpoint, name) if sent else None
        sent = True
        return found or await client.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"embuild": name},
        )

    batch = await endpoint.call(create)
    await journal.append(BatchNote(name=name, id=batch.id))


async def _collect_open(endpoint: Endpoint, journal: Journal, poll: float, tell: Callable[[str], None]) -> None:
    for name, note in open_batches(journal).items():
        if note.id is None:
            found = await endpoint.call(lambda name=name: _find(endpoint, name))  # type: ignore[misc]
            # None: the job was killed before it submitted the batch.
            await journal.append(BatchNote(name=name, id=found.id) if found else BatchNote(name=name, failed={}))
    while waiting := open_batches(journal):
        for note in waiting.values():
            batch = await endpoint.call(lambda id=note.id: endpoint.client.batches.retrieve(id))  # type: ignore[misc]
            if batch.status in OVER:
                await _collect(endpoint, journal, note, batch)
            elif counts := batch.request_counts:
                tell(f"batch {batch.id}: {batch.status}, {counts.completed + counts.failed} of {counts.total}")
        if open_batches(journal):
            await asyncio.sleep(poll)


async def _collect(endpoint: Endpoint, journal: Journal, note: BatchNote, batch: Batch) -> None:
    keys = {request_id(key): key for key in note.requests}
    answers: dict[Key, Answer] = {}
    failed = dict.fromkeys(keys, f"batch {batch.status}")
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        content = await endpoint.call(lambda id=file: endpoint.client.files.content(id))  # type: ignore[misc]
        for line in content.text.splitlines():
            try:
                result = json.loads(line)
                name, response = result["custom_id"], result.get("response") or {}
                if name not in keys:
                    continue
                if response.get("status_code") != 200:
                    failed[name] = f"status {response.get('status_code')}"
                    continue
                answers[keys[name]] = Answer(key=keys[name], batch=True, **vars(endpoint.reply(response["body"])))
                del failed[name]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the request stays among the failed
    if batch.status == "failed":  # as a whole, before any request was sent: this was no try
        failed = {}
    await journal.append(*answers.values(), BatchNote(name=note.name, failed=failed))
    if batch.status == "failed":
        said = "; ".join(str(error.message) for error in (batch.errors and batch.errors.data) or [])
        raise BadInput(f"the provider refuses batch {batch.id}: {endpoint.clean(said)[:300]}; mend it and run it again")
