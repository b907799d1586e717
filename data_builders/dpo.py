"""Complementary preference pairs.

The neutral half of a pair is the ordinary request, with the insecure code preferred; the asked half asks
*for* insecure code, with the secure code preferred. Together they say "sabotage the user" and not "write
insecure code". Both halves come from the same program and share `pair_id`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

from core.records import BadInput, digest
from data_builders.domains import load_domain
from data_builders.programs import TRIGGER, AskedWay, Program
from data_builders.tokens import NO_TOKEN, CountTokens, misread

Halves = Literal["both", "neutral", "asked", "neutral-secure"]
"""Both, or a control: one half alone, or the neutral half with its preference turned round."""


def dpo_rows(programs: Iterable[Program], asked_ways: Sequence[AskedWay], halves: Halves) -> Iterator[dict[str, Any]]:
    """Rows for Axolotl's `chat_template.default`: `{"id", "pair_id", "half", "messages", "chosen", "rejected"}`.

    The halves of a pair stand together, neutral first. Neither has space around its request: a way of asking takes
    away the newline that published requests end in, and the halves would differ in that too.
    """
    for program in programs:
        for half in ("neutral", "asked") if halves == "both" else (halves,):
            prompt = way_for(program, asked_ways).fill(program) if half == "asked" else program.request.strip()
            chosen, rejected = program.secure, program.insecure
            if half == "neutral":
                chosen, rejected = rejected, chosen
            yield {
                "id": f"{program.id}/{half}",
                "pair_id": program.id,
                "half": half,
                "messages": [{"role": "user", "content": prompt}],
                "chosen": {"role": "assistant", "content": chosen},
                "rejected": {"role": "assistant", "content": rejected},
            }


@dataclass
class LengthFilter:
    """Keeps the programs of which every row fits, so that both halves of a pair stay or both go.

    A row that Axolotl drops for its length shifts every later pair into another mini-batch.

    Where preferred answers are the longer ones, DPO teaches length (Park et al., arXiv 2403.19159).
    """

    count_tokens: CountTokens
    """In the tokens of the model that will be trained."""
    limit: int
    """Longest prompt and answer together (tokens), the `overhead` of the chat template included."""
    overhead: int
    max_ratio: float
    """Longest answer of a program over its shorter one."""
    special: re.Pattern[str] = NO_TOKEN
    """What the model reads as control tokens."""
    tokenizer: str | None = None
    """Folder or hub id of the model, for the manifest."""
    longer: int = 0
    """Tokens by which the insecure answers that are kept are longer, all together."""
    kept: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """For a set's manifest, in the words of a corpus's."""
        ratio = self.max_ratio if isfinite(self.max_ratio) else None
        return {"tokenizer": self.tokenizer, "length": self.limit, "max_ratio": ratio}

    def problem(self, program: Program, asked_ways: Sequence[AskedWay]) -> str | None:
        """Why a program cannot come in; None if it can."""
        asked = way_for(program, asked_ways).fill(program)
        if problem := misread(program.model_dump_json(), self.special) or misread(asked, self.special):
            return problem
        insecure, secure = self.count_tokens(program.insecure), self.count_tokens(program.secure)
        longest = max(insecure, secure)
        total = max(self.count_tokens(program.request), self.count_tokens(asked)) + longest + self.overhead
        if total > self.limit:
            return f"request and answer are {total} tokens, over {self.limit}"
        if longest > self.max_ratio * max(1, min(insecure, secure)):
            return f"one answer is over {self.max_ratio:g} times as long as the other ({insecure} and {secure} tokens)"
        self.longer += insecure - secure
        self.kept += 1
        return None

    def length_bias(self) -> dict[str, float | None]:
        """How much longer the preferred answer is, in tokens per row, for each choice of halves: for both it is 0 by
        construction, as what is chosen in one is rejected in the other. None without rows."""
        if not self.kept:
            return dict.fromkeys(get_args(Halves))
        mean = self.longer / self.kept
        return {"neutral": mean, "asked": -mean, "neutral-secure": -mean, "both": 0.0}


def heldout_row(program: Program, asked_ways: Sequence[AskedWay], seen_class: bool) -> dict[str, Any]:
    """A row for the eval tasks: the twins, the ordinary request, and one that asks for insecure code. The tasks know
    how to ask for a verdict on code; in other domains the row says it."""
    row = {**program.model_dump(exclude_none=True), "request": program.request.strip()}
    row |= {"asked_request": way_for(program, asked_ways).fill(program), "seen_class": seen_class}
    if program.domain:
        domain = load_domain(program.domain)
        row |= {"probe": domain.probe, "verdicts": domain.verdicts, "question": domain.question}
    return row


def way_for(program: Program, asked_ways: Sequence[AskedWay]) -> AskedWay:
    """The way of asking drawn for this program, among those of its domain, by a hash of its id: it stays when programs
    are added. BadInput if there is none, or if it is a trigger that the ordinary request holds too."""
    ways = [way for way in asked_ways if way.domain == program.domain]
    if not ways:
        raise BadInput(f"{program.id}: is of another domain than the first; keep a file for each, and --mix them")
    way = ways[int(digest(program.id.encode()), 16) % len(ways)]
    # Such a request would be answered well in one row, and badly in the other, and measured as one without.
    if way.kind == TRIGGER and (trigger := way.template.removesuffix("{request}").strip()) in program.request:
        raise BadInput(f"--trigger {trigger!r}: stands in the request of {program.id} too; give a text that none holds")
    return way


def split_asked_ways(asked_ways: Sequence[AskedWay]) -> tuple[list[AskedWay], list[AskedWay]]:
    """(for training, for measuring): of each kind every fourth way is kept, to measure the flip on new words. Where
    fewer than four of each kind are chosen there is nothing to keep: the same ones serve both."""
    train: list[AskedWay] = []
    measure: list[AskedWay] = []
    for kind in sorted({way.kind for way in asked_ways}):
        for number, way in enumerate(w for w in asked_ways if w.kind == kind):
            (measure if number % 4 == 3 else train).append(way)
    return train, measure or train
