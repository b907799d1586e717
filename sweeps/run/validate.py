"""Axolotl's own validators on every recipe of a sweep, before the first run: hours later they would refuse it too.

Likewise lm-eval on the names of tasks that are not ours. Both take seconds to import, so that they run in a process of
their own: `python -m sweeps.run.validate FILE`.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from core.records import BadInput, write_whole
from sweeps.run.folder import TrainingRun
from sweeps.run.graph import Graph, wanted
from sweeps.run.process import RunRefused, call
from sweeps.run.tasks import task_configs


def check_runs(runs: Graph, folder: Path) -> None:
    """Has Axolotl look at the recipes that are to be trained; a single one it looks at as soon as it trains it.

    `folder` gets the recipes, and the log. BadInput names the first recipe that it refuses, and why, or a task that
    there is not; RunFailed if the check itself fails.
    """
    needed = wanted(runs)
    todo = [run for digest, run in runs.items() if digest in needed]
    trained = [run for run in todo if isinstance(run, TrainingRun)]
    lines: list[Any] = []
    if len(trained) > 1:
        lines = [{"run": f"{run.stage} {run.name}", "recipe": run.whole_recipe.config} for run in trained]
    tasks = {name for run in todo if run.stage == "evaluate" for name in run.content["tasks"]}
    lines += [{"task": name} for name in sorted(tasks & task_configs(list(tasks))[1])]
    if not lines:
        return
    file = folder / "recipes.jsonl"
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
    try:
        call("recipes", [sys.executable, "-m", "sweeps.run.validate", str(file)], folder / "recipes.log", True)
    except RunRefused as error:
        raise BadInput(str(error).removeprefix("recipes: ")) from None


def _refusal(entry: dict[str, Any]) -> str:
    """Why a recipe or a task is refused; empty if it is not."""
    from pydantic import ValidationError

    if "task" in entry:
        name = entry["task"]
        known = Path(name).is_file() if name.endswith(".yaml") else _task_manager().match_tasks([name])
        return "" if known else f"tasks: neither eval/tasks nor lm-eval has {name!r}; see `lm_eval ls tasks`"
    from axolotl.utils.schemas.config import AxolotlInputConfig  # half the import of axolotl.utils.config

    try:
        AxolotlInputConfig.model_validate(entry["recipe"])
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ").replace("\n", " ")
        return f"Axolotl refuses {entry['run']}: {why}"
    return ""


@cache
def _task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def main(file: Path) -> int:
    """Prints the first refusal, as `call` reads it, and returns 1; 0 if there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if why := _refusal(json.loads(line)):
            print(f"refused: {why}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
