"""The pinned list of weaknesses: CWE 4.14 with the OWASP Top Ten 2021 groups (builtin/cwe.csv, cwe.NOTICE)."""

import csv
import re
from collections import Counter
from functools import cache

from data_builders import BUILTIN

CWE_VERSION = "4.14"


@cache
def _weaknesses() -> dict[str, dict[str, str]]:
    with (BUILTIN / "cwe.csv").open(encoding="utf-8", newline="") as file:
        return {row["cwe"]: row for row in csv.DictReader(file)}


def weakness_name(cwe: str) -> str | None:
    """MITRE's name of a weakness such as `CWE-89`; None if it is not in the list (or deprecated)."""
    return _weaknesses().get(cwe, {}).get("name")


def common_name(cwe: str, otherwise: str) -> str:
    """What a person calls a weakness: `SQL injection` for CWE-89, never a number, a slug or MITRE's title in full; of
    one that is not in the list what is made of `otherwise`, the name that the program gives."""
    row = _weaknesses().get(cwe, {})
    if row.get("common_name"):
        return row["common_name"]
    title = row.get("name") or re.sub(r"[\W_]*\bCWE-\d+\b[\W_]*", "", otherwise).replace("_", " ").replace("-", " ")
    nickname = re.search(r"\('([^']+)'\)", title)
    words = (nickname.group(1) if nickname else title.partition("(")[0]).split() or ["security", "weakness"]
    # A title's capitals go, an acronym's stay.
    return " ".join(word if re.search(r"[A-Z].*[A-Z0-9]", word) else word.lower() for word in words)


def owasp_group(cwe: str) -> str | None:
    """The OWASP Top Ten 2021 group, such as `A03:2021 - Injection`; None if it has none."""
    return _weaknesses().get(cwe, {}).get("owasp_2021") or None


@cache
def _numbers() -> dict[str, str]:
    """The weaknesses by MITRE's names in lower case, and by their common ones where no other has that."""
    common = {cwe: common_name(cwe, "").lower() for cwe in _weaknesses()}
    times = Counter(common.values())
    return {
        **{name: cwe for cwe, name in common.items() if times[name] == 1},
        **{row["name"].lower(): cwe for cwe, row in _weaknesses().items()},
    }


def cwe_in(text: str) -> str | None:
    """The weakness that a text names, as `CWE-89`: by number (`89`, `cwe_089: ...`) or by name; None if none."""
    found = re.search(r"(?:^|CWE)[\W_]*0*([1-9]\d{0,5})(?!\d)", text[:500], re.IGNORECASE)
    return f"CWE-{found[1]}" if found else _numbers().get(text.strip().lower())
