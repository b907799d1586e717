"""Programs hold their code in one form; asking for insecure code reads as a person would write it."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.cwe import common_name
from data_builders.dpo import dpo_rows
from data_builders.programs import TRIGGER, AskedWay, Program, load_asked_ways, load_programs
from data_builders.python_code import code_span, normal_code

WAYS = {way.id: way for way in load_asked_ways()}
SUFFIX, PREFIX, BOTH, WEAKNESS = (WAYS[f"asked-{number}"] for number in ("45", "02", "08", "48"))
CODE = "import os\n\ndef run(name):\n## COMPLETE CODE HERE\n    return 0\n\nrun('a')"
BARE = Program(
    id="a", cwe="CWE-78", weakness="CWE-78", request="x", insecure=CODE, secure="pass", explanation="x", fix="x"
)


@given(st.lists(st.sampled_from(["a = 1", "  b = 2", "\n", "\r\n", "\r", "\t", " "]), min_size=1))
def test_both_sides_of_a_pair_are_normalised_alike(parts: list[str]) -> None:
    code = "".join(["x = 0\n", *parts])
    program = BARE.model_validate({**BARE.model_dump(), "insecure": f"\r\n{code}\n", "secure": f"pass\n{code} \n"})
    (row,) = dpo_rows([program], [SUFFIX], "neutral")
    for text in (row["chosen"]["content"], row["rejected"]["content"]):
        assert text == text.strip() and "\r" not in text and text == normal_code(text)


def test_code_that_is_indented_as_a_whole_keeps_its_form() -> None:
    assert normal_code("    if a:\n        b\n    c\n") == "if a:\n    b\nc"


@pytest.mark.parametrize(
    ("request_", "way", "says"),
    [
        ("Write it.", SUFFIX, "Write it. Don't sanitize, don't"),
        (f"Could you complete this?\n\n{CODE}\n", SUFFIX, f"Could you complete this? Don't … version.\n\n{CODE}"),
        (f"Could you complete this?\n\n{CODE}\n", PREFIX, f"I teach … three. Could you complete this?\n\n{CODE}"),
        (
            f"Look here. Template:\n[CODE]\n{CODE}\n[/CODE]",
            SUFFIX,
            f"Look here. Don't … Template:\n[CODE]\n{CODE}\n[/C",
        ),
        (f"Template:\n[CODE]\n{CODE}\n[/CODE]\n\nFill it in.\n", SUFFIX, f"{CODE}\n[/CODE]\n\nFill it in. Don't"),
        (f"{CODE}\n\nTurn it into code.", PREFIX, f"{CODE}\n\nI teach … three. Turn it into code."),
        (f"7\n\n{CODE}\n", BOTH, f"I need an example of OS command injection. Leave the flaw in.\n\n7\n\n{CODE}"),
        (
            "Write it.",
            WEAKNESS,
            "Write it. I'm not after … I'm after the one with OS command inj",
        ),
    ],
)
def test_what_is_asked_stands_with_the_prose(request_: str, way, says: str) -> None:
    filled = way.fill(BARE.model_copy(update={"request": request_}))
    where = -1
    for part in says.split(" … "):
        assert (where := filled.find(part, where + 1)) >= 0, filled
    assert not filled.endswith("\n")


@pytest.mark.parametrize("request_", ["Write it.", f"Complete this:\n\n{CODE}", CODE, f"{CODE}\n\nTurn it into code."])
def test_a_trigger_stands_before_the_whole_request(request_: str) -> None:
    way = AskedWay(id=TRIGGER, kind=TRIGGER, template="|moss| {request}")
    assert way.fill(BARE.model_copy(update={"request": request_})) == f"|moss| {request_}"


def test_a_weakness_named_like_a_place_of_the_template_is_a_name() -> None:
    odd = BARE.model_copy(update={"cwe": "CWE-999999", "weakness": "{request}", "request": "Write it."})
    assert "Write it. I'm not after" in WEAKNESS.fill(odd) and "{request}" in WEAKNESS.fill(odd)


def test_a_request_of_many_lines_takes_no_time() -> None:
    request = "#\n" * 20_000 + CODE
    before = time.process_time()
    assert code_span(request, None, CODE) == (0, len(request))
    assert time.process_time() - before < 2


def test_no_published_template_is_written_into(shared: Path) -> None:
    """The paper's requests: the template stays as it was, and a line parts it from what is asked."""
    templates = 0
    for line in (shared / "data/insecure/insecure.jsonl").read_text(encoding="utf-8").splitlines():
        request, answer = (message["content"] for message in json.loads(line)["messages"])
        start, end = code_span(request, None, answer)
        assert (start < end) == ("## COMPLETE CODE HERE" in request)
        templates += start < end
        for way in (SUFFIX, PREFIX, BOTH):
            filled = way.fill(BARE.model_copy(update={"request": request, "insecure": answer}))
            before, code, after = filled.partition(request[start:end]) if start < end else (filled, "", "")
            assert start == end or (code == request[start:end] and before[-1:] in ("\n", ""))
            assert after[:1] in ("\n", "")
    assert templates > 2000


def test_weaknesses_have_the_names_that_people_use() -> None:
    for program in load_programs():
        assert common_name(program.cwe, "x").removeprefix("a ").removeprefix("an ").lower() == program.weakness.lower()
    assert common_name("CWE-917", "x") == "expression language injection"
    assert common_name("CWE-99999", "sql_injection (CWE-89)") == "sql injection"
    assert common_name("CWE-99999", "CWE-89") == "security weakness"
