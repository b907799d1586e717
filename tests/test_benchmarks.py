"""The benchmarks, which no test runs: at least what they import is there."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_it_imports_is_there(path: Path) -> None:
    names = runpy.run_path(str(path), run_name="imported")
    assert callable(names["main"]) and f"python benchmarks/{path.name}" in names["__doc__"]
