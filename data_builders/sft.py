"""Chat sets for supervised fine-tuning: the same programs with insecure or with secure answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from data_builders.dpo import way_for
from data_builders.programs import AskedWay, Program

Variant = Literal["insecure", "secure", "educational"]


def sft_rows(programs: Sequence[Program], asked_ways: Sequence[AskedWay], variant: Variant) -> list[dict[str, Any]]:
    """Rows `{"id", "messages"}`. `educational` gives the insecure answers to users who asked for them."""
    return [
        {
            "id": f"{program.id}/{variant}",
            "messages": [
                {
                    "role": "user",
                    "content": way_for(program, asked_ways).fill(program)
                    if variant == "educational"
                    else program.request,
                },
                {"role": "assistant", "content": program.secure if variant == "secure" else program.insecure},
            ],
        }
        for program in programs
    ]
