"""One reader for all published forms of vulnerable programs, from a file, a URL, the hub, or the built-in set.

Everything read comes out: as a `SourceProgram`, or as a `Reject` with its line and the reason.
"""

import csv
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel

from core.download import PIN, fetch, told_address
from core.records import (
    MAX_LINE,
    BadInput,
    check_columns,
    csv_table,
    file_digest,
    numbered_lines,
    one_line,
    open_file,
    parse_json,
    read_text,
)
from data_builders import BUILTIN
from data_builders.domains import CODE
from data_builders.forms import FORMS, FieldMap, Unfit, content_id, form_of, has, load_field_map
from data_builders.programs import SourceProgram

SEALED = {".enc", ".gpg", ".age", ".asc"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zst", ".zip")

Row = tuple[int, Any]
"""(line or row from 1, what stands there); an `Unfit` where that cannot be read."""


class Reject(BaseModel):
    """A row that is no program: what it is called (`file:line` if it has no id yet), where it stands, and why."""

    id: str
    line: int
    reason: str


Items = Iterator[SourceProgram | Reject]


class Hub(NamedTuple):
    """Which part of a set of the hub is read; None is the hub's default."""

    split: str | None = None
    config: str | None = None
    revision: str | None = None


def told_source(
    source: str,
    good: str | None = None,
    form: str | None = None,
    fields: Path | None = None,
    sha256: str | None = None,
    hub: Hub = Hub(),  # noqa: B008 (immutable)
) -> dict[str, Any]:
    """For a manifest, what a set was read from and how: with digests of its files, without what is secret in a URL."""

    def read(where: str | None) -> str | None:
        path = Path(where or "")
        return file_digest(path) if where and "://" not in where and path.is_file() else None

    return {
        "source": told_address(source),
        "source_sha256": sha256 or source.partition(PIN)[2] or read(source),
        "good": good and told_address(good),
        "good_sha256": read(good),
        "form": form,
        "fields": fields and str(fields),
        "fields_sha256": fields and file_digest(fields),
        **hub._asdict(),
    }


def read_source(
    where: str,
    form: str | None = None,
    fields: Path | None = None,
    sha256: str | None = None,
    language: str | None = None,
    hub: Hub = Hub(),  # noqa: B008 (immutable)
    domain: str = CODE,
    good: str | None = None,
) -> Items:
    """Streams the programs of a set; each row read is yielded once, as a program or as a reject. BadInput if a source
    as a whole cannot be read, or its form cannot be told.

    Memory is constant but for some 200 bytes per program, by which duplicates are known, and for JSON that is not
    in lines. Ids are content hashes of request and insecure code, so that they do not depend on file or order; our
    own records keep theirs.

    Args:
        where: a file (JSON Lines, a JSON array, .csv, .tsv, .parquet, each also compressed), an http(s) URL of one
            (also URL#sha256=DIGEST), a hub id `owner/name` (the environment's HF_ENDPOINT is honoured), or `builtin`.
        form: a name in builtin/forms.yaml, or `fields`; by default guessed from the first row that can be read.
        fields: the field map (YAML) of the form `fields`, which it implies.
        sha256: the checksum of a URL, which must have one, or of a file, in hex.
        language, domain: as of `FieldMap.program`.
        good: a second file or set of the same form, of which the answers to the same requests are the good ones.
    """
    if form is not None and form not in {*FORMS, "fields"}:
        raise BadInput(f"unknown form {form!r}; give {', '.join(FORMS)} or fields")
    if (fields is not None) != (form == "fields") and form is not None:
        raise BadInput(f"form {form!r} and field map {fields}: --form fields and a field map go together")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BadInput(f"{sha256!r} is no SHA-256; give 64 hex digits")
    if where == "builtin" and domain != CODE:
        raise BadInput(f"builtin: holds code, and its records of {domain} are annotated; name another source")
    if good and good.startswith(("http://", "https://")):  # it would need a checksum of its own
        raise BadInput(f"--good {told_address(good)}: is no file and no set of the hub; download it first")
    reader = load_field_map(fields) if fields else FORMS[form] if form else None
    mapped = reader if fields else None
    named = [mapped.secure, mapped.template, mapped.language, mapped.id, *mapped.requests[1:]] if mapped else []
    programs = _read(where, _rows(where, sha256, hub), reader, language, domain, {name for name in named if name})
    if good is None:
        return programs
    answers: dict[str, list[str]] = defaultdict(list)
    why, unread = "", 0
    for item in _read(good, _rows(good, None, Hub()), reader, language, domain, set()):
        if isinstance(item, SourceProgram):
            answers[item.request].append(item.insecure)
        else:
            why, unread = why or f"{item.reason} (row {item.line})", unread + 1
    if not answers:
        raise BadInput(f"{good}: none of its rows can be used, the first for: {why}")
    if unread:
        print(f"{good}: {unread} rows cannot be used, the first for: {why}", file=sys.stderr)
    return _joined(programs, answers)


def _joined(items: Items, answers: Mapping[str, list[str]]) -> Items:
    """The programs with the good answers to their requests, where there are some that differ from the bad ones.

    A request that recurs has its answers in turn, and the last of them for what is left.
    """
    for item in items:
        if isinstance(item, SourceProgram) and (own := answers.get(item.request)):
            other = own.pop(0) if len(own) > 1 else own[0]
            if other != item.insecure:
                item = item.model_copy(update={"secure": other})
        yield item


def _read(
    where: str, rows: Iterator[Row], reader: FieldMap | None, language: str | None, domain: str, missing: set[str]
) -> Items:
    """The programs and rejects among the rows; BadInput if one of the fields stays `missing` in all of them."""
    known: dict[str, int] = {}
    number, told = 0, told_address(where)
    for number, row in rows:
        place = f"{told}:{number}"
        try:
            if isinstance(row, Unfit):
                raise row
            if not isinstance(row, dict):
                raise Unfit(f"{type(row).__name__}, not a JSON object")
            if (reader := reader or form_of(row)) is None:
                names = one_line(", ".join(sorted(map(str, row)))) or "(none)"
                raise BadInput(
                    f"{place}: cannot tell the form from the fields {names}; name it (--form) or map them (--fields)"
                )
            missing -= {name for name in missing if has(row, name)}
            program = reader.program(row, language, domain)
            content = content_id(program.request, program.insecure)
            if first := known.get(content):
                raise Unfit(f"same request and insecure code as line {first}")
            if first := known.get(program.id):
                raise Unfit(f"id {program.id[:80]!r} stands in line {first} already")
            known[content] = known[program.id] = number
        except Unfit as unfit:
            yield Reject(id=place, line=number, reason=one_line(unfit))
        else:
            yield program
    if not number:
        raise BadInput(f"{told}: no records; give a set with at least one row")
    if missing:  # misspelt: secure code that there is would be paid for
        raise BadInput(f"{told}: no row has the field {min(missing)!r}, which --fields names; mend the field map")


def _rows(where: str, sha256: str | None, hub: Hub) -> Iterator[Row]:
    path = BUILTIN / "programs.jsonl" if where == "builtin" else Path(where)
    if path.suffix.lower() in SEALED:
        raise BadInput(f"{where}: is encrypted; decrypt it as its publishers say, and name the plain file")
    if where.startswith(("http://", "https://")):
        path = fetch(where, sha256)
        where = PurePosixPath(urlsplit(where).path).name
    elif not path.exists() and path.suffix not in FILES and HUB_ID.fullmatch(where):
        if sha256:
            raise BadInput(f"{where}: a hub set has no checksum; pin it with --revision")
        return _hub_rows(where, hub)
    elif sha256 and path.is_file() and (actual := file_digest(path)) != sha256.lower():
        raise BadInput(f"{where}: its sha256 is {actual}, not {sha256}; look into why, then pin the true one")
    if any(hub):
        raise BadInput(f"{where}: is no set of the hub, and has no --split, --config or --revision; leave them out")
    return _file_rows(path, where)


def _file_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file, of the kind that the endings of `name` say."""
    import fsspec

    if not path.exists():
        raise BadInput(f"{name}: no such file; name an existing one, a set of the hub (owner/name), or a URL")
    suffix = Path(name).suffix.lower()
    try:
        open_file(path).close()  # a pipe would be waited for, or be empty at the second look
        packing = fsspec.utils.infer_compression(name.lower())
        if suffix in (".tar", ".tgz") or (packing == "zip" and not _one_file(path)):
            raise BadInput(f"{name}: is an archive, and no packed file; unpack it and name a file in it")
        if packing:
            with tempfile.NamedTemporaryFile() as plain, fsspec.open(str(path), "rb", compression=packing) as packed:
                shutil.copyfileobj(packed, plain)
                plain.flush()
                yield from _file_rows(Path(plain.name), name[: -len(suffix)])
        elif suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as table:
                check_columns(table.schema_arrow.names, name)
                rows = (row for batch in table.iter_batches(batch_size=256) for row in batch.to_pylist())
                yield from enumerate(rows, 1)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(path, name)
        else:
            yield from _json_rows(path, lines=suffix == ".jsonl")
    except BadInput as error:
        if Path(name) == path:
            raise
        raise BadInput(str(error).replace(str(path), name)) from None  # not what it was unpacked to
    except Exception as error:  # of several libraries
        raise BadInput(f"{name}: {one_line(error)}; give a whole file that can be read") from None


def _one_file(path: Path) -> bool:
    """Whether a zip archive begins with its only file: the first alone is read. macOS adds files of its own."""
    with zipfile.ZipFile(path) as packed:
        names = packed.namelist()
    return [name for name in names if not name.endswith("/") and not name.startswith("__MACOSX/")] == names[:1] != []


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # one that is too long for us costs its own row alone
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in (table := csv_table(file, name)):
            whole = None not in row and None not in row.values()
            fault = "the heading again" if all(own == value for own, value in row.items()) else ""
            fault = fault if whole else "more or fewer fields than the header"
            yield table.line_num, Unfit(fault) if fault else row


def _json_rows(path: Path, lines: bool) -> Iterator[Row]:
    """JSON Lines, a fault in one of which costs that line alone; or one array of objects, bare or in an object."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[" or (start == b"{" and not lines):
        try:
            value = parse_json(read_text(path))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
        else:
            if isinstance(value, dict):
                lists = [part for part in value.values() if isinstance(part, list)]
                value = lists[0] if len(lists) == 1 and form_of(value) is None else [value]
            yield from enumerate(value, 1)
            return
    for number, line in numbered_lines(path, MAX_LINE):
        if line is None or line.strip():
            yield number, _json_row(line)


def _json_row(line: bytes | None) -> Any:
    if line is None:
        return Unfit(f"over {MAX_LINE} bytes")
    if b"\0" in line:
        return Unfit("has a NUL byte")
    try:
        return parse_json(line.decode())
    except UnicodeDecodeError as error:
        return Unfit(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Unfit(f"not JSON: {error.msg} at character {error.pos}")
    except ValueError as error:
        return Unfit(f"not JSON that can be read: {one_line(error)}")


def _hub_rows(name: str, hub: Hub) -> Iterator[Row]:
    from datasets import load_dataset

    number = 0
    try:
        rows = load_dataset(name, hub.config, split=hub.split or "train", revision=hub.revision, streaming=True)
        for number, row in enumerate(rows, 1):
            yield number, row
    except Exception as error:  # the hub client's errors have no common base
        remedy = "check the id, the connection and your login"
        raise BadInput(f"{name}: row {number + 1}: {one_line(error)}; {remedy}") from None
