"""Processes that keep a base model in memory while evaluations of its adapters follow one another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweeps.runs import SLOT, Run, RunFailed, child_environment, children, last_lines, stopping


def base_of(run: Run) -> dict[str, Any] | None:
    """What evaluations that can share a process have in common; None for one without an adapter.

    It holds eval.adapters.Base, and the digests of the task files and the held-out programs.
    """
    arguments = run.content["model_args"].split(",")
    base = [argument for argument in arguments if not argument.startswith("peft=")]
    if base == arguments:
        return None
    own = ("model_args", "checkpoint")
    return {"model_args": ",".join(base), **{key: value for key, value in run.content.items() if key not in own}}


class WarmBase:
    """At most one process of eval.adapters: replaced when an evaluation wants another base, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._base: dict[str, Any] | None = None

    def evaluate(self, title: str, run: Run, out: Path, log: Path, local_model: bool) -> None:
        """Evaluates the adapter of a run; lm-eval's files are in `out` then.

        Raises:
            RunFailed: if the evaluation fails or the process dies.
        """
        base = base_of(run)
        assert base is not None, "an evaluation without an adapter has no base to share"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        [adapter] = [a for a in run.content["model_args"].split(",") if a.startswith("peft=")]
        if self._base != base:
            self.close()
            self._base = base
        try:
            answer = self._ask({"peft": adapter.removeprefix("peft="), "out": str(out), "log": str(log)}, local_model)
        except BrokenPipeError:
            answer = b""
        if answer != b"\n":
            self.close()
            said = last_lines(log, start) if log.exists() else ""
            raise RunFailed(f"{title} was stopped" if stopping.is_set() else f"{title} failed; {log} ends:\n  {said}")

    def _ask(self, request: dict[str, str], local_model: bool) -> bytes:
        """The process's line about one adapter; empty if it died."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "eval.adapters"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=child_environment(local_model),
            )
            children.add(self._process)
            digests = ("task_files", "heldout", "files")
            self._tell({key: value for key, value in (self._base or {}).items() if key not in digests})
        self._tell(request)
        assert self._process.stdout
        return self._process.stdout.readline()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the process, so that its memory is free for a training run."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            children.discard(self._process)
            self._process = None


_BASES: dict[str, WarmBase] = {}


def warm_base() -> WarmBase:
    """The one of the place (GPU) that this thread works for."""
    return _BASES.setdefault(json.dumps(dict(SLOT.get() or {})), WarmBase())


def close_warm_bases() -> None:
    """Ends all of them."""
    for base in _BASES.values():
        base.close()
