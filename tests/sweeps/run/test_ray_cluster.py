"""A Ray cluster of three nodes on this machine; one is killed at work."""

import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.records import BadInput
from sweeps import sweep_commands
from sweeps.options import StartOptions
from sweeps.run.folder import Run
from sweeps.run.process import RunHeld, locked
from sweeps.run.ray_cluster import on_ray

SCRIPT = Path(__file__).with_name("stand_in.py")
NAMES = ["cpt", *(f"{kind}dpo{number}" for number in range(3) for kind in ("", "eval-"))]


def records(root: Path) -> dict[str, Path]:
    return {json.loads(path.read_text())["name"]: path for path in root.glob("*/*/run.json")}


def test_a_node_is_lost_and_all_runs_end_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install -e .[ray])")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        arguments = [sys.executable, SCRIPT, tmp_path, "4", "", cluster.address]
        sweep = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("dpo/*/train.log"))) < 3:  # all three nodes are at work
            assert sweep.poll() is None and time.monotonic() < deadline, sweep.communicate()
            time.sleep(0.1)
        before = {path: path.stat().st_mtime_ns for path in records(tmp_path).values()}
        cluster.remove_node(lost, allow_graceful=False)
        _, words = sweep.communicate(timeout=240)
        assert sweep.returncode == 0, words[-3000:]
    finally:
        cluster.shutdown()
    assert before and set(records(tmp_path)) == set(NAMES)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    # The run of the lost node was begun twice, and is in the log once more if its orphan came to its end; others once.
    log = Counter((tmp_path / "log").read_text().split())
    assert set(log) == set(NAMES) and sum(log.values()) <= len(NAMES) + 1


@pytest.mark.parametrize(("gpus", "card"), [(1, "3"), (0, "cpu")])
def test_a_cluster_that_is_started_here_takes_the_places_of_this_machine(
    gpus: int, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them would each start on the first card; one that is named divides its cards itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as Ray sets it for a task
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}
    ray = SimpleNamespace(init=lambda **_: None, nodes=lambda: [node], wait=lambda tasks, timeout: [tasks])
    ray.remote, ray.get = lambda **_: lambda do: SimpleNamespace(remote=do), lambda task: task
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace(RayError=OSError))
    run = Run("cpt", "cpt", {})
    own, shared = (on_ray(address, gpus, lambda run: run.name)[0] for address in (None, "ray://x"))
    assert own(run) == shared(run) == "cpt"
    with locked(tmp_path / f"runs/.place-{platform.node()}-{card}.lock"):
        assert shared(run) == "cpt"
        with pytest.raises(RunHeld):
            own(run)


def test_a_cluster_that_is_started_here_is_given_the_free_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would give the first one again and again, while it is held, and leave the others idle."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    seen: list[tuple[str | None, ...]] = []

    def start(address: str | None, gpus: int) -> tuple[object, int]:
        seen.append((address, os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("CUDA_DEVICE_ORDER")))
        return print, gpus

    monkeypatch.setattr("sweeps.run.ray_cluster.on_ray", start)
    monkeypatch.setattr(sweep_commands, "check_runs", lambda *_: None)
    monkeypatch.setattr(sweep_commands, "launch", lambda *_, **__: {})
    sweep = SimpleNamespace(hardware="a100-80g", gpus=1, per_gpu=1, memory_gib=80.0)
    places = [{"CUDA_VISIBLE_DEVICES": card, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for card in "13"]
    request = SimpleNamespace(sweep=sweep, places=places, folder=Path("runs/sweeps/x"))
    for address in ("ray://x", None):
        sweep_commands.finish(request, {}, StartOptions(launcher="ray", address=address))
    assert seen == [("ray://x", "as it was", None), (None, "1,3", "PCI_BUS_ID")]
    request.places = []
    with pytest.raises(BadInput, match="a100-80g"):
        sweep_commands.finish(request, {}, StartOptions(launcher="ray"))


@pytest.mark.parametrize(
    ("nodes", "gpus", "at_once"),
    [([4, 2, 1], 2, 3), ([1, 1], 2, None), ([1, 1, 0], 1, 2), ([0, 0], 0, 2)],
)
def test_a_run_has_its_gpus_on_one_node(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], gpus: int, at_once: int | None
) -> None:
    """Ray would await for ever a run that no node has room for; a head without cores does none."""
    head = {"Alive": True, "Resources": {"memory": 1.0}}
    alive = [head, *({"Alive": True, "Resources": {"CPU": 8.0, **({"GPU": float(n)} if n else {})}} for n in nodes)]
    ray = SimpleNamespace(init=lambda **_: None, nodes=lambda: alive, remote=lambda **_: lambda do: do)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace(RayError=OSError))
    if at_once:
        assert on_ray("ray://x", gpus)[1] == at_once
    else:
        with pytest.raises(BadInput, match="no node of the cluster has the 2 GPUs"):
            on_ray("ray://x", gpus)
