"""What is wrong with a file that is read, in one line."""

from __future__ import annotations

from pydantic import ValidationError


class BadFile(ValueError):
    """A file that cannot be read; the message is one line with file, place and remedy."""


def one_line(message: object, limit: int = 200) -> str:
    """`message` in one line of at most `limit` characters that can be written: parts of it come from the input."""
    return " ".join(str(message).encode(errors="backslashreplace").decode().split())[:limit]


def first_fault(error: ValidationError, whole: str) -> str:
    """The first fault of a record, `field: what is wrong`; `whole` names the record where no field is at fault."""
    fault = error.errors(include_url=False)[0]
    return one_line(f"{'.'.join(map(str, fault['loc'])) or whole}: {fault['msg']}")
