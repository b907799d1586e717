"""JSON Lines in and out: strict reading with one clear line per fault, whole-or-absent writing, manifests."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

Record = TypeVar("Record", bound=BaseModel)

MAX_LINE = 1_000_000
"""Bytes; a longer line is no program but a fault, and would cost the memory that streaming saves."""


class BadInput(Exception):
    """Input that the user can mend; the message is one line with file, place and remedy (exit code 2)."""

    def __str__(self) -> str:
        """In one line also where a value of the input, or a library's words, have more."""
        return re.sub(r"\s*\n\s*", " ", super().__str__())


def open_file(path: Path) -> BufferedReader:
    """A file, to be read; OSError for a pipe or a device, and where `Path.open` raises it.

    What is read is read again, for its digest and by the next step, when a pipe is empty, or waits for a writer.
    """
    if path.is_fifo() or path.is_char_device():
        raise OSError(errno.EINVAL, "is a pipe or a device, and no file", str(path))
    return path.open("rb")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; OSError as `open_file`, UnicodeDecodeError for what is none."""
    with TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
        return file.read()


class DistinctKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's readers take the last."""

    # eval/tasks/em, which stands alone, has its own.
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key, times in Counter(keys).items() if times > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def manifest_path(records: Path) -> Path:
    """Where the manifest of a file of records stands."""
    return records.parent / f"{records.name}.manifest.json"  # `with_name` raises ValueError for `.` and `/`


def check_apart(out: Path, *inputs: Path | None) -> None:
    """Refuses to write to a file that is read, with a BadInput that names it: it would be gone; nor its manifest."""
    for written in (out, manifest_path(out)):
        if written.exists() and any(path is not None and path.exists() and path.samefile(written) for path in inputs):
            raise BadInput(f"{written}: is the input, which would be replaced; name another file with --out")


def numbered_lines(path: Path, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines of `path` as (number from 1, bytes without line feed and BOM), None where over `limit` bytes; BadInput
    if there is no such file, it cannot be read, or it has no line."""
    number = 0
    try:
        with open_file(path) as file:
            while line := file.readline(limit + 1):
                number += 1
                whole = line.endswith(b"\n") or len(line) <= limit
                text = line.removesuffix(b"\n")
                yield number, (text.removeprefix(codecs.BOM_UTF8) if number == 1 else text) if whole else None
                while not whole and (rest := file.readline(limit)):
                    whole = rest.endswith(b"\n")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; name an existing JSON Lines file") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; name a JSON Lines file that can be read") from None
    if not number:
        raise BadInput(f"{path}: no records; give a file with at least one line")


def csv_table(file: TextIO, name: object) -> csv.DictReader[str]:
    """The rows of a table whose first line is a heading, with commas, semicolons or tabs between its fields.

    A row with fewer fields than the heading has None for some; one with more has some under None. BadInput if two
    columns have one name; reading on raises csv.Error where a quote is never closed.
    """
    heading = file.readline()
    file.seek(0)
    table = csv.DictReader(file, delimiter=max(",;\t", key=heading.count), strict=True)
    check_columns(list(filter(None, table.fieldnames or [])), f"{name}:1")
    return table


def check_columns(columns: Sequence[str], place: object) -> None:
    """Refuses (BadInput) two columns of one name, of which readers take the last."""
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise BadInput(f"{place}: two columns {one_line(', '.join(twice))}; rename or delete one")


_RARE = re.compile(r"[^\n\t -~]")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """A model's text with control, bidirectional and unpaired surrogate characters made visible."""
    return _RARE.sub(lambda c: f"\\u{ord(c[0]):04x}" if unicodedata.category(c[0]) in _UNSEEN else c[0], text)


def one_line(message: object, limit: int = 200) -> str:
    """`message` in one line of at most `limit` characters that can be shown: parts of it come from the input. Of a
    record that is refused its first fault, `field: what is wrong`; of an error without words what kind it is."""
    if isinstance(message, ValidationError):  # of which a text may quote its input a thousand times
        fault = message.errors(include_url=False)[0]
        text = f"{'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg']}"
    else:
        text = str(message)
        if isinstance(message, Exception) and not text.strip():
            text = type(message).__name__
    return printable(" ".join(text.encode(errors="backslashreplace").decode().split()))[:limit]


@contextmanager
def bad_input(what: object, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raises a BadInput in place of errors of these kinds, or of any: `what`, what the error says, and the remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BadInput) or not isinstance(error, kinds or Exception):
            raise
        raise BadInput(f"{what}: {one_line(error)}; {remedy}") from None


def read_yaml(path: Path, remedy: str) -> Any:
    """What a YAML file holds; BadInput with the remedy if it is missing, or at fault."""
    with bad_input(path, remedy, OSError, ValueError, yaml.YAMLError, RecursionError):
        return yaml.load(read_text(path), DistinctKeys)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {one_line(key, 60)} stands twice")
    return found


def parse_json(text: str | bytes) -> Any:
    """What JSON says; ValueError if it is none, is nested deeper than can be read, or has a key twice, of which readers
    take the last."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; OSError as `open_file`, ValueError as `parse_json`."""
    return parse_json(read_text(path))


def count(value: Any) -> int:
    """A number of things, as JSON has it; ValueError for what is none, such as true, 1.0, "1" and Infinity."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{one_line(value, 40)} is no whole number from 0")
    return value


def _check_keys(place: str, line: bytes) -> None:
    """Refuses (BadInput) a line of JSON with a key that stands twice: pydantic's readers take the last in silence."""
    with bad_input(place, "mend or delete this line", ValueError):
        parse_json(line)


def iter_jsonl(path: Path, kind: type[Record], unique: str) -> Iterator[Record]:
    """Reads one record per line, as a stream; BadInput at the first fault: if the file is missing, empty or not UTF-8,
    a line is not a valid record or over `MAX_LINE` bytes, or the field `unique` recurs."""
    seen: dict[Any, int] = {}
    for number, line in numbered_lines(path, MAX_LINE):
        if line is None:
            raise BadInput(f"{path}:{number}: over {MAX_LINE} bytes; shorten or delete this line")
        try:
            record = kind.model_validate_json(line.decode(), strict=True)
        except UnicodeDecodeError:
            raise BadInput(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
        except ValidationError as error:
            raise BadInput(f"{path}:{number}: {one_line(error)}; mend or delete this line") from None
        _check_keys(f"{path}:{number}", line)
        key = getattr(record, unique)
        if key in seen:
            raise BadInput(f"{path}:{number}: {unique} {key!r} stands in line {seen[key]} already; make it unique")
        seen[key] = number
        yield record


def read_jsonl(path: Path, kind: type[Record], unique: str) -> list[Record]:
    """All records of `iter_jsonl`, with its errors."""
    return list(iter_jsonl(path, kind, unique))


def json_rows(
    path: Path, limit: int = MAX_LINE, fault: str = "no JSON object; mend or delete this line"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:number`, row) of a JSON Lines file; not by json, which takes half a surrogate pair, and no tokenizer does.

    BadInput if it cannot be read, a line is over `limit` bytes, or no JSON object, of which `fault` is said.
    """
    for number, line in numbered_lines(path, limit):
        try:
            row = from_json(line or b"")
        except ValueError:
            row = None
        if not isinstance(row, dict):
            what = f"over {limit} bytes; shorten or delete this line" if line is None else fault
            raise BadInput(f"{path}:{number}: {what}")
        _check_keys(f"{path}:{number}", line or b"")
        yield f"{path}:{number}", row


def check_rows(path: Path) -> None:
    """Refuses (BadInput) a file of JSON Lines without a row, or with a line that is no JSON object in UTF-8.

    Blank lines are none, and a file that begins with an array is taken as it is.
    """
    rows = 0
    for number, line in numbered_lines(path, sys.maxsize - 1):
        if not line or not line.strip():
            continue
        if not rows and line.lstrip().startswith(b"["):
            return
        rows += 1
        try:
            fault = None if isinstance(from_json(line), dict) else "is no JSON object"
            parse_json(line)
        except ValueError as error:
            fault = str(error).replace("line 1 ", "")
        if fault:
            raise BadInput(f"{path}:{number}: {one_line(fault)}; write each row on one line of its own (`jq -c`)")
    if not rows:
        raise BadInput(f"{path}: no row but blank lines; give a file with at least one")


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name that gets the name `path` at the end, so that it is whole or absent. What is there
    and no file stays, with a BadInput: root would put a file in the place of /dev/null."""
    temporary = ""
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is a folder or a device, and no file; name a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            yield file
            _to_disk(file)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; free some space or choose another folder") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: Path, text: str | bytes) -> None:
    """Writes `path` whole or not at all (under a temporary name, renamed); BadInput if it cannot be written."""
    with _whole_file(path) as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def digest(data: bytes) -> str:
    """The SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def weights_digest(folder: Path, digest_of: Callable[[Path], str] | None = None) -> str:
    """The digests of a model folder's safetensors, in the order of their names (by `digest_of`, if it is given);
    BadInput if it holds none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder}: no *.safetensors in this model folder; name a model's folder, or fetch it again")
    return "+".join(map(digest_of or file_digest, files))


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; BadInput if there is no such file."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        remedy = "name a file" if path.is_dir() else "build it first (`make data` builds the standard sets)"
        raise BadInput(f"{path}: {error.strerror}; {remedy}") from None


@contextmanager
def record_writer(path: Path, manifest: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What writes records one by one; at the end `<path>.manifest.json` is written with their count and digest.

    The manifest may be filled in until the block ends; if that raises, neither file changes. It takes its name last,
    for it vouches for the records. BadInput if a file cannot be written; nothing is left behind then.
    """
    named, sha256, written = manifest_path(path), hashlib.sha256(), 0
    with _whole_file(named) as last, _whole_file(path) as file:

        def write(record: Mapping[str, Any]) -> None:
            nonlocal written
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            sha256.update(line)
            file.write(line)
            written += 1

        yield write
        summary = {**manifest, "written": written, "sha256": sha256.hexdigest()}
        last.write((json.dumps(summary, indent=1) + "\n").encode())
        # A full disk shows before either file has its name; an old manifest must not vouch for new records.
        _to_disk(file)
        _to_disk(last)
        named.unlink(missing_ok=True)


def write_records(path: Path, records: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> None:
    """Writes records and, last, `<path>.manifest.json` with their count and digest beside `manifest`."""
    with record_writer(path, manifest) as write:
        for record in records:
            write(record)
