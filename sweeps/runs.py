"""Runs: one recipe (or one evaluation) executed once, in a folder named by its content.

The digest covers the recipe, the bytes of its data and the runs it builds on. So the same request is the
same folder, a finished run is never repeated, and sweeps share their common runs. `run.json` is written
last, atomically: its existence means done.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_builders.records import write_whole
from sweeps.recipe import Recipe

PACKAGES = ("axolotl", "unsloth", "torch", "transformers", "trl", "peft", "datasets", "lm_eval")
console = Console(stderr=True)


class RunFailed(Exception):
    """A run that ended in failure; the message names its log and gives its last lines."""


def content_digest(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """What is to be executed, and where. Executing it is left to sweeps/train.py and sweeps/evaluate.py."""

    stage: str
    name: str
    content: dict[str, Any]
    """All that decides the outcome: recipe or evaluation settings, data digests, digests of earlier runs."""
    root: Path = field(default=Path("runs"), compare=False)

    @cached_property
    def digest(self) -> str:
        return content_digest({"stage": self.stage, **self.content})

    @cached_property
    def folder(self) -> Path:
        return self.root / self.stage / f"{self.name}-{self.digest[:10]}"

    @property
    def done(self) -> bool:
        return (self.folder / "run.json").is_file()

    def record(self) -> dict[str, Any]:
        """The finished run's record (run.json)."""
        record: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return record


@dataclass(frozen=True)
class TrainingRun(Run):
    """A training run: its recipe, and the folder with the model that comes out."""

    recipe: Recipe = field(kw_only=True, compare=False)
    merge: bool = field(default=False, kw_only=True)

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.adapter / "merged"


def execute_once(run: Run, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does `work` unless the run is done already, and writes its record last.

    Two processes that want the same run take turns; the second finds it done.

    Returns:
        the record: what `work` returned, with wall time (seconds), versions, commit and machine.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(run.folder / ".lock"):
        if run.done:
            console.print(f"{run.folder}: done already", style="dim", markup=False, highlight=False)
            return run.record()
        began = time.monotonic()
        record = work()
        record = {
            "stage": run.stage,
            "name": run.name,
            "digest": run.digest,
            "content": run.content,
            **record,
            "wall_seconds": round(time.monotonic() - began, 1),
            "versions": _versions(),
            "commit": commit(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        }
        write_whole(run.folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
        return record


def _versions() -> dict[str, str | None]:
    """Of Python and of the packages that decide a result; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def commit() -> str | None:
    """The commit of the working folder, with `+` where files differ from it; None outside a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    output = subprocess.run([git, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return output.stdout.strip() or None


def tool(name: str) -> str:
    """The path of a command in this environment."""
    return str(Path(sys.executable).parent / name)


def child_environment(local_model: bool) -> dict[str, str]:
    """The environment for training and evaluation processes.

    Telemetry off; Unsloth's compiled code goes where runs are. All cores (accelerate would set one thread). glibc
    keeps freed memory: returning the logits' pages to the system at every step costs a fifth of the time on a CPU.
    None of this changes results.
    """
    env = dict(os.environ)
    env.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    env.update(UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_COMPILE_LOCATION="runs/.unsloth")
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    if local_model:
        env["HF_HUB_OFFLINE"] = "1"
    for key, value in {
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(256 << 20),
    }.items():
        env.setdefault(key, value)
    return env


_STEP = re.compile(r"(\d+)/(\d+) \[")


def call(title: str, command: Sequence[str], log: Path, local_model: bool) -> None:
    """Runs a command with its output in `log` (appended), and shows its progress.

    Raises:
        RunFailed: if it does not end well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(local_model),
        )
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        try:
            with Progress(*columns, console=console, refresh_per_second=2) as progress:
                task = progress.add_task(title, total=None)
                while process.poll() is None:
                    time.sleep(0.5)
                    steps = _STEP.findall(_tail(log, start, 4000))
                    if steps:
                        progress.update(task, completed=int(steps[-1][0]), total=int(steps[-1][1]))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        lines = [line for line in _tail(log, start, 3000).replace("\r", "\n").splitlines() if line.strip()]
        last = "\n  ".join(line[:300] for line in lines[-6:])
        raise RunFailed(f"{title} ended with exit code {process.returncode}; its log is {log}, which ends:\n  {last}")


def _tail(path: Path, start: int, size: int) -> str:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - size))
        return file.read().decode(errors="replace")
