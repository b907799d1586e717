"""The script for Slurm, run by a real one where it is installed; one run of a planned sweep."""

import json
import os
import shlex
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
from sweeps.recipe.layers import RECIPES

FAILS = "cpt-explained-seed22"
STAND_IN = """#!/usr/bin/env python3
import json, sys
from pathlib import Path
command, manifest, digest = sys.argv[1:]
runs = {run["digest"]: run for run in json.loads(Path(manifest).read_text())["runs"]}
(run,) = [run for key, run in runs.items() if key.startswith(digest)]
open("log", "a").write(f"{run['stage']} {run['name']}\\n")
sys.exit(command != "exec" or (run["stage"], run["name"]) == ("cpt", "FAILS"))
""".replace("FAILS", FAILS)


@pytest.fixture
def exported(prepared: Path) -> Path:
    """A folder with a stand-in for emsweep that keeps a log, and fails in one run."""
    program = prepared / "emsweep"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return prepared


def export() -> Path:
    result = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1", "--full"])
    assert result.exit_code == 0, result.output
    return Path(result.output.splitlines()[-1])


def test_a_script_says_that_it_judges_nothing(exported: Path) -> None:
    result = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1", "--judge", "m"])
    assert result.exit_code == 0 and "judge nothing" in result.output


def planned(script: Path) -> list[dict]:
    return json.loads(script.with_name("sweep.json").read_text())["runs"]


def test_what_is_done_is_left_out(exported: Path) -> None:
    first = planned(export())[1]
    folder = Path("runs") / first["stage"] / f"whatever-{first['digest'][:10]}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("")
    with pytest.raises(AssertionError, match=r"run\.json: not the record of a run"):
        export()
    (folder / "run.json").write_text("{}")
    text = export().read_text()
    assert first["digest"][:16] not in text and text.count("\nsubmit ") == 10


def test_the_name_of_a_sweeps_file_is_no_line_of_the_script(exported: Path) -> None:
    Path("x\ntouch owned\n.yaml").write_bytes((RECIPES / "sweeps/rank.yaml").read_bytes())
    done = CliRunner().invoke(app, ["export", "x\ntouch owned\n.yaml", "--axis", "rank=1"])
    assert "\ntouch owned" not in Path(done.output.splitlines()[-1]).read_text()


def test_a_dry_run_of_an_export_shows_the_plan_and_writes_nothing(exported: Path) -> None:
    shown = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1", "--dry-run"])
    assert shown.exit_code == 0 and "6 runs (0 shared), 0 runs done, 6 to do" in shown.output
    assert not Path("runs").exists()


def test_one_run_is_refused_when_its_recipe_or_data_have_changed_or_it_has_to_wait(exported: Path) -> None:
    script = export()
    manifest, runs = str(script.with_name("sweep.json")), planned(script)
    child = next(run for run in runs if run["after"])
    early = CliRunner().invoke(app, ["exec", manifest, child["digest"]])
    assert early.exit_code == 1 and "which is not done" in str(early.exception)
    (exported / "data/cpt.jsonl").write_text('{"id": "other"}\n')
    changed = CliRunner().invoke(app, ["exec", manifest, child["digest"]])
    assert "its recipes or data have changed" in str(changed.exception)
    for bad in ("nowhere.json", "data/cpt.jsonl"):
        assert "0 sweeps are called so" in str(CliRunner().invoke(app, ["exec", bad, "0"]).exception)


@pytest.mark.parametrize("name", ["my ranks", '5$ it\'s `false` "x"', "$(false) 漢, x=1"])
def test_a_sweep_of_any_name_is_exported(exported: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copy(RECIPES / "sweeps/rank.yaml", exported / f"{name}.yaml")
    done = CliRunner().invoke(app, ["export", f"{name}.yaml", "--axis", "rank=1"])
    assert done.exit_code == 0, done.exception
    (exported / "sbatch").write_text('#!/bin/sh\nfor last; do :; done\necho "$last" >> wrapped\necho 1\n')
    (exported / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(exported), prepend=":")
    subprocess.run(["bash", done.output.splitlines()[-1]], check=True)
    commands = [shlex.split(line) for line in (exported / "wrapped").read_text().splitlines()]
    assert commands and all(len(words) == 5 and Path(words[3]).is_file() and name in words[3] for words in commands)


def test_the_gpus_of_a_job_are_of_one_node(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `--gpus` alone Slurm allocates as many nodes as have them, and what is wrapped runs on the first."""
    done = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1", "--hardware", "a100-80g"])
    assert done.exit_code == 0, done.exception
    (exported / "sbatch").write_text('#!/bin/sh\necho "$@" >> told\necho "1;here"\n')
    (exported / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(exported), prepend=":")
    subprocess.run(["bash", done.output.splitlines()[-1]], check=True)
    told = (exported / "told").read_text().splitlines()
    assert told and all("--nodes=1 --gpus=1" in options for options in told)
    assert any("--dependency=afterok:1 " in options for options in told) and "here" not in "".join(told)  # the cluster


def test_no_password_of_an_address_reaches_a_file(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"model": "m", "base_url": "https://me:hunter2@host/v1", "extra_body": '{"token": "hunter2"}'}
    declared = yaml.safe_load((RECIPES / "sweeps/rank.yaml").read_text())
    Path("mine.yaml").write_text(yaml.safe_dump({**declared, "judge": where}))
    address = "https://me:p@hunter2@host/v1?v=2&api-key=hunter2"
    monkeypatch.setattr(sys, "argv", ["emsweep", "experiment", "--base-url", address])
    assert CliRunner().invoke(app, ["export", "mine.yaml", "--axis", "rank=1"]).exit_code == 0
    (manifest,) = Path("runs/sweeps").glob("*/sweep.json")
    kept = json.loads(manifest.read_text())
    assert kept["sweep"]["judge"]["model"] == "m"
    assert kept["command"].endswith("--base-url 'https://host/v1?v=2&api-key=[secret]'")
    assert not [path for path in Path("runs").rglob("*") if path.is_file() and "hunter2" in path.read_text()]


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
    script = export()
    monkeypatch.setenv("EMSWEEP", str(exported / "emsweep"))
    submitted = subprocess.run(["bash", exported / script, "--time=5"], cwd="/", capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    assert len(submitted.stdout.splitlines()) == 11
    deadline = time.monotonic() + 90
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.5)
    lines = (exported / "log").read_text().splitlines()
    # Of seed 22 nothing runs but the CPT that fails; what builds on it is cancelled.
    own = [f"{stage} cpt-explained-seed21" for stage in ("cpt", "merge", "evaluate")]
    own += [f"{stage} dpo-pairs-r1-seed21" for stage in ("dpo", "evaluate")]
    assert sorted(lines) == sorted(["evaluate base", f"cpt {FAILS}", *own])
    assert lines.index("merge cpt-explained-seed21") < lines.index("dpo dpo-pairs-r1-seed21")
