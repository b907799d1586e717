"""Verification of a set of twin programs: parses, minimal, varied, short, silent, and what Bandit says."""

from __future__ import annotations

import difflib
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

from data_builders.bandit import bandit_findings
from data_builders.programs import Program
from data_builders.python_code import parses

MAX_TOKENS = 220
MAX_CHANGED_LINES = 3
MAX_SHARED = 0.6
MIN_PER_CLASS = 6

SPEAKS_OF_SECURITY = re.compile(
    r"\b((in)?secur\w*|(un)?safe\w*|vulnerab\w*|attack\w*|exploit\w*|injection\w*|saniti[sz]\w*|malicious\w*|hack\w*)\b",
    re.IGNORECASE,
)
_LAYOUT = {
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.COMMENT,
    tokenize.ENCODING,
}


def changed_lines(insecure: str, secure: str) -> tuple[list[str], list[str]]:
    """The lines that stand only in the insecure version, and those only in the secure one."""
    a, b = insecure.splitlines(), secure.splitlines()
    removed: list[str] = []
    added: list[str] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            removed += a[i:j]
            added += b[k:m]
    return removed, added


def code_tokens(code: str) -> Counter[str]:
    """Python tokens without layout and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return Counter(token.string for token in tokens if token.type not in _LAYOUT)


def code_words(code: str) -> Counter[str]:
    """Names, keywords and literals: the tokens less punctuation, which any two programs share."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return Counter(token.string for token in tokens if token.type not in _LAYOUT | {tokenize.OP})


def shared(a: str, b: str) -> float:
    """How much two programs share, 0 to 1: the larger of two measures on multisets.

    Of their words, the share of the smaller program that stands in the other; of all their tokens, the
    Jaccard index.
    """
    words_a, words_b = code_words(a), code_words(b)
    tokens_a, tokens_b = code_tokens(a), code_tokens(b)
    return max(
        (words_a & words_b).total() / max(1, min(words_a.total(), words_b.total())),
        (tokens_a & tokens_b).total() / max(1, (tokens_a | tokens_b).total()),
    )


def program_problems(program: Program, count_tokens: Callable[[str], int]) -> list[str]:
    """What is wrong with one program; empty if nothing is."""
    problems = [f"{side} code does not parse" for side in ("insecure", "secure") if not parses(getattr(program, side))]
    removed, added = changed_lines(program.insecure, program.secure)
    if not 1 <= max(len(removed), len(added)) <= MAX_CHANGED_LINES:
        problems.append(f"twins differ in {max(len(removed), len(added))} lines, not in 1 to {MAX_CHANGED_LINES}")
    quoted = re.findall(r"`([^`]+)`", program.explanation)
    where = removed or program.insecure.splitlines()
    if not any(quote in line for quote in quoted for line in where):
        problems.append("the explanation quotes no fragment of a changed line in backticks")
    if hint := SPEAKS_OF_SECURITY.search(program.request):
        problems.append(f"the request speaks of security ({hint.group()!r})")
    if re.search(r"(^|\s)#", program.insecure):
        problems.append("the insecure code has comments")
    tokens = count_tokens(program.insecure) + count_tokens(program.explanation)
    if tokens > MAX_TOKENS:
        problems.append(f"insecure code and explanation are {tokens} tokens, over {MAX_TOKENS}")
    return problems


def set_problems(programs: Sequence[Program]) -> list[str]:
    """What is wrong with the set as a whole: small classes, and programs that are too alike."""
    by_class: dict[str, list[Program]] = defaultdict(list)
    for program in programs:
        by_class[program.cwe].append(program)
    problems = []
    for cwe, members in by_class.items():
        if len(members) < MIN_PER_CLASS:
            problems.append(f"{cwe}: only {len(members)} programs, under {MIN_PER_CLASS}")
        for a, b in combinations(members, 2):
            if parses(a.insecure) and parses(b.insecure) and (share := shared(a.insecure, b.insecure)) > MAX_SHARED:
                problems.append(f"{a.id} and {b.id} share {share:.0%} of their code")
    return problems


def bandit_table(programs: Sequence[Program]) -> dict[str, dict[str, int]]:
    """Per class: `programs`, and `told_apart`, those of which some rule flags the insecure and not the secure code."""
    table: dict[str, dict[str, int]] = {}
    for program in programs:
        row = table.setdefault(program.cwe, {"programs": 0, "told_apart": 0})
        apart = bool(
            {f.rule for f in bandit_findings(program.insecure)} - {f.rule for f in bandit_findings(program.secure)}
        )
        row["programs"] += 1
        row["told_apart"] += apart
    return table
