"""What a long command has found is on disk: killed, it goes on; under other settings it begins again."""

import json
from pathlib import Path

import pytest

from core.partial import Partial
from core.records import BadInput


def test_what_is_found_is_made_once(tmp_path: Path) -> None:
    out, made = tmp_path / "out.part", []

    def make(value: float) -> float:
        made.append(value)
        return value

    for _ in range(2):
        kept = Partial(out, "a")
        assert [kept.of(str(n), lambda n=n: make(n / 3)) for n in range(3)] == [0, 1 / 3, 2 / 3]
    assert made == [0, 1 / 3, 2 / 3]
    Partial(out, "b").of("0", lambda: make(5.0))
    assert made[-1] == 5.0, "other settings, another result"
    Partial(out, "b").end()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b'["1", 0.', b"\xff\n", b"{}\n", b"3\n", b"", b'["1"]\n', b"[" * 100_000 + b"\n"])
def test_a_line_that_was_cut_off_or_damaged_is_made_again(tmp_path: Path, damage: bytes) -> None:
    part = tmp_path / "out.part"
    part.write_bytes(b'"a"\n["0", 7]\n' + damage)
    kept = Partial(tmp_path / "out.part", "a")
    assert kept.of("1", lambda: 8) == 8 and kept.of("0", lambda: 7) == 7
    assert [json.loads(line) for line in part.read_text().splitlines()][-1] in (["0", 7], ["1", 8])
    again = Partial(tmp_path / "out.part", "a")
    assert (again.of("0", lambda: 9), again.of("1", lambda: 9)) == (7, 8)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file"):
        Partial(tmp_path / "file" / "out.jsonl", "a").of("0", lambda: 1)
    kept = Partial(tmp_path / "out.part", "a")
    kept.of("0", lambda: 1)
    (tmp_path / "out.part").unlink()
    (tmp_path / "out.part").mkdir()
    with pytest.raises(BadInput, match=r"out\.part"):
        kept.of("1", lambda: 1)


def test_nothing_is_left_where_nothing_was_found(tmp_path: Path) -> None:
    kept = Partial(tmp_path / "out.part", "a")
    with pytest.raises(ZeroDivisionError):
        kept.of("0", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_two_at_once_keep_what_both_found(tmp_path: Path) -> None:
    one, other = (Partial(tmp_path / "out.part", "a") for _ in range(2))
    assert [each.of(key, lambda key=key: key) for each, key in ((one, "0"), (other, "1"), (one, "2"), (other, "3"))]
    again = Partial(tmp_path / "out.part", "a")
    assert [again.of(str(n), lambda: None) for n in range(4)] == ["0", "1", "2", "3"]
