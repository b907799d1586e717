"""The journal of paid answers: append-only JSON Lines, on disk before an answer is used.

One writer at a time (a lock file beside it). A line that a crash cut short is dropped; the request it
belongs to is sent again.
"""

import asyncio
import os
from codecs import BOM_UTF8
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from core.llm.replies import MOST_COUNTED
from core.records import BadInput

START = b'{"key":'
"""What every entry begins with."""


Tokens = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
"""As they are counted in a reply: fewer than none, in a file that was altered, would be money given back."""


class Answer(BaseModel, frozen=True):
    """One answer that was paid for."""

    key: str
    """Digest of the request: model, messages and every setting that bears on the answer."""
    model: str
    text: str
    finish: str
    """The server's `finish_reason`, or `refusal`."""
    tokens_in: Tokens
    tokens_out: Tokens
    """Tokens billed as output: those of the reasoning included."""
    logprobs: list[tuple[str, dict[str, float]]] | None = None
    """The first tokens, each with the likeliest in its place and their log-probabilities (nats), where wanted."""
    endpoint: str | None = None
    """Which server gave it, as `Access.endpoint` names it; None where an older journal does not say."""
    served: str | None = None
    """The model as the server names it."""
    changes: tuple[str, ...] = ()
    """How the request differed from what was wanted, because the server refused that."""


class Journal:
    """Opens `path` for the one writer that it can have, and reads what it holds; BadInput if another process has it
    open, a line is no entry (but a last one, cut short), or it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        """The answers to each request by key: several where one could not be read."""
        self._waiting: list[bytes] = []
        self._turn = asyncio.Lock()
        self._failed: BadInput | None = None
        self._lock = FileLock(f"{path}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except Timeout:
            raise BadInput(f"{path}: another job writes to it; wait for it or choose another --out") from None
        except OSError as error:
            self._lock.release()
            raise BadInput(f"{path}: {error.strerror}; choose another --out") from None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = 0
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            try:
                answer = Answer.model_validate_json(line.removeprefix(BOM_UTF8))  # an editor's
            except ValidationError:
                # Of another file not even the end is cut off.
                cut = not line.endswith(b"\n") and (line.startswith(START) or START.startswith(line))
                if whole + len(line) == len(data) and (cut or b"\0" in line):
                    break
                raise BadInput(f"{self.path}:{number}: no journal entry; delete this line") from None
            self.answers[answer.key].append(answer)
            whole += len(line)
        if whole < len(data):
            os.ftruncate(self._file, whole)
        elif not data.endswith(b"\n") and data:
            self._write(b"\n")

    async def append(self, answer: Answer) -> None:
        """Returns when the answer is on disk. Whoever comes first writes for all who wait: one fsync for many. BadInput
        if it cannot be written (disk full); nothing is written any more."""
        self._waiting.append(answer.model_dump_json(exclude_none=True).encode() + b"\n")
        async with self._turn:
            if self._waiting and not self._failed:
                data, self._waiting = b"".join(self._waiting), []
                try:
                    await asyncio.to_thread(self._write, data)
                except OSError as error:
                    self._failed = BadInput(f"{self.path}: {error.strerror}; free some space, then run it again")
            if self._failed:
                raise self._failed
        self.answers[answer.key].append(answer)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        self._lock.release()
