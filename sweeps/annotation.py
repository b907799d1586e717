"""The annotation of a source, as a step of an experiment: whether it is whole, what is left of it, what it has cost."""

import contextlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.download import told_address
from core.llm.client import Access, Message
from core.llm.journal import Journal
from core.records import BadInput, digest, file_digest, manifest_path, read_json
from data_builders.annotate import Job
from data_builders.annotate import run as annotate
from data_builders.annotation import annotation_messages, kind_of_answer, prompt_version, source_problems
from data_builders.programs import SourceProgram
from data_builders.sources import read_source, told_source
from sweeps.plan.estimate import Range, between
from sweeps.run.process import RunFailed, say
from sweeps.run.workload import BYTES_PER_TOKEN
from sweeps.sets import FOLDER, slug

WRITTEN: Range = (700.0, 3000.0)
"""Tokens that a model writes about a program: the form alone, or after long reasoning."""
UNSETTLED = {"no answer", "content filter"}
"""Why programs were rejected that are asked about again."""


@dataclass(frozen=True)
class Annotation:
    """The annotation of a source by a model; its files, the journal among them, bear both names."""

    source: str
    job: Job
    access: Access

    @cached_property
    def items(self) -> Sequence[Any]:
        """As `read_source` gives them, programs and rejects; BadInput if it cannot be read, or has no program."""
        rows: list[Any] = list(read_source(self.source))
        if not any(isinstance(row, SourceProgram) for row in rows):
            raise BadInput(
                f"{told_address(self.source)}: {len(rows)} rows, and no program among them, as: {rows[0].reason}"
            )
        return rows

    @property
    def out(self) -> Path:
        return FOLDER / f"{slug(Path(told_address(self.source)).stem)}-by-{slug(self.job.annotator.name)}"

    @property
    def file(self) -> Path:
        return self.out.with_name(f"{self.out.name}.jsonl")

    @property
    def programs(self) -> list[SourceProgram]:
        return [item for item in self.items if isinstance(item, SourceProgram)]

    @property
    def whole(self) -> bool:
        """Whether the file stands there, of these programs by this model, and every program has had its answer."""
        content = "".join(program.model_dump_json(exclude_none=True) for program in self.programs)
        wanted: dict[str, Any] = {"programs_sha256": digest(content.encode()), "limit": None, "left": 0}
        wanted |= {"model": self.job.annotator.name, "effort": self.job.annotator.effort}
        wanted["prompt_version"] = prompt_version(self.job.task)
        try:
            manifest = read_json(manifest_path(self.file))
            settled = not UNSETTLED & manifest["rejected_for"].keys()
            same = all(manifest[key] == value for key, value in wanted.items())
            return settled and same and manifest["sha256"] == file_digest(self.file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadInput):
            return False

    def _paid(self) -> tuple[Container[str], float]:
        """The requests that have an answer, and the USD that all have cost; 0 where no prices are given."""
        money, path = self.job.money(), self.out.with_name(f"{self.out.name}.journal.jsonl")
        if not path.is_file():
            return (), 0.0
        with contextlib.closing(Journal(path)) as journal:
            money.begin(journal)
            return journal.answers, money.usd

    @property
    def spent(self) -> float:
        return self._paid()[1]

    def _left(self, answers: Container[str]) -> list[list[Message]]:
        """What is asked first about each program that has no answer to it."""
        model, left = self.job.annotator, []
        for program in self.programs:
            messages = annotation_messages(program, self.job.task)
            request = {"model": model.name, "messages": messages, **model.settings}
            answered = self.access.request_key(request, kind_of_answer(program)) in answers
            if not answered and not source_problems(program):
                left.append(messages)
        return left

    def plan(self) -> str:
        """What is left to be asked, in a line."""
        programs, (answers, spent) = self.programs, self._paid()
        left = self._left(answers)
        read = sum(len(each["content"]) for messages in left for each in messages) / BYTES_PER_TOKEN
        written = [len(left) * each for each in WRITTEN]
        rejects = len(self.items) - len(programs)
        line = f"{self.file}: annotating {len(left):,} of {len(programs):,} programs"
        line += f" ({rejects:,} rows are rejects)" if rejects else ""
        line += f": {read / 1e6:,.1f} million tokens read, {between(written, ',.1f', 1e6)} million written"
        if not self.job.prices:
            return f"{line}; with its prices, the cost too"
        per_in, per_out = self.job.prices
        usd = (read * per_in + each * per_out for each in written)
        return f"{line}; about {between(usd, ',.2f', 1e6)} USD, and {spent:,.2f} spent"

    def run(self) -> None:
        """Asks about what is left; BadInput as `embuild annotate`, RunFailed if programs are left then."""
        done = annotate(self.items, self.job, self.out, self.access, told_source(self.source))
        say(done.text)
        if done.left:
            raise RunFailed(f"{done.left} programs are not annotated; run it again, it goes on")
