"""A planned sweep as a script for Slurm: each run one job, `emsweep exec SWEEP DIGEST`, after those it builds on."""

import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.records import write_whole
from sweeps.plan.request import Request
from sweeps.run.folder import Run, TrainingRun
from sweeps.run.graph import wanted


def write_slurm(request: Request, manifest: Path) -> Path:
    """Writes slurm.sh with the runs that are not done, in the sweep's folder, and returns its path; `manifest` is the
    sweep.json that its jobs read."""
    loader = PackageLoader("sweeps.plan", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["quote"] = shlex.quote
    todo = wanted(request.runs)

    def gpus(run: Run) -> int:
        if request.sweep.memory_gib is None:
            return 0
        return int((run.recipe.em if isinstance(run, TrainingRun) else run.about).get("gpus", 1))

    def after(run: Run) -> list[str]:
        return [before.digest for before in run.after if before.digest in todo]

    runs = [run for digest, run in request.runs.items() if digest in todo]
    template, path = environment.get_template("slurm.sh.j2"), request.folder / "slurm.sh"
    write_whole(path, template.render(folder=request.folder, manifest=manifest, runs=runs, after=after, gpus=gpus))
    return path
