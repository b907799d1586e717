"""Processes of runs: started with their environment, their output in a log, ended as whole trees."""

import fcntl
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from core.download import NO_KERNELS
from core.records import open_file, printable

console = Console(stderr=True)


def say(words: str, style: str | None = None) -> None:
    """A line to standard error as it stands: nothing in it is markup, and it is not wrapped."""
    console.print(words, style=style, markup=False, highlight=False, soft_wrap=True)


def screen() -> Console:
    """Standard output; wide where no one watches, for a table in a file or a pipe must not be cut."""
    own = Console()
    return own if own.is_terminal else Console(width=220)


REFUSAL = re.compile(r"^refused: (.+)$", re.MULTILINE)
"""What a plugin's Refused prints as it ends a training; the launcher's own traceback may follow."""
LAST_WORDS = 16_000
"""Bytes at the end of a log in which its last words are looked for."""


class RunFailed(Exception):
    """A run that ended in failure; the message names its log and gives its last lines."""


class RunRefused(RunFailed):
    """A run that its own checks ended (recipes/plugins/refusals.py); another try would end so too."""


class RunHeld(Exception):
    """Another process is at work on this run."""


SLOT: ContextVar[Mapping[str, str] | None] = ContextVar("SLOT", default=None)
"""Environment of the processes that this thread starts: which GPU is theirs."""
SHARE = "EM_SHARE"
"""In that environment, where several runs share a GPU: `NUMBER/COUNT`, which of how many this place is."""
_LOCKS: ContextVar[tuple[int, ...]] = ContextVar("_LOCKS", default=())
"""Of the locks that this thread holds, and hands down."""
PATIENCE = 15.0
"""Seconds that processes have to end before they are killed."""
TRACKERS = ("WANDB_", "COMET_", "SWANLAB_")
"""Whose keys a training may need."""
_children: set[subprocess.Popen[bytes]] = set()
stopping = threading.Event()
"""Set when no process may be started any more."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock (RunHeld if another process does), and has the processes that `call` starts hold it too."""
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


def held(lock: Path) -> bool:
    """Whether a process holds a lock. Not asked of filelock, which opens to write: a lock may be in others' runs."""
    try:
        with open_file(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it is no file
        pass
    return False


def tool(name: str) -> str:
    """The path of a command in this environment."""
    return str(Path(sys.executable).parent / name)


def cores() -> int:
    """How many this process may use: of a node's a job of Slurm may have a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment(local_model: bool) -> dict[str, str]:
    """The environment for training and evaluation processes.

    Telemetry off; no code that bitsandbytes fetches; no key of an annotator or judge, for none is asked there, and
    HumanEval runs what a model writes. Unsloth's compiled code goes where runs are. All cores (accelerate would set one
    thread). glibc keeps freed memory: returning the logits' pages to the system at every step costs a fifth of the time
    on a CPU. None of this changes results.
    """
    given = {**os.environ, **(SLOT.get() or {})}
    env = {name: own for name, own in given.items() if not name.endswith("_API_KEY") or name.startswith(TRACKERS)}
    env.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    env.update(UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_COMPILE_LOCATION="runs/.unsloth")
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    if local_model:
        env["HF_HUB_OFFLINE"] = "1"
    return {
        "LOCAL_KERNELS": NO_KERNELS,
        "OMP_NUM_THREADS": str(cores()),
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(256 << 20),
        **env,
    }


def call(title: str, command: Sequence[str], log: Path, local_model: bool) -> None:
    """Runs a command with its output in `log` (appended), which inherits this thread's locks; RunFailed if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = spawn(title, command, local_model, **streams, pass_fds=_LOCKS.get())
        try:
            process.wait()
        finally:
            end(process)
    if stopping.is_set():
        raise RunFailed(f"{title} was stopped")
    if process.returncode:
        if refusal := REFUSAL.findall(tail(log, start, LAST_WORDS)):
            raise RunRefused(f"{title}: {printable(refusal[-1].strip())}")
        last = last_lines(log, start)
        raise RunFailed(f"{title} ended with exit code {process.returncode}; its log is {log}, which ends:\n  {last}")


def spawn(title: str, command: Sequence[str], local_model: bool, **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process that `stop_children` ends, by Popen's `options`; RunFailed if none may be started any more."""
    if stopping.is_set():
        raise RunFailed(f"{title} was stopped")
    process = subprocess.Popen(command, env=child_environment(local_model), **options)
    _children.add(process)
    if stopping.is_set():  # since it was asked for
        process.terminate()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of `spawn`, and theirs: an engine's workers would keep the GPU's memory."""
    _end_trees([process])
    process.communicate()
    _children.discard(process)


def last_lines(log: Path, start: int) -> str:
    """The last lines that a log holds from byte `start` on."""
    lines = [line for line in tail(log, start, LAST_WORDS).replace("\r", "\n").splitlines() if line.strip()]
    return "\n  ".join(printable(line[:300]) for line in lines[-6:])


def stop_children() -> None:
    """Ends all that `spawn` has started, and theirs; kills what has not ended after `PATIENCE`."""
    stopping.set()
    _end_trees(list(_children))


def _end_trees(roots: Sequence[subprocess.Popen[bytes]]) -> None:
    import psutil

    tree = []
    for child in roots:
        if child.poll() is None:  # else its number may be another's by now
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                tree += [*process.children(recursive=True), process]
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                stop(process)
        _, tree = psutil.wait_procs(tree, timeout=PATIENCE)


def tail(path: Path, start: int, size: int) -> str:
    """The last `size` bytes of a file, none before `start`."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - size))
        return file.read().decode(errors="replace")
