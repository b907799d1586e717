"""Reading refuses with one clear line; writing leaves a whole file or none."""

import errno
import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from core.records import (
    BadInput,
    check_rows,
    count,
    file_digest,
    json_rows,
    one_line,
    read_json,
    read_jsonl,
    read_text,
    record_writer,
    write_records,
    write_whole,
)
from data_builders.programs import Program, load_programs

GOOD = load_programs()[0].model_dump_json()


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(GOOD), **fields})


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", None, "no records"),
        (b"\n", 1, "the line"),
        (b"{", 1, "the line"),
        (b"[]", 1, "the line"),
        (b"null", 1, "the line"),
        (GOOD.encode() + b"\nnot json", 2, "the line"),
        (GOOD.encode() + b"\n" + GOOD.encode(), 2, "stands in line 1 already"),
        (b"\xff\xfe", None, "not UTF-8"),
        (changed(cwe="89").encode(), 1, "cwe"),
        (changed(insecure="").encode(), 1, "insecure"),
        (changed(secure="  \n").encode(), 1, "secure"),
        (changed(request=3).encode(), 1, "request"),
        (changed(request=None).encode(), 1, "request"),
        (changed(author="me").encode(), 1, "author"),
        (b'{"id": "a"}', 1, "Field required"),
        (GOOD[:-1].encode() + b', "request": "Another"}', 1, "the key request stands twice"),
    ],
)
def test_each_fault_gives_one_line_with_its_place(tmp_path: Path, content: bytes, line: int | None, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_jsonl(path, Program, unique="id")
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert says in message and "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl", Program, unique="id")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Nobody writes into it: it would be waited for, for ever; and at the second reading any is empty."""
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(BadInput, match=r"p\.jsonl: is a pipe or a device, and no file"):
        read_jsonl(tmp_path / "p.jsonl", Program, unique="id")
    with pytest.raises(BadInput, match="is a pipe or a device"):
        file_digest(tmp_path / "p.jsonl")
    for device in (tmp_path / "p.jsonl", Path("/dev/zero")):
        with pytest.raises(OSError, match="is a pipe or a device"):
            read_text(device)
        with pytest.raises(OSError, match="is a pipe or a device"):
            read_json(device)
    (tmp_path / "t").write_bytes("\ufeffa\r\né".encode())
    assert read_text(tmp_path / "t") == "a\né"


def test_json_that_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    """As a RecursionError it passed by all who expect a ValueError."""
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="is a pipe or a device"):
        read_json(tmp_path / "pipe.json")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Readers take the last, at any depth, in silence."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {}, "c": [{"a": 1}, {"a": 2}]}\n{"c": [{"b": 1, "b": 2}]}\n')
    for read in (lambda: list(json_rows(path)), lambda: check_rows(path)):
        with pytest.raises(BadInput, match=r"a\.jsonl:2: the key b stands twice"):
            read()


@pytest.mark.parametrize("value", [True, 1.0, "1", -1, float("inf"), None, [1]])
def test_a_count_is_a_whole_number(value: object) -> None:
    assert count(10**400) == 10**400 and count(0) == 0
    with pytest.raises(ValueError, match="is no whole number from 0"):
        count(value)


def test_nothing_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    """As root it would: /dev/null for every process of the machine."""
    os.mkfifo(tmp_path / "p.jsonl")
    for write in (lambda path: write_whole(path, "x"), lambda path: write_records(path, [{"id": 1}], {})):
        with pytest.raises(BadInput, match=r"p\.jsonl: is a folder or a device, and no file"):
            write(tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device; free some space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_device_is_one_line() -> None:
    with pytest.raises(BadInput, match="/dev/full"):
        write_whole(Path("/dev/full/x"), "new")


def test_the_manifest_adds_up(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [{"id": 1}, {"id": 2}], {"read": 2})
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert manifest["read"] == manifest["written"] == len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_a_stream_is_the_same_file_as_a_list(tmp_path: Path) -> None:
    records = [{"id": n, "text": "é\u2028"} for n in range(3)]
    write_records(tmp_path / "list.jsonl", records, {"read": 3})
    manifest: dict[str, int] = {}
    with record_writer(tmp_path / "stream.jsonl", manifest) as write:
        for record in records:
            write(record)
            assert [p.suffix for p in tmp_path.glob("stream*")] == []
        manifest["read"] = len(records)
    for end in ("", ".manifest.json"):
        assert (tmp_path / f"list.jsonl{end}").read_bytes() == (tmp_path / f"stream.jsonl{end}").read_bytes()
    summary = json.loads((tmp_path / "stream.jsonl.manifest.json").read_text())
    assert summary["sha256"] == hashlib.sha256((tmp_path / "stream.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize("record", [{"id": 2}, {"id": object()}, {"id": "\ud800"}])
def test_a_stream_that_breaks_off_changes_nothing(tmp_path: Path, record: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [{"id": 0}], {"read": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises((RuntimeError, TypeError, ValueError)), record_writer(path, {}) as write:
        write({"id": 1})
        write(record)
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_disk_that_fills_up_while_streaming_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    for at in (1, 2):  # noqa: B007 (which call fails: used in `full`)
        calls.clear()
        with pytest.raises(BadInput, match="No space left on device; free some space"):
            write_records(tmp_path / "a.jsonl", [{"id": 1}], {})
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_a_file_that_cannot_grow_is_one_line(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(BadInput, match="File too large; free some space"):
            write_records(tmp_path / "a.jsonl", ({"id": n, "text": "x" * 1000} for n in range(1000)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_programs_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({**json.loads(GOOD), "request": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read_jsonl(tmp_path / "p.jsonl", Program, unique="id")[0].request == "a\u2028b\x85c"


def test_what_a_server_or_a_file_says_moves_no_cursor() -> None:
    assert one_line("a\x1b[2J\x9b31m \u202eb\r\n\tc \ud800é") == r"a\u001b[2J\u009b31m \u202eb c \ud800é"
    assert str(BadInput("my\nfile.jsonl: two  blanks \n\n  b")) == "my file.jsonl: two  blanks b"
