"""A small sweep with stand-in work, to be killed: stand_in.py ROOT SECONDS [NAME-THAT-FAILS [RAY-ADDRESS]]

Each run starts a process that sleeps and then writes its name to ROOT/log.
"""

import sys
from pathlib import Path

from sweeps.run.executor import in_place, launch
from sweeps.run.folder import Run, execute_once
from sweeps.run.process import RunFailed, call
from sweeps.run.ray_cluster import on_ray

CODE = """
import sys, time
began = time.time()
time.sleep({seconds})
print('{name}', file=open('{log}', 'a'))
print(began, time.time(), file=open('{log}.times', 'a'))
sys.exit({end})
"""


def sweep(root: Path) -> dict[str, Run]:
    """cpt -> dpo0, dpo1, dpo2, each -> its evaluation."""
    cpt = Run("cpt", "cpt", {"name": "cpt"}, root)
    runs = [cpt]
    for name in ("dpo0", "dpo1", "dpo2"):
        dpo = Run("dpo", name, {"name": name}, root, (cpt,))
        runs += [dpo, Run("evaluate", f"eval-{name}", {"name": f"eval-{name}"}, root, (dpo,))]
    return {run.digest: run for run in runs}


def main(root: Path, seconds: str, failing: str = "", address: str = "") -> None:
    log = (root / "log").absolute()

    def work(run: Run) -> dict[str, str]:
        code = CODE.format(seconds=seconds, name=run.name, log=log, end=int(run.name == failing))
        call(run.name, [sys.executable, "-c", code], run.folder / "train.log", False)
        return {"says": run.name}

    def do(run: Run) -> object:
        if not all(before.done for before in run.after):  # as sweeps.launch.execute has it
            raise RunFailed(f"{run.name} builds on what is not done")
        return execute_once(run, lambda: work(run))

    there, at_once = in_place(do, root), 1
    if address:
        there, at_once = on_ray(address, 0, do)
    if launch(sweep(root), there, [{}] * at_once):
        raise RunFailed


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
