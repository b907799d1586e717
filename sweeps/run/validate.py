"""Axolotl's own validators on every recipe of a sweep, before the first run: hours later they would refuse it too.

They take seconds to import, so that they run in a process of their own: `python -m sweeps.run.validate RECIPES`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.records import BadInput, write_whole
from sweeps.run.folder import TrainingRun
from sweeps.run.graph import Graph, wanted
from sweeps.run.process import RunRefused, call


def check_recipes(runs: Graph, folder: Path) -> None:
    """Has Axolotl look at the recipes that are to be trained; a single one it looks at as soon as it trains it.

    Args:
        folder: gets the recipes, and the log.

    Raises:
        BadInput: naming the first recipe that it refuses, and why.
        RunFailed: if the check itself fails.
    """
    todo = [run for digest in sorted(wanted(runs)) if isinstance(run := runs[digest], TrainingRun)]
    if len(todo) < 2:
        return
    recipes = folder / "recipes.jsonl"
    lines = [json.dumps({"run": f"{run.stage} {run.name}", "recipe": run.whole_recipe.config}) for run in todo]
    write_whole(recipes, "\n".join(lines) + "\n")
    try:
        call("recipes", [sys.executable, "-m", "sweeps.run.validate", str(recipes)], folder / "recipes.log", True)
    except RunRefused as error:
        raise BadInput(str(error)) from None


def main(recipes: Path) -> int:
    """Prints the first refusal, as `call` reads it, and returns 1; 0 if there is none."""
    from axolotl.utils.schemas.config import AxolotlInputConfig  # half the import of axolotl.utils.config
    from pydantic import ValidationError

    for line in recipes.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        try:
            AxolotlInputConfig.model_validate(entry["recipe"])
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ").replace("\n", " ")
            print(f"refused: Axolotl refuses {entry['run']}: {why}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
