"""Reading refuses with one clear line; writing leaves a whole file or none."""

import errno
import json
import os
from pathlib import Path

import pytest

from data_builders.programs import Program, load_programs
from data_builders.records import BadInput, read_jsonl, write_records, write_whole

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
