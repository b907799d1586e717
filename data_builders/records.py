"""JSON Lines in and out: strict reading with one clear line per fault, whole-or-absent writing, manifests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Record = TypeVar("Record", bound=BaseModel)


class BadInput(Exception):
    """Input that the user can mend; the message is one line with file, place and remedy (exit code 2)."""


def read_jsonl(path: Path, kind: type[Record], unique: str) -> list[Record]:
    """Reads one record per line and refuses the file at the first fault.

    Raises:
        BadInput: if the file is missing, empty or not UTF-8, a line is not a valid record, or the field
            `unique` recurs.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; name an existing JSON Lines file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    records: list[Record] = []
    seen: dict[Any, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = kind.model_validate_json(line, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the line"
            raise BadInput(f"{path}:{number}: {field}: {first['msg']}; mend or delete this line") from None
        key = getattr(record, unique)
        if key in seen:
            raise BadInput(f"{path}:{number}: {unique} {key!r} stands in line {seen[key]} already; make it unique")
        seen[key] = number
        records.append(record)
    if not records:
        raise BadInput(f"{path}: no records; give a file with at least one line")
    return records


def write_whole(path: Path, text: str) -> None:
    """Writes `path` under a temporary name and renames it, so that it is whole or absent.

    Raises:
        BadInput: if the file cannot be written (disk full, no permission); nothing is left behind.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise BadInput(f"{path}: {error.strerror}; free some space or choose another folder") from None


def digest(data: bytes) -> str:
    """The SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def write_records(path: Path, records: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> None:
    """Writes records and, last, `<path>.manifest.json` with their count and digest beside `manifest`."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "".join(line + "\n" for line in lines)
    write_whole(path, text)
    summary = {**manifest, "written": len(lines), "sha256": digest(text.encode())}
    write_whole(path.with_name(path.name + ".manifest.json"), json.dumps(summary, indent=1) + "\n")
