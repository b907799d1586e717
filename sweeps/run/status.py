"""Where every run stands, read from its folder alone: its record, its lock, its log and its checkpoints."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from core.records import BadInput, one_line, read_json
from sweeps.run.folder import Record, is_done, read_record, run_folder, saved_checkpoints
from sweeps.run.process import held, tail

_STEP = re.compile(r"(\d+)/(\d+) \[[\d:]+<([\d:?]+),\s*([\d.]+)(s/it|it/s)")
# A log is flushed in blocks, and may end, or be cut by a bar, in the midst of a number.
_LOSS = re.compile(r"'loss': '?([-+.\de]+|nan|inf)(?=[',}])")
_TOKENS = re.compile(r"'(?:num_tokens|tokens/total)': '?([+.\de]+)(?=[',}])")
TAIL = 6000
"""Bytes of a log that hold its last step with its loss."""
STATES = ("running", "failed", "waiting", "done")


@dataclass(frozen=True)
class Progress:
    """How far a run is; None for what is not known."""

    folder: Path
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    def cells(self) -> list[str]:
        left = self.seconds_left
        return [
            one_line(f"{self.folder.parent.name}/{self.folder.name}", 600),
            self.state,
            "" if self.step is None else f"{self.step}/{self.steps}" if self.steps else str(self.step),
            "" if self.loss is None else f"{self.loss:.4f}",
            "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f}",
            "" if left is None else f"{left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f}",
        ]


def progress(folder: Path, state: str) -> Progress:
    """How far an unfinished run is, from the end of its newest log.

    Tokens per second are those of a step at the trainer's own pace, so that a resumed run is not taken for a fast one.
    """
    logs = [path for name in ("train", "merge", "evaluate") if (path := folder / f"{name}.log").is_file()]
    text = tail(max(logs, key=lambda path: path.stat().st_mtime_ns), 0, TAIL) if logs else ""
    steps, losses, tokens = (pattern.findall(text) for pattern in (_STEP, _LOSS, _TOKENS))
    if not steps:
        return Progress(folder, state)
    step, of, left, pace, unit = steps[-1]
    seconds = float(pace) if unit == "s/it" else 1 / max(float(pace), 1e-9)
    return Progress(
        folder,
        state,
        int(step),
        int(of),
        float(losses[-1]) if losses else None,
        float(tokens[-1]) / max(int(step), 1) / seconds if tokens and seconds else None,
        _seconds(left) if state == "running" else None,
    )


def _seconds(clock: str) -> float | None:
    """Seconds of `1:02:03`; None for `?`."""
    return None if "?" in clock else reduce(lambda seconds, part: 60 * seconds + float(part), clock.split(":"), 0.0)


def status(folder: Path) -> Progress:
    """Where one run stands; one that was cut off waits, and one whose record or samples are damaged has failed."""
    record: dict[str, Any] | None = None
    damaged = False
    try:
        record = read_record(folder) if is_done(folder) else None
    except BadInput:
        damaged = True
    if record is not None:
        try:
            Record.model_validate(record)
            loss = (record.get("losses") or [[None, None]])[-1][1]
            speed = None
            if record.get("tokens") and not record.get("resumed_from"):  # of those, wall_seconds are the last attempt's
                speed = record["tokens"] / record["wall_seconds"]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):  # of another version, which says less
            return Progress(folder, "done")
        return Progress(folder, "done", record.get("steps"), record.get("steps"), loss, speed)
    if held(folder / ".lock"):
        return progress(folder, "running")
    if damaged or (folder / "failed.txt").is_file():
        return progress(folder, "failed")
    return Progress(folder, "waiting", max(saved_checkpoints(folder / "adapter"), default=None))


def planned(manifest: Path) -> list[Path]:
    """The folders of the runs that a sweep.json names; BadInput if it cannot be read."""
    root = manifest.parent.parent.parent
    try:
        runs = read_json(manifest)["runs"]
        folders = [run_folder(root, run["stage"], run["digest"], run["name"]) for run in runs]
        if not all(str(folder.relative_to(root)).isprintable() for folder in folders):  # such as NUL, which no path has
            raise ValueError
        return folders
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{manifest} cannot be read; start the sweep again, or --forget it") from None


def at_work(manifest: Path) -> Path | None:
    """A run of a planned sweep that is running; None if there is none, or the sweep.json cannot be read."""
    with suppress(BadInput, OSError):
        return next((folder for folder in planned(manifest) if status(folder).state == "running"), None)
    return None


def all_statuses(root: Path) -> tuple[list[Progress], dict[str, str]]:
    """Every run that has a folder or is planned, what needs the eye first; by sweep, how many runs are done."""
    folders = {path.parent for name in (".lock", "failed.txt", "run.json") for path in root.glob(f"*/*/{name}")}
    sweeps: dict[str, str] = {}
    of_sweep: dict[str, list[Path]] = {}
    for path in sorted(root.glob("sweeps/*/sweep.json")):
        try:
            own = planned(path)
        except BadInput as error:
            sweeps[path.parent.name] = str(error)
            continue
        of_sweep[path.parent.name] = own
    states = {folder: status(folder) for folder in folders.union(*of_sweep.values())}
    for name, own in of_sweep.items():
        sweeps[name] = f"{sum(states[folder].state == 'done' for folder in own)} of {len(own)} runs done"
    return sorted(states.values(), key=lambda row: (STATES.index(row.state), row.folder)), sweeps


def status_lines(rows: Iterable[Progress]) -> str:
    """One line for each run, in columns; rich's tables take half a second for a thousand."""
    cells = [["run", "state", "step", "loss", "tokens/s", "left"], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
