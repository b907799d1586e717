"""Scripts for other schedulers: run by a shell, by a real Slurm where one is installed, read by SkyPilot itself."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sweeps.cli import app

FAILS = "cpt-explained-seed22"
STAND_IN = """#!/usr/bin/env python3
import json, sys
from pathlib import Path
command, plan, digest = sys.argv[1:]
runs = {run["digest"]: Path(run["folder"]).name for run in json.loads(Path(plan).read_text())["runs"]}
(name,) = [name for key, name in runs.items() if key.startswith(digest)]
open("log", "a").write(name[:-11] + "\\n")
sys.exit(name.startswith("FAILS"))
""".replace("FAILS", FAILS)


@pytest.fixture
def exported(prepared: Path) -> Path:
    """A folder with a stand-in for emsweep that keeps a log, and fails in one run."""
    program = prepared / "emsweep"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return prepared


def export(kind: str, *more: str) -> Path:
    command = ["export", "rank", "--axis", "rank=1", "--full", f"--{kind}", *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return Path(result.output.splitlines()[-1])


def planned(script: Path) -> list[dict]:
    return json.loads(script.with_name("plan.json").read_text())["runs"]


def test_a_shell_does_every_run_and_says_that_one_failed(exported: Path) -> None:
    script = export("sh")
    env = {**os.environ, "EMSWEEP": str(exported / "emsweep")}
    assert subprocess.run(["sh", exported / script], cwd="/", env=env, check=False).returncode == 1
    lines = (exported / "log").read_text().split()
    assert len(lines) == len(planned(script)) == 9
    assert lines.index("cpt-explained-seed21") < lines.index("dpo-pairs-r1-seed21")


def test_what_is_done_is_left_out(exported: Path) -> None:
    first = planned(export("sh"))[1]
    folder = Path(first["folder"])
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    text = export("slurm").read_text()
    assert first["digest"][:16] not in text and text.count("\nsubmit ") == 8


def test_one_run_is_refused_when_its_recipe_or_data_have_changed_or_it_has_to_wait(exported: Path) -> None:
    script = export("sh")
    plan, runs = str(script.with_name("plan.json")), planned(script)
    child = next(run for run in runs if run["after"])
    early = CliRunner().invoke(app, ["run", plan, child["digest"]])
    assert early.exit_code == 1 and "which is not done" in str(early.exception)
    (exported / "data/cpt.jsonl").write_text('"other"\n')
    changed = CliRunner().invoke(app, ["run", plan, child["digest"]])
    assert "its recipes or data have changed" in str(changed.exception)
    for bad in ("nowhere.json", "data/cpt.jsonl"):
        assert "no plan of a sweep" in str(CliRunner().invoke(app, ["run", bad, "0"]).exception)


SKY = """
import sys
from sky.utils import dag_utils
dag = dag_utils.load_chain_dag_from_yaml(sys.argv[1])
print(len(dag.tasks), *{str(resource) for task in dag.tasks for resource in task.resources})
"""


def test_skypilot_accepts_the_pipeline(exported: Path) -> None:
    """SkyPilot's own reader, which checks its schemas. Its pins contradict ours: SKYPILOT_PYTHON names its python."""
    script = export("skypilot", "--model", "qwen7b", "--hardware", "a100-80g")
    documents = list(yaml.safe_load_all(script.read_text()))
    assert len(documents) == 10 and documents[1]["resources"] == {"accelerators": "A100-80GB:1"}
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True, check=False).returncode:
        pytest.skip("SkyPilot is not installed; SKYPILOT_PYTHON can name the python of an environment that has it")
    env = {**os.environ, "HOME": str(exported)}
    done = subprocess.run([python, "-c", SKY, script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("9 ") and "A100-80GB" in done.stdout, done.stderr[-2000:]


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of one node on this machine, on ports of its own and without munge."""
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("slurmctld", "slurmd", "sbatch")):
        pytest.skip("Slurm is not installed (Debian: slurmctld slurmd slurm-client)")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname()
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("", 0))
            ports.append(free.getsockname()[1])
    (folder / "slurm.conf").write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/none\n"
        f"CredType=cred/none\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\nStateSaveLocation={folder}/state\n"
        f"SlurmdSpoolDir={folder}/spool\nSlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/d.pid\n"
        "ProctrackType=proctrack/pgid\nTaskPlugin=task/none\nSelectType=select/linear\nSwitchType=switch/none\n"
        "ReturnToService=2\nMpiDefault=none\nSchedulerParameters=sched_interval=1,batch_sched_delay=0\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()}\nPartitionName=all Nodes=ALL Default=YES\n"
    )
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.log").open("w") as log:
                daemons.append(subprocess.Popen([f"/usr/sbin/{name}", "-D", "-v"], stdout=log, stderr=log))
        deadline = time.monotonic() + 30
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            if time.monotonic() > deadline:
                pytest.skip(f"Slurm does not start here: {(folder / 'slurmctld.log').read_text()[-300:]}")
            time.sleep(0.3)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        del os.environ["SLURM_CONF"]


def test_slurm_runs_the_script_and_spares_what_a_failure_does_not_touch(
    slurm: None, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = export("slurm")
    monkeypatch.setenv("EMSWEEP", str(exported / "emsweep"))
    submitted = subprocess.run(["bash", exported / script, "--time=5"], cwd="/", capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    assert len(submitted.stdout.splitlines()) == 9
    deadline = time.monotonic() + 90
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.5)
    lines = (exported / "log").read_text().split()
    # Of seed 22 nothing runs but the CPT that fails; its evaluation, DPO and that one's evaluation are cancelled.
    assert sorted(lines) == sorted(["base", *2 * ["cpt-explained-seed21", "dpo-pairs-r1-seed21"], FAILS])
    assert lines.index("cpt-explained-seed21") < lines.index("dpo-pairs-r1-seed21")
