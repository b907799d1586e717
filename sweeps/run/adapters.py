"""Processes that keep a base model, or vLLM's engine, while evaluations of its adapters follow one another."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweeps.run.process import SLOT, RunFailed, end, last_lines, spawn, stopping
from sweeps.run.vllm import vllm_command


class ResidentBase:
    """At most one process of eval.adapters: replaced when an evaluation wants another base, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._base: dict[str, Any] = {}

    def evaluate(
        self, title: str, base: dict[str, Any], adapter: str | None, out: Path, log: Path, local_model: bool
    ) -> None:
        """Evaluates an adapter (None: nothing but the base) of a base (the fields of eval.adapters.Base) into `out`.

        vLLM's engine stays for adapters of lower ranks than those it was made for. RunFailed if the evaluation fails or
        the process dies.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        words: list[dict[str, Any]] = [{"peft": adapter, "out": str(out / "lm-eval.json"), "log": str(log)}]
        if not self._serves(base):
            self.close()
            command = vllm_command() if base.get("backend") == "vllm" else [sys.executable, "-m", "eval.adapters"]
            self._process = spawn(title, command, local_model, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._base = base
            words.insert(0, base)
        assert self._process and self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in words))
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer != b"\n":
            self.close()
            said = last_lines(log, start) if log.exists() else ""
            raise RunFailed(f"{title} was stopped" if stopping.is_set() else f"{title} failed; {log} ends:\n  {said}")

    def _serves(self, base: dict[str, Any]) -> bool:
        """Whether the process that is there can take an adapter of this base."""
        alive = self._process is not None and self._process.poll() is None
        alike = {**self._base, "lora_rank": 0} == {**base, "lora_rank": 0}
        return alive and alike and bool(self._base.get("lora_rank", 0) >= base.get("lora_rank", 0))

    def close(self) -> None:
        """Ends the process, so that its memory is free for a training run."""
        if self._process is not None:
            end(self._process)
            self._process = None


_BASES: dict[str, ResidentBase] = {}


def _place(slot: Mapping[str, str] | None) -> str:
    return json.dumps(dict(slot or {}))


def resident_base() -> ResidentBase:
    """The one of the place (GPU) that this thread works for."""
    return _BASES.setdefault(_place(SLOT.get()), ResidentBase())


def close_resident_bases(slots: Iterable[Mapping[str, str]] | None = None) -> None:
    """Ends those of some places, or all of them."""
    for place in list(_BASES) if slots is None else map(_place, slots):
        if place in _BASES:
            _BASES[place].close()
