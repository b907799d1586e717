"""A planned sweep as a script for somebody else's scheduler: each run one command, `emsweep run PLAN DIGEST`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.records import write_whole
from sweeps.plan.options import Asked
from sweeps.run.folder import Run, TrainingRun

FILES = {"sh": "run.sh", "slurm": "slurm.sh", "skypilot": "sky.yaml"}


def script(kind: str, it: Asked, bucket: str) -> str:
    """The script of the runs that are not done.

    Args:
        kind: sh, slurm or skypilot.
        bucket: what SkyPilot mounts as the folder of runs.
    """
    environment = Environment(
        loader=PackageLoader("sweeps", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    todo = {digest: run for digest, run in it.runs.items() if not run.done}

    def after(run: Run) -> Sequence[str]:
        return [before.digest for before in run.after if before.digest in todo]

    def gpus(run: Run) -> int:
        if it.hardware["memory_gib"] is None:
            return 0
        return int(run.recipe.em.get("gpus", 1)) if isinstance(run, TrainingRun) else 1

    return environment.get_template(f"{FILES[kind]}.j2").render(
        it=it,
        runs=list(todo.values()),
        plan=str(it.plan),
        after=after,
        gpus=gpus,
        accelerator=it.hardware.get("accelerator"),
        bucket=bucket,
        # SkyPilot takes letters, digits and dashes.
        name=lambda text: re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-"),
    )


def export(kind: str, it: Asked, bucket: str) -> Path:
    """Writes the plan, and beside it the script; returns the script's path."""
    it.write()
    out = it.folder / FILES[kind]
    write_whole(out, script(kind, it, bucket))
    return out
