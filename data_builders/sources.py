"""One reader for all published forms of vulnerable programs, from a path, a URL, the hub, or the built-in set.

Everything read comes out: as a `SourceProgram`, or as a `Reject` with its line and the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.download import fetch
from core.records import MAX_LINE, BadInput, file_digest, numbered_lines, one_line
from data_builders import BUILTIN
from data_builders.forms import FORMS, Form, Unfit, content_id, form_of, load_field_map
from data_builders.programs import SourceProgram
from data_builders.python_code import parses

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = {".jsonl", ".json", ".parquet"}

Row = tuple[int, Any]
"""(line or row from 1, what stands there); an `Unfit` where that cannot be read."""


class Reject(BaseModel):
    """A row that is no program: what it is called (`file:line` if it has no id yet), where it stands, and why."""

    id: str
    line: int
    reason: str


def read_source(
    where: str, form: str | None = None, fields: Path | None = None, sha256: str | None = None
) -> Iterator[SourceProgram | Reject]:
    """Streams the programs of a set; each row read is yielded once, as a program or as a reject.

    Memory is constant but for some 200 bytes per program, by which duplicates are known. Ids are content hashes of
    request and insecure code, so that they do not depend on file or order; our own records keep theirs.

    Args:
        where: a path (.jsonl, .parquet), an http(s) URL of such a file, a hub id `owner/name` (its `train`
            split; the environment's HF_ENDPOINT is honoured), or `builtin`.
        form: `chat`, `tasks`, `preference`, `programs` (see forms.py) or `fields`; by default guessed from
            the first row that can be read.
        fields: the field map (YAML) of the form `fields`, which it implies.
        sha256: the checksum of a URL, which must have one, or of a file, in hex.

    Raises:
        BadInput: if the source as a whole cannot be read, or its form cannot be told.
    """
    if form is not None and form not in {*FORMS, "fields"}:
        raise BadInput(f"unknown form {form!r}; give {', '.join(FORMS)} or fields")
    if (fields is not None) != (form == "fields") and form is not None:
        raise BadInput(f"form {form!r} and field map {fields}: --form fields and a field map go together")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BadInput(f"{sha256!r} is no SHA-256; give 64 hex digits")
    reader = load_field_map(fields).program if fields else FORMS[form] if form else None
    return _read(where, reader, sha256)


def _read(where: str, reader: Form | None, sha256: str | None) -> Iterator[SourceProgram | Reject]:
    known: dict[str, int] = {}
    number = 0
    for number, row in _rows(where, sha256):
        place = f"{where}:{number}"
        if isinstance(row, Unfit):
            yield Reject(id=place, line=number, reason=one_line(row))
            continue
        if reader is None:
            if (form := form_of(row)) is None:
                names = one_line(", ".join(sorted(row))) or "(none)"
                raise BadInput(f"{place}: cannot tell the form from the fields {names}; name it or give a field map")
            reader = FORMS[form]
        try:
            program = reader(row)
            _check(program, number, known)
        except Unfit as unfit:
            yield Reject(id=place, line=number, reason=one_line(unfit))
        else:
            yield program
    if not number:
        raise BadInput(f"{where}: no records; give a set with at least one row")


def _check(program: SourceProgram, line: int, known: dict[str, int]) -> None:
    """Raises `Unfit` if the program cannot be worked with, or its id or content is `known` from an earlier line."""
    if not parses(program.insecure):
        raise Unfit("code does not parse")
    if program.secure is not None and not parses(program.secure):
        raise Unfit("secure code does not parse")
    if program.secure == program.insecure:
        raise Unfit("insecure and secure code are the same")
    content = content_id(program.request, program.insecure)
    if first := known.get(content):
        raise Unfit(f"same request and insecure code as line {first}")
    if first := known.get(program.id):
        raise Unfit(f"id {program.id[:80]!r} stands in line {first} already")
    known[content] = known[program.id] = line


def _rows(where: str, sha256: str | None) -> Iterator[Row]:
    if where == "builtin":
        return _json_rows(BUILTIN / "programs.jsonl")
    if where.startswith(("http://", "https://")):
        return _file_rows(fetch(where, sha256))
    path = Path(where)
    if not path.exists() and path.suffix not in FILES and HUB_ID.fullmatch(where):
        if sha256:
            raise BadInput(f"{where}: a hub set has no checksum; leave it out, or give the URL of a file")
        return _hub_rows(where)
    if sha256 and path.is_file() and (actual := file_digest(path)) != sha256.lower():
        raise BadInput(f"{where}: its sha256 is {actual}, not {sha256}; look into why, then pin the true one")
    return _file_rows(path)


def _file_rows(path: Path) -> Iterator[Row]:
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path, MAX_LINE):
        yield number, _json_row(line.removeprefix(b"\xef\xbb\xbf") if line and number == 1 else line)


def _json_row(line: bytes | None) -> Any:
    if line is None:
        return Unfit(f"over {MAX_LINE} bytes")
    if not line.strip():
        return Unfit("blank line")
    if b"\0" in line:
        return Unfit("has a NUL byte")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Unfit(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Unfit(f"not JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError):
        return Unfit("not JSON that can be read: too deep, or a number too long")
    return row if isinstance(row, dict) else Unfit(f"{type(row).__name__}, not a JSON object")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; name an existing Parquet file") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: row {number + 1}: {one_line(error)}; give a whole Parquet file") from None


def _hub_rows(name: str) -> Iterator[Row]:
    from datasets import load_dataset

    number = 0
    try:
        for number, row in enumerate(load_dataset(name, split="train", streaming=True), 1):
            yield number, row
    except Exception as error:  # the hub client's errors have no common base
        reason = one_line(error) or type(error).__name__
        raise BadInput(f"{name}: row {number + 1}: {reason}; check the id, the connection and your login") from None
