"""Documents of a task with their scores, as lm-eval logged them in an evaluation run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.records import BadInput


def load_samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The documents of a task in `folder`/samples/TASK.jsonl.

    Raises:
        BadInput: if there are none of that task, or they are cut off.
    """
    path = folder / "samples" / f"{task}.jsonl"
    if not path.is_file():
        raise BadInput(f"{path}: no samples of this task; evaluate with --tasks {task} first")
    try:
        with path.open(encoding="utf-8") as file:  # splitlines would also cut at U+2028, which answers hold
            return [json.loads(line) for line in file]
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: cut off or damaged; delete {folder}, and evaluate again") from None
