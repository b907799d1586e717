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
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from core.records import write_whole
from sweeps.recipe.compose import Recipe

PACKAGES = ("axolotl", "unsloth", "torch", "transformers", "trl", "peft", "datasets", "lm_eval")
console = Console(stderr=True)


class RunFailed(Exception):
    """A run that ended in failure; the message names its log and gives its last lines."""


class Pruned(RunFailed):
    """A training run that was ended at a checkpoint, since it was not worth going on."""


class RunHeld(Exception):
    """Another process is at work on this run."""


SLOT: ContextVar[Mapping[str, str] | None] = ContextVar("SLOT", default=None)
"""Environment of the processes that this thread starts: which GPU is theirs."""
LOOK = 1.0
"""Seconds between looks at whether a process is to be ended."""
_LOCKS: ContextVar[tuple[int, ...]] = ContextVar("_LOCKS", default=())
"""Of the locks that this thread holds, and hands down."""
_children: set[subprocess.Popen[bytes]] = set()
stopping = threading.Event()
"""Set when no process may be started any more."""


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
    after: tuple[Run, ...] = field(default=(), compare=False)
    """The runs that this one builds on."""
    about: dict[str, Any] = field(default_factory=dict, compare=False)
    """Names for people and for estimates (model, hardware); goes into the record, not into the digest."""

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

    The lock is handed down to the processes that `work` starts: should this one be killed, they hold it until they end.

    Returns:
        the record: what `work` returned, with wall time (seconds), versions, commit and machine.

    Raises:
        RunHeld: if another process is at work on it.
    """
    with held(run):
        if run.done:
            return run.record()
        (run.folder / "failed.txt").unlink(missing_ok=True)
        began = time.monotonic()
        record = work()
        record = {
            "stage": run.stage,
            "name": run.name,
            "digest": run.digest,
            **run.about,
            "content": run.content,
            **record,
            "wall_seconds": round(time.monotonic() - began, 1),
            "versions": _versions(),
            "commit": commit(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        }
        write_whole(run.folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
        return record


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Holds the lock of a run's folder.

    Raises:
        RunHeld: if another process has it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder / ".lock"):
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock, and has the processes that `call` starts meanwhile hold it too.

    Raises:
        RunHeld: if another process has it.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunHeld(f"{path.parent}: another process is at work on it") from None
    descriptor = lock._context.lock_file_fd
    token = _LOCKS.set(_LOCKS.get() if descriptor is None else (*_LOCKS.get(), descriptor))
    try:
        yield
    finally:
        _LOCKS.reset(token)
        lock.release()


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
    env = {**os.environ, **(SLOT.get() or {})}
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


def call(
    title: str, command: Sequence[str], log: Path, local_model: bool, until: Callable[[], bool] | None = None
) -> bool:
    """Runs a command with its output in `log` (appended), or ends it as soon as `until` says so.

    Returns:
        whether it ended by itself.

    Raises:
        RunFailed: if it does not end well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        process = spawn(
            title,
            command,
            local_model,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=_LOCKS.get(),
        )
        reached = False
        try:
            while process.poll() is None and not reached:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(None if until is None else LOOK)
                reached = until is not None and process.poll() is None and until()
        finally:
            if process.poll() is None:
                _end_trees([process])
                process.wait()
            _children.discard(process)
    if stopping.is_set():
        raise RunFailed(f"{title} was stopped")
    if reached:
        return False
    if process.returncode:
        last = last_lines(log, start)
        raise RunFailed(f"{title} ended with exit code {process.returncode}; its log is {log}, which ends:\n  {last}")
    return True


def spawn(title: str, command: Sequence[str], local_model: bool, **how: Any) -> subprocess.Popen[bytes]:
    """Starts a process that `stop_children` ends; `how` are Popen's own arguments.

    Raises:
        RunFailed: if no process may be started any more.
    """
    if stopping.is_set():
        raise RunFailed(f"{title} was stopped")
    process = subprocess.Popen(command, env=child_environment(local_model), **how)
    _children.add(process)
    if stopping.is_set():  # since it was asked for
        process.terminate()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of `spawn` at once."""
    process.kill()
    process.communicate()
    _children.discard(process)


def last_lines(log: Path, start: int) -> str:
    """The last lines that a log holds from byte `start` on."""
    lines = [line for line in tail(log, start, 3000).replace("\r", "\n").splitlines() if line.strip()]
    return "\n  ".join(line[:300] for line in lines[-6:])


def stop_children(patience: float = 15.0) -> None:
    """Ends all that `spawn` has started, and theirs; kills what has not ended after `patience` seconds."""
    stopping.set()
    _end_trees(list(_children), patience)


def _end_trees(roots: Sequence[subprocess.Popen[bytes]], patience: float = 15.0) -> None:
    import psutil

    tree = []
    for child in roots:
        try:
            process = psutil.Process(child.pid)
            tree += [*process.children(recursive=True), process]
        except psutil.NoSuchProcess:
            continue
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                stop(process)
        _, tree = psutil.wait_procs(tree, timeout=patience)


def tail(path: Path, start: int, size: int) -> str:
    """The last `size` bytes of a file, none before `start`."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - size))
        return file.read().decode(errors="replace")
