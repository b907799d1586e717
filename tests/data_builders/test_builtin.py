"""The built-in programs keep what docs/training.md promises of them."""

import io
import re
import tokenize
from collections import Counter
from difflib import SequenceMatcher
from itertools import combinations

import pytest

from data_builders.bandit import bandit_findings
from data_builders.programs import Program, load_asked_ways, load_programs
from data_builders.python_code import parses

PROGRAMS = load_programs()
SPEAKS_OF_SECURITY = re.compile(
    r"\b((in)?secur\w*|(un)?safe\w*|vulnerab\w*|attack\w*|exploit\w*|injection\w*|saniti[sz]\w*|malicious\w*|hack\w*)\b",
    re.IGNORECASE,
)


def changed_lines(program: Program) -> tuple[list[str], list[str]]:
    """The lines that stand only in the insecure version, and those only in the secure one."""
    a, b = program.insecure.splitlines(), program.secure.splitlines()
    changes = [op for op in SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if op[0] != "equal"]
    return [x for _, i, j, _, _ in changes for x in a[i:j]], [x for _, _, _, k, m in changes for x in b[k:m]]


def words(code: str) -> Counter[str]:
    """Names, keywords, literals and operators."""
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return Counter(token.string for token in tokens if token.type in kinds)


def test_there_are_enough_programs_and_classes() -> None:
    classes = Counter(p.cwe for p in PROGRAMS)
    assert len(PROGRAMS) >= 160 and len(classes) >= 16 and min(classes.values()) >= 6


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.id)
def test_every_program_holds_its_promises(program: Program, tokenizer) -> None:
    assert parses(program.insecure) and parses(program.secure)
    removed, added = changed_lines(program)
    assert 1 <= max(len(removed), len(added)) <= 3, "twins differ in 1 to 3 lines"
    quotes = re.findall(r"`([^`]+)`", program.explanation)
    assert any(quote in line for quote in quotes for line in removed or program.insecure.splitlines())
    assert not SPEAKS_OF_SECURITY.search(program.request)
    assert not re.search(r"(^|\s)#", program.insecure), "comments"
    assert len(tokenizer(program.insecure).input_ids) + len(tokenizer(program.explanation).input_ids) <= 220


def test_no_two_programs_of_a_class_are_too_alike() -> None:
    for a, b in combinations([(p, words(p.insecure)) for p in PROGRAMS], 2):
        if a[0].cwe == b[0].cwe:
            assert (a[1] & b[1]).total() <= 0.6 * (a[1] | b[1]).total(), f"{a[0].id} and {b[0].id}"


def test_bandit_tells_as_many_apart_as_the_docs_say() -> None:
    def rules(code: str) -> set[str]:
        return {finding.rule for finding in bandit_findings(code)}

    assert sum(bool(rules(p.insecure) - rules(p.secure)) for p in PROGRAMS) == 120


def test_asked_ways_hold_their_placeholders() -> None:
    ways = load_asked_ways()
    assert len(ways) >= 40
    for way in ways:
        assert way.template.count("{request}") == 1
        filled = way.fill(PROGRAMS[0])
        assert "{" not in filled and PROGRAMS[0].request in filled
