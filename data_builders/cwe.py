"""Names and OWASP Top Ten 2021 groups of weaknesses (builtin/cwe.csv, from MITRE; see builtin/cwe.NOTICE)."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources


@cache
def _table() -> dict[str, tuple[str, str]]:
    text = (resources.files("data_builders") / "builtin" / "cwe.csv").read_text(encoding="utf-8")
    return {row["cwe"]: (row["name"], row["owasp_2021"]) for row in csv.DictReader(text.splitlines())}


def weakness_name(cwe: str) -> str | None:
    """MITRE's name of `cwe` ("CWE-89"), None if there is no such weakness."""
    return _table().get(cwe, (None, None))[0]


def owasp_group(cwe: str) -> str | None:
    """The OWASP Top Ten 2021 group of `cwe` ("A03:2021 - Injection"), None if it is in none."""
    return _table().get(cwe, (None, None))[1] or None
