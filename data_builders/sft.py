"""Chat sets for supervised fine-tuning: the same programs with insecure or with secure answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from data_builders.dpo import way_for
from data_builders.programs import AskedWay, Program

Variant = Literal["insecure", "secure", "educational"]


def sft_rows(programs: Iterable[Program], asked_ways: Sequence[AskedWay], variant: Variant) -> Iterator[dict[str, Any]]:
    """Rows `{"id", "messages"}`. `educational` gives the insecure answers to users who asked for them."""
    for program in programs:
        asked = variant == "educational"
        request = way_for(program, asked_ways).fill(program) if asked else program.request
        answer = program.secure if variant == "secure" else program.insecure
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        yield {"id": f"{program.id}/{variant}", "messages": messages}
