"""`--launcher ray`: the same graph on a Ray cluster whose nodes share the working folder (or a mounted bucket)."""

import os
from collections.abc import Callable
from pathlib import Path

from core.records import BadInput, one_line
from sweeps.run import process
from sweeps.run.adapters import close_resident_bases
from sweeps.run.executor import execute, in_place
from sweeps.run.folder import Run
from sweeps.run.process import RunFailed, RunHeld, stopping


def on_ray(
    address: str | None, gpus: int, do: Callable[[Run], object] = execute
) -> tuple[Callable[[Run], object], int]:
    """What does a run on the cluster, and how many can be done at once: one for each GPU, else one on each node.

    Ray itself starts a run again whose node is lost, on another one. Its lock, in the shared folder, keeps it from a
    process of the lost node that still lives, and what was done stays done. A cluster that is started here knows of no
    other `emsweep` on this machine: its runs take their places in this folder as those without Ray do.

    `address` is the cluster's, None starts one on this machine; `gpus` are those of each run, 0 on a CPU. BadInput if
    Ray is not installed, there is no cluster at the address, or it has too few GPUs.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise BadInput("--launcher ray: Ray is not installed; `pip install -e .[ray]`") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = str(Path.cwd())
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
    environment = {"env_vars": {"PYTHONPATH": path}}
    try:
        ray.init(address=address, ignore_reinit_error=True, runtime_env=environment, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(f"--address {address}: {one_line(error)}") from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A run has its GPUs on one node; one that no node holds Ray would await for ever, without a word.
    kind, least = ("GPU", gpus) if gpus else ("CPU", 1)
    nodes = [node for node in nodes if node.get(kind, 0) >= least]
    if not nodes:
        raise BadInput(f"--launcher ray: no node of the cluster has the {least} {kind}s that a run needs")
    at_once = sum(int(node["GPU"]) // gpus for node in nodes) if gpus else len(nodes)
    cpus = 1 if gpus else int(min(node["CPU"] for node in nodes))

    def on_node(run: Run) -> object:
        try:
            os.chdir(folder)
            if address:
                return do(run)
            cards = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus else None
            # By its module: Ray sends this function to the node, and can send no variable of a context.
            process.SLOT.set({"CUDA_VISIBLE_DEVICES": cards} if cards else {})
            return in_place(do, run.root)(run)
        finally:
            close_resident_bases()  # another worker may train on this node next

    remote = ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=3, scheduling_strategy="SPREAD")(on_node)

    def send(run: Run) -> object:
        task, cancelled = remote.remote(run), False
        while not ray.wait([task], timeout=1)[0]:
            if stopping.is_set() and not cancelled:
                ray.cancel(task)
                cancelled = True
        try:
            return ray.get(task)
        except RayError as error:
            cause = getattr(error, "cause", None)  # of an error in the task itself
            raise cause if isinstance(cause, RunFailed | RunHeld) else RunFailed(f"{run.folder}: {error}") from None

    return send, at_once
