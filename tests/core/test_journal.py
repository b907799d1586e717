"""The journal: whole lines or none, on disk before use, one writer."""

import asyncio
import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from core.llm.journal import Answer, Journal
from core.records import BadInput


def answer(number: int, text: str = "ü\n\u2028{}") -> Answer:
    return Answer(key=str(number), model="m", text=text, finish="stop", tokens_in=1, tokens_out=2)


def filled(path: Path, count: int) -> bytes:
    async def fill() -> None:
        journal = Journal(path)
        await asyncio.gather(*(journal.append(answer(number)) for number in range(count)))
        journal.close()

    asyncio.run(fill())
    return path.read_bytes()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    filled(path, 3)

    async def more() -> None:
        journal = Journal(path)
        assert list(journal.answers) == ["0", "1", "2"]
        await journal.append(answer(1, "a later answer to the same request"))
        journal.close()

    asyncio.run(more())
    journal = Journal(path)
    journal.close()
    assert journal.answers[answer(1).key][0] == answer(1), "the first answer counts: it may have been used"


def test_a_last_line_cut_anywhere_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    data = filled(path, 3)
    lines = data.splitlines(keepends=True)
    for cut in range(len(lines[0]) + len(lines[1]), len(data) - 1):
        path.write_bytes(data[:cut])
        journal = Journal(path)
        assert len(journal.answers) == 2
        journal.close()
        assert path.read_bytes() == b"".join(lines[:2]), "the next line must not be glued to a torn one"
    path.write_bytes(b"".join(lines[:2]) + b"\0" * 40 + b"\n")  # as a power cut leaves it
    journal = Journal(path)
    journal.close()
    assert len(journal.answers) == 2


@pytest.mark.parametrize("edited", [lambda data: data[:-1], lambda data: b"\xef\xbb\xbf" + data])
def test_what_an_editor_leaves_out_or_adds_costs_no_answer(tmp_path: Path, edited) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(edited(filled(path, 2)))
    filled(path, 1)
    with closing(Journal(path)) as journal:
        assert {key: len(answers) for key, answers in journal.answers.items()} == {"0": 2, "1": 1}


def test_damage_before_the_last_line_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    data = filled(path, 2)
    path.write_bytes(b"{}\n" + data)
    with pytest.raises(BadInput, match=r"j\.jsonl:1: "):
        Journal(path)
    path.write_bytes(data)
    Journal(path).close()  # the lock was given back


@pytest.mark.parametrize("tokens", ["-5", "1" + "0" * 400])
def test_tokens_that_no_reply_has_are_damage(tmp_path: Path, tokens: str) -> None:
    """Fewer than none would be money given back, and more than a float holds a traceback at each run."""
    entry = '{"key":"k","model":"m","text":"t","finish":"stop","tokens_in":1,"tokens_out":'
    (tmp_path / "j.jsonl").write_text(f"{entry}{tokens}}}\n")
    with pytest.raises(BadInput, match=r"j\.jsonl:1: no journal entry"):
        Journal(tmp_path / "j.jsonl")


@pytest.mark.parametrize("data", [b'{"messages": []}\n', b'{"messages": []}', b'{"kex', b"\n"])
def test_nothing_of_another_file_is_cut_off(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"j\.jsonl:1: no journal entry"):
        Journal(path)
    assert path.read_bytes() == data


def test_there_is_one_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    with pytest.raises(BadInput, match="another job"):
        Journal(tmp_path / "j.jsonl")
    journal.close()
    Journal(tmp_path / "j.jsonl").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another --out"):
        Journal(tmp_path / "file" / "j.jsonl")


def test_many_waiters_share_an_fsync_and_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "j.jsonl", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (real(file), synced.append(path.read_bytes().count(b"\n"))))

    async def fill() -> None:
        journal = Journal(path)

        async def one(number: int) -> None:
            await asyncio.sleep(number % 7 / 1000)
            await journal.append(answer(number))
            assert synced[-1] >= len(journal.answers) > 0
            assert f'"{number}"'.encode() in path.read_bytes()

        await asyncio.gather(*(one(number) for number in range(100)))
        journal.close()

    asyncio.run(fill())
    assert len(synced) < 50 and synced[-1] == 100


def test_a_full_disk_stops_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def fill() -> list[object]:
        journal = Journal(path)
        monkeypatch.setattr(os, "write", full)
        results = await asyncio.gather(*(journal.append(answer(n)) for n in range(5)), return_exceptions=True)
        monkeypatch.undo()
        results += await asyncio.gather(journal.append(answer(9)), return_exceptions=True)
        assert not journal.answers
        journal.close()
        return results

    results = asyncio.run(fill())
    assert len(results) == 6 and all(isinstance(result, BadInput) for result in results)
    assert "No space left" in str(results[0])
