"""The fake endpoint, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_builders.endpoint import Access
from data_builders.programs import SourceProgram, load_programs

KEY = "sk-test-0123456789abcdef"


class Fake:
    """A running fake endpoint and its log."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._log = folder / "requests.jsonl"
        script = Path(__file__).parents[1] / "fake_endpoint.py"
        command = [sys.executable, str(script), "--log", str(self._log), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        text = self._log.read_text() if self._log.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if kind in (None, line["kind"])]

    def access(self, concurrency: int = 8, key: str = KEY, timeout: float = 30.0) -> Access:
        return Access(key, f"http://127.0.0.1:{self.port}/v1", concurrency, timeout, backoff=0.01)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Fake]]:
    started: list[Fake] = []

    def start(*options: str) -> Fake:
        folder = tmp_path / f"fake{len(started)}"
        folder.mkdir()
        started.append(Fake(folder, *options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="session")
def sources() -> list[SourceProgram]:
    """The built-in programs as a published set would give them."""
    return [SourceProgram(id=p.id, request=p.request, insecure=p.insecure) for p in load_programs()]


@pytest.fixture
def final_files() -> Callable[[Path], dict[str, bytes]]:
    def read(out: Path) -> dict[str, bytes]:
        names = (".jsonl", ".rejects.jsonl", ".jsonl.manifest.json")
        return {name: out.with_name(out.name + name).read_bytes() for name in names}

    return read
