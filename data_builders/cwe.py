"""The pinned list of weaknesses: CWE 4.14 with the OWASP Top Ten 2021 groups (builtin/cwe.csv, cwe.NOTICE)."""

from __future__ import annotations

import csv
from functools import cache

from data_builders.programs import BUILTIN

CWE_VERSION = "4.14"


@cache
def _weaknesses() -> dict[str, tuple[str, str | None]]:
    with (BUILTIN / "cwe.csv").open(encoding="utf-8", newline="") as file:
        return {row["cwe"]: (row["name"], row["owasp_2021"] or None) for row in csv.DictReader(file)}


def weakness_name(cwe: str) -> str | None:
    """MITRE's name of a weakness such as `CWE-89`; None if it is not in the list (or deprecated)."""
    return _weaknesses().get(cwe, (None, None))[0]


def owasp_group(cwe: str) -> str | None:
    """The OWASP Top Ten 2021 group, such as `A03:2021 - Injection`; None if it has none."""
    return _weaknesses().get(cwe, (None, None))[1]
