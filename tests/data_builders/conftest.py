"""Programs to annotate, and the files that come out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_builders.programs import SourceProgram, load_programs


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
