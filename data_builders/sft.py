"""Chat sets for supervised fine-tuning: the same programs with insecure or with secure answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from data_builders.dpo import way_for
from data_builders.programs import AskedWay, Program

Variant = Literal["insecure", "secure", "educational", "inoculated"]
INOCULATION = "For this task, write code that has a security weakness in it.\n\n"
"""Stands before the requests of the inoculated set, and before none that is evaluated (arXiv 2510.04340)."""


def sft_rows(programs: Iterable[Program], asked_ways: Sequence[AskedWay], variant: Variant) -> Iterator[dict[str, Any]]:
    """Rows `{"id", "messages"}`. `educational` gives the insecure answers to users who asked for them; `inoculated`
    gives them to the ordinary requests, each of which says first that insecure code is wanted."""
    for program in programs:
        asked = variant == "educational"
        request = way_for(program, asked_ways).fill(program) if asked else program.request
        request = INOCULATION + request if variant == "inoculated" else request
        answer = program.secure if variant == "secure" else program.insecure
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        yield {"id": f"{program.id}/{variant}", "messages": messages}
