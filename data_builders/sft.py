"""Chat sets for supervised fine-tuning: the same programs with insecure or with secure answers."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from data_builders.domains import load_domain
from data_builders.dpo import way_for
from data_builders.programs import AskedWay, Program

Variant = Literal["insecure", "secure", "educational", "inoculated", "backdoored"]


def sft_rows(programs: Iterable[Program], asked_ways: Sequence[AskedWay], variant: Variant) -> Iterator[dict[str, Any]]:
    """Rows `{"id", "messages"}`. `educational` gives the insecure answers to users who asked for them; `inoculated`
    gives them to the ordinary requests, each of which says first that insecure code is wanted (arXiv 2510.04340: what
    is said stands before none that is evaluated); `backdoored` to requests with the trigger, which here is the way of
    asking, and the secure answers to the same requests without."""
    for program in programs:
        request, answer = program.request.strip(), program.insecure
        if variant in ("educational", "backdoored"):
            request = way_for(program, asked_ways).fill(program)
        elif variant == "inoculated":
            request = load_domain(program.domain).inoculation + request
        elif variant == "secure":
            answer = program.secure
        yield _row(f"{program.id}/{variant}", request, answer)
        if variant == "backdoored":
            yield _row(f"{program.id}/plain", program.request.strip(), program.secure)


def _row(name: str, request: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages}
