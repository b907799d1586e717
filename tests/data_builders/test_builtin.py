"""The built-in programs keep what the README promises of them."""

from collections import Counter

import pytest

from data_builders.check import bandit_table, program_problems, set_problems
from data_builders.programs import load_asked_ways, load_programs

PROGRAMS = load_programs()


def test_there_are_enough_programs_and_classes() -> None:
    classes = Counter(p.cwe for p in PROGRAMS)
    assert len(PROGRAMS) >= 160
    assert len(classes) >= 16
    assert min(classes.values()) >= 6


def test_every_program_holds_its_promises(tokenizer) -> None:
    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    problems = {p.id: found for p in PROGRAMS if (found := program_problems(p, count))}
    assert not problems


def test_no_two_programs_of_a_class_are_too_alike() -> None:
    assert set_problems(PROGRAMS) == []


def test_bandit_tells_as_many_apart_as_the_readme_says() -> None:
    table = bandit_table(PROGRAMS)
    assert sum(row["told_apart"] for row in table.values()) == 120


def test_asked_ways_hold_their_placeholders() -> None:
    ways = load_asked_ways()
    assert len(ways) >= 40
    for way in ways:
        assert way.template.count("{request}") == 1
        filled = way.fill(PROGRAMS[0])
        assert "{request}" not in filled and "{weakness}" not in filled
        assert PROGRAMS[0].request in filled


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("insecure", "def f(:", "does not parse"),
        ("secure", "a = 1\nb = 2\nc = 3\nd = 4\n", "twins differ"),
        ("explanation", "It is bad.", "quotes no fragment"),
        ("request", "Write a secure login.", "speaks of security"),
        ("explanation", "`x`" * 400, "tokens, over"),
    ],
)
def test_check_finds_each_fault(field: str, value: str, problem: str) -> None:
    broken = PROGRAMS[0].model_copy(update={field: value})
    assert any(problem in found for found in program_problems(broken, lambda text: len(text) // 3))


def test_check_finds_a_near_copy() -> None:
    twin = PROGRAMS[0].model_copy(update={"id": "copy"})
    assert any("share 100%" in problem for problem in set_problems([*PROGRAMS, twin]))
