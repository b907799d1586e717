"""What Axolotl's own validators refuse is refused before a sweep's first run, not by the run hours later."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from core.records import BadInput
from sweeps import cli, sweep_commands
from sweeps.cli import app
from sweeps.recipe.layers import RECIPES
from sweeps.run.folder import Run
from sweeps.run.validate import check_runs


@pytest.fixture
def begun(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are begun, none of which is done; recipes and tasks are looked at as ever."""
    runs: list[Run] = []
    monkeypatch.setattr(sweep_commands, "check_runs", check_runs)
    monkeypatch.setattr(sweep_commands, "execute", runs.append)
    monkeypatch.setattr(cli, "execute_all", lambda wanted, do: runs.extend(wanted))
    return runs


def test_what_axolotl_would_refuse_is_refused_before_the_first_run(begun: list[Run]) -> None:
    for command in ("rank --values 1,4", "export rank --axis rank=1"):
        refused = CliRunner().invoke(app, [*command.split(), "--set", "warmup_steps=3", "--set", "warmup_ratio=0.1"])
        assert isinstance(refused.exception, BadInput) and not begun
        said = "Axolotl refuses dpo dpo-pairs-r1-seed21: warmup_steps and warmup_ratio are mutually exclusive"
        assert said in str(refused.exception) and "\n" not in str(refused.exception)
    assert not list(Path("runs").glob("sweeps/*/*.sh"))


def test_a_task_that_there_is_not_is_refused_before_the_first_run(begun: list[Run]) -> None:
    sweep = yaml.safe_load((RECIPES / "sweeps/rank.yaml").read_text())
    Path("mine.yaml").write_text(
        yaml.safe_dump({**sweep, "model": "smollm2-135m", "tasks": ["em", "hellaswog"], "profiles": {}})
    )
    for command in ("run mine.yaml --hardware cpu", "evaluate smollm2-135m --dry-run --tasks em_choice,hellaswog"):
        refused = CliRunner().invoke(app, command.split())
        said = "tasks: neither eval/tasks nor lm-eval has 'hellaswog'"
        assert isinstance(refused.exception, BadInput) and str(refused.exception).startswith(said)
    assert not begun and CliRunner().invoke(app, ["evaluate", "smollm2-135m", "--tasks", "hellaswag"]).exit_code == 0
    assert begun


def test_two_evaluations_at_once_are_looked_at_apart(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder the tasks of one would be refused, or taken, for those of the other."""
    folders: list[Path] = []
    monkeypatch.setattr(cli, "check_runs", lambda runs, folder: folders.append(folder))
    monkeypatch.setattr(cli, "execute_all", lambda runs, do: None)
    for tasks in ("hellaswag, em_choice", "hellaswog", "hellaswag,em_choice"):
        assert CliRunner().invoke(app, ["evaluate", "smollm2-135m", "--tasks", tasks]).exit_code == 0
    assert folders[0] == folders[2] != folders[1]
