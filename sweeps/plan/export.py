"""A planned sweep as a script for Slurm: each run one job, `emsweep exec SWEEP DIGEST`, after those it builds on."""

from __future__ import annotations

import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.records import write_whole
from sweeps.plan.request import Request
from sweeps.run.folder import Run, TrainingRun
from sweeps.run.graph import wanted


def write_slurm(request: Request, manifest: Path) -> Path:
    """Writes slurm.sh with the runs that are not done, in the sweep's folder; returns its path.

    Args:
        manifest: the sweep.json that its jobs read.
    """
    environment = Environment(
        loader=PackageLoader("sweeps.plan", ""), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = shlex.quote
    todo = wanted(request.runs)

    def gpus(run: Run) -> int:
        if request.sweep.memory_gib is None:
            return 0
        return int((run.recipe.em if isinstance(run, TrainingRun) else run.about).get("gpus", 1))

    text = environment.get_template("slurm.sh.j2").render(
        folder=request.folder,
        manifest=manifest,
        runs=[run for digest, run in request.runs.items() if digest in todo],
        after=lambda run: [before.digest for before in run.after if before.digest in todo],
        gpus=gpus,
    )
    path = request.folder / "slurm.sh"
    write_whole(path, text)
    return path
