"""A process that keeps a base model in memory while evaluations of its adapters follow one another."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeps.runs import Run, RunFailed, child_environment, follow, last_lines


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


def _line(process: subprocess.Popen[str]) -> str | None:
    """The next line that the process says (empty if it has ended); None while there is none."""
    assert process.stdout
    return process.stdout.readline() if select.select([process.stdout], [], [], 0)[0] else None


class WarmBase:
    """At most one process of eval.adapters: replaced when an evaluation wants another base, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._base: dict[str, Any] | None = None

    def __enter__(self) -> WarmBase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def evaluate(self, title: str, run: Run, out: Path, log: Path, local_model: bool) -> None:
        """Evaluates the adapter of a run; lm-eval's files are in `out` then.

        Raises:
            RunFailed: if the evaluation fails or the process dies.
        """
        base = base_of(run)
        assert base is not None, "an evaluation without an adapter has no base to share"
        if self._process is None or self._process.poll() is not None or self._base != base:
            self._start(base, local_model)
        process = self._process
        assert process and process.stdin and process.stdout
        [adapter] = [a for a in run.content["model_args"].split(",") if a.startswith("peft=")]
        log.parent.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        request = {"peft": adapter.removeprefix("peft="), "out": str(out), "log": str(log)}
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            answer = follow(title, log, start, lambda: _line(process))
        except BrokenPipeError:
            answer = ""
        except BaseException:
            self.close()
            raise
        if answer != "\n":
            self.close()
            raise RunFailed(f"{title} failed; its log is {log}, which ends:\n  {last_lines(log, start)}")

    def _start(self, base: dict[str, Any], local_model: bool) -> None:
        self.close()
        self._base = base
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eval.adapters"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(local_model),
        )
        assert self._process.stdin
        said = ("model_args", "tasks", "batch_size", "seed", "metadata", "gen_kwargs", "limit")
        print(json.dumps({key: base[key] for key in said if key in base}), file=self._process.stdin, flush=True)

    def close(self) -> None:
        """Ends the process, so that its memory is free for a training run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
