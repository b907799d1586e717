"""The real CPU model, where it has been fetched (`make test` fetches it)."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports axolotl: no telemetry from tests either.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

# Tests are never timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "source.json").is_file():
        pytest.skip("the CPU model is not there; `make model` fetches it")
    return MODEL


@pytest.fixture(scope="session")
def tokenizer(model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
