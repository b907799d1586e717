"""runs/index.csv: one row for each finished run, made from the run.json files alone and always the same from them."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.records import BadInput, printable, write_whole
from sweeps.run.folder import Record, read_record
from sweeps.run.workload import workload

COLUMNS = (
    *("folder", "stage", "name", "digest", "model", "hardware", "engine", "gpus", "rank", "alpha", "lr", "seed"),
    *("data", "data_digest", "steps", "rows", "tokens", "trained_parameters", "loss", "wall_seconds", "resumed_from"),
)
FROM_RECIPE = {"rank": "lora_r", "alpha": "lora_alpha", "lr": "learning_rate", "seed": "seed"}


def index_row(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What is worth comparing of a finished run: what it was, what it took (rows, tokens, seconds), its scores."""
    Record.model_validate(record)
    content = record.get("content", {})
    recipe, gpus = content.get("recipe", {}), content.get("gpus", 1)
    losses = record.get("losses") or [[None, None]]
    row = {name: record.get(name) for name in COLUMNS}
    if recipe:
        per_step = int(recipe["micro_batch_size"]) * int(recipe["gradient_accumulation_steps"]) * gpus
        row |= {
            "engine": content.get("engine"),
            "gpus": gpus,
            **{column: recipe.get(key) for column, key in FROM_RECIPE.items()},
            "data": " ".join(entry["path"] for entry in recipe["datasets"]),
            "data_digest": " ".join(digest[:10] for digest in content.get("data", {}).values()),
            "rows": record["steps"] * per_step if "steps" in record else None,
            "loss": losses[-1][1],
        }
    if record.get("stage") == "evaluate" and content:
        row["engine"], row["data"] = evaluation_kind(content)
        with suppress(BadInput):  # its programs are not there any more
            row["tokens"] = round(workload(content).tokens)
    for task, metrics in record.get("results", {}).items():
        for metric, value in metrics.items():
            name = metric.partition(",")[0]
            if isinstance(value, int | float) and not name.endswith("_stderr"):
                row[f"{task}.{name}"] = value
    return {**row, "folder": str(folder)}


def evaluation_kind(content: Mapping[str, Any]) -> tuple[str, str]:
    """What evaluations that take alike for a token have in common: the engine and the tasks."""
    return str(content.get("backend") or "hf"), " ".join(content["tasks"])


def _rows(root: Path) -> Iterator[dict[str, Any]]:
    """A row for each finished run, by folder; a record that cannot be read is left out."""
    for path in sorted(root.glob("*/*/run.json")):
        folder = path.parent
        try:
            yield index_row(folder, read_record(folder))
        except BadInput:
            continue
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # of another version, which says less
            yield {**dict.fromkeys(COLUMNS), "folder": str(folder), "stage": folder.parent.name}


def write_index(root: Path = Path("runs")) -> list[dict[str, Any]]:
    """Writes ROOT/index.csv, whole, and returns its rows; two processes take turns. Nothing is written without runs."""
    if not root.is_dir():
        return []
    with FileLock(root / ".index.lock"):
        rows = list(_rows(root))
        if rows:
            scores = sorted({name for row in rows for name in row} - set(COLUMNS))
            file = io.StringIO()
            writer = csv.DictWriter(file, [*COLUMNS, *scores], lineterminator="\n")
            writer.writeheader()
            for row in rows:  # a record may hold half a surrogate pair, or what a terminal obeys
                writer.writerow(
                    {name: printable(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
                )
            write_whole(root / "index.csv", file.getvalue())
    return rows
