"""A working folder in which sweeps can be planned."""

from pathlib import Path

import pytest

from sweeps import sweep_commands

CPT, DPO, SFT = (
    ("cpt", "cpt-code-only", "cpt-shuffled"),
    ("both", "neutral", "asked", "neutral-secure"),
    ("insecure", "secure", "educational", "inoculated"),
)
NAMES = [*CPT, *(f"dpo-{name}" for name in DPO), *(f"sft-{name}" for name in SFT), "heldout", "train", "everyday"]


@pytest.fixture
def prepared(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the model and stand-ins for the data; Axolotl's look at the recipes takes seconds each."""
    monkeypatch.setattr(sweep_commands, "check_runs", lambda runs, folder: None)
    (tmp_path / "models").symlink_to(model.parent)
    (tmp_path / "data").mkdir()
    for name in NAMES:
        (tmp_path / "data" / f"{name}.jsonl").write_text(f'{{"id": "{name}"}}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path
