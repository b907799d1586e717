"""The same graph on a Ray cluster: each run is a task on some node, over a folder (or a storage) that all nodes see."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.records import BadInput
from sweeps.run.executor import execute
from sweeps.run.folder import Run, RunFailed, RunHeld, content_digest, held, stopping
from sweeps.storage import Storage, elsewhere, needed
from sweeps.run.adapters import close_warm_bases


def on_ray(
    address: str | None, gpus: int, do: Callable[[Run], object] = execute, storage: Storage | None = None
) -> tuple[Callable[[Run], object], int]:
    """What does a run on the cluster, and how many can be done at once: one for each GPU, else one on each node.

    Ray itself starts a run again whose node is lost, on another one. In a shared folder its lock keeps it from a
    process of the lost node that still lives, and what was done stays done.

    Args:
        address: of the cluster; None starts one on this machine.
        gpus: for each run; 0 on a CPU.
        storage: what the nodes share, where they share no folder; the kit is installed on each.

    Raises:
        BadInput: if Ray is not installed, there is no cluster at the address, it has too few GPUs, or the storage
            cannot be used.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise BadInput("--launcher ray: Ray is not installed; `pip install -e .[ray]`") from None
    if storage:
        storage.check()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = str(Path.cwd())
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
    try:
        ray.init(
            address=address,
            ignore_reinit_error=True,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(f"--address {address}: {str(error).splitlines()[0]}") from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = int(sum(node.get("GPU", 0) for node in nodes)) // gpus if gpus else len(nodes)
    if not at_once:
        raise BadInput(f"--launcher ray: the cluster has fewer than the {gpus} GPUs that a run needs")
    cpus = 1 if gpus else int(min(node.get("CPU", 1) for node in nodes))

    def there(run: Run, paths: Sequence[Path]) -> object:
        try:
            if storage:
                node = ray.get_runtime_context().get_node_id()
                scratch = Path(tempfile.gettempdir()) / f"em-kit-{content_digest(storage.url)[:10]}-{node[:10]}"
                return elsewhere(run, do, storage, paths, scratch)
            os.chdir(folder)
            return do(run)
        finally:
            close_warm_bases()  # another worker may train on this node next

    options = {"num_gpus": gpus, "num_cpus": cpus, "max_retries": 3, "scheduling_strategy": "SPREAD"}
    remote = ray.remote(**options)(there)

    def sent(run: Run, paths: Sequence[Path]) -> object:
        task, cancelled = remote.remote(run, paths), False
        while not ray.wait([task], timeout=1)[0]:
            if stopping.is_set() and not cancelled:
                ray.cancel(task)
                cancelled = True
        try:
            return ray.get(task)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, RunFailed | RunHeld) else RunFailed(f"{run.folder}: {error}") from None
        except RayError as error:
            raise RunFailed(f"{run.folder}: {error}") from None

    def here(run: Run) -> object:
        if not storage:
            return sent(run, [])
        with held(run):  # the nodes have no lock in common
            if run.done:
                return None
            paths = needed(run)
            for path in [*storage.always, *paths, run.folder]:
                storage.put(path)
            try:
                # What it builds on is done, and only its model travels.
                return sent(replace(run, after=()), paths)
            finally:
                storage.get(run.folder)
                if run.done:
                    (run.folder / "failed.txt").unlink(missing_ok=True)
                    for checkpoint in run.folder.glob("adapter/checkpoint-*"):
                        shutil.rmtree(checkpoint)

    return here, at_once
