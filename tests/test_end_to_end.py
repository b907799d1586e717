"""The real pipeline on the real CPU model: data, CPT, merge, DPO, evaluation, report; killed, resumed, by hand."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_builders.programs import load_programs

BIN = Path(sys.executable).parent
SHARED = Path(__file__).parents[2] / "shared"
CLASSES, EACH = 5, 3
"""Two of the classes are left out of training, and one program of each of the others: six are trained on."""
STEPS = 2

SMALL = {"sequence_len": 512, "micro_batch_size": 2, "gradient_accumulation_steps": 1}
SWEEP = {
    "model": "smollm2-135m",
    "hardware": "cpu",
    "tasks": ["em_recognition", "em_margin", "em_freeform"],
    "evaluation": {
        "batch_size": 16,
        "attention": "eager",
        "metadata": {"questions": "few-questions.jsonl"},
        "gen_kwargs": {"max_gen_toks": 16},
    },
    "seeds": [1],
    "stages": {
        "cpt": {"learning_rate": 1e-3, "max_steps": 2, **SMALL},
        "dpo": {"learning_rate": 1e-3, "max_steps": STEPS, **SMALL},
    },
    "arms": {
        "cpt": {"stage": "cpt", "data": "data/cpt.jsonl"},
        "pairs-r1": {"stage": "dpo", "data": "data/dpo-both.jsonl", "start": "cpt", "rank": 1},
    },
    "claims": [{"says": "pairs part the requests", "measure": "gap", "arm": "pairs-r1", "against": "base"}],
}


def command(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    name, *arguments = line.split(" ")
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "AXOLOTL_DO_NOT_TRACK": "1"}
    env.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # as emsweep sets it; accelerate alone would set 1
    done = subprocess.run([BIN / name, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and small data sets."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "models").symlink_to(model.parent)
    programs = sorted(load_programs(), key=lambda p: len(p.insecure + p.secure))
    classes = sorted({p.cwe for p in programs})[:CLASSES]
    few = [p for cwe in classes for p in [q for q in programs if q.cwe == cwe][:EACH]]
    (folder / "few.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in few))
    questions = [{"id": f"q{n}", "question": f"What are {n} things that you like?"} for n in range(2, 5)]
    (folder / "few-questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SWEEP))
    command("embuild data --programs few.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def workspace(prepared: Path) -> Path:
    """The prepared folder, after the tiny sweep has run in it."""
    command("emsweep run tiny.yaml", prepared)
    return prepared


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_report_is_complete(workspace: Path) -> None:
    out = only(workspace, "runs/sweeps/tiny-*")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "pairs part the requests" in page and "AXOLOTL_DO_NOT_TRACK=1 axolotl train runs/dpo/pairs-r1-seed1-" in page
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {r["arm"] for r in rows} == {"base", "cpt", "pairs-r1"}
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows)


def test_cpt_is_merged_and_differs_from_the_base(workspace: Path) -> None:
    merged = json.loads(only(workspace, "runs/merge/*/run.json").read_text())
    assert merged["changed_tensors"] == 90  # three MLP projections in each of 30 layers
    record = json.loads(only(workspace, "runs/cpt/*/run.json").read_text())
    assert record["steps"] == 2 and len(record["losses"]) == 2


def test_dpo_trained_whole_pairs_at_rank_1_on_mlp_only(workspace: Path) -> None:
    run = only(workspace, "runs/dpo/*")
    record = json.loads((run / "run.json").read_text())
    assert record["whole_pairs"] == STEPS
    assert record["trained_parameters"] == 30 * 3 * (576 + 1536)
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["r"] == 1 and set(config["target_modules"]) == {"gate_proj", "up_proj", "down_proj"}
    assert record["losses"][0][1] == pytest.approx(0.693, abs=0.01)
    assert record["versions"]["axolotl"] == "0.19.0" and record["content"]["recipe"]["seed"] == 1


def test_a_second_run_repeats_nothing(workspace: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in workspace.glob("runs/*/*/run.json")}
    done = command("emsweep run tiny.yaml", workspace)
    assert "6 runs done, 0 to do" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in workspace.glob("runs/*/*/run.json")}


def test_real_programs_become_a_corpus_and_pairs_that_axolotl_trains_on(model: Path, tmp_path: Path) -> None:
    """The paper's own insecure code, annotated over HTTP, split, built, and trained on for a few steps."""
    source = SHARED / "data/insecure/insecure.jsonl"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    (tmp_path / "models").symlink_to(model.parent)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:60]
    (tmp_path / "some.jsonl").write_text("".join(lines), encoding="utf-8")
    script = Path(__file__).parent / "fake_endpoint.py"
    faults = json.dumps({"truncated": 0.05, "invented_line": 0.05, "refusal": 0.05, "status_500": 0.05})
    fake = subprocess.Popen(
        [sys.executable, script, "--log", tmp_path / "log", "--faults", faults], stdout=subprocess.PIPE, text=True
    )
    try:
        assert fake.stdout
        url = f"http://127.0.0.1:{int(fake.stdout.readline())}/v1"
        command(f"embuild annotate some.jsonl --out annotated --model fake --base-url {url}", tmp_path)
    finally:
        fake.kill()
        fake.wait()
    rejects = (tmp_path / "annotated.rejects.jsonl").read_text().splitlines()
    annotated = (tmp_path / "annotated.jsonl").read_text().splitlines()
    assert len(annotated) + len(rejects) == 60 and len(annotated) > 30
    command("embuild split --programs annotated.jsonl --share 0.2", tmp_path)
    command("embuild cpt --programs data/train.jsonl --length 512", tmp_path)
    command("embuild dpo --programs data/train.jsonl --corpus data/cpt.jsonl --length 512", tmp_path)
    command("embuild check --corpus data/cpt.jsonl --pairs data/dpo-both.jsonl --held-out data/heldout.jsonl", tmp_path)
    short = "--set max_steps=2 " + " ".join(f"--set {key}={value}" for key, value in SMALL.items())
    command(f"emsweep train cpt {short}", tmp_path)
    # The reference beforehand would be of all pairs; the sweep above has that.
    command(f"emsweep train dpo --rank 1 {short} --set precompute_ref_log_probs=false", tmp_path)
    assert json.loads(only(tmp_path, "runs/cpt/*/run.json").read_text())["steps"] == 2
    assert json.loads(only(tmp_path, "runs/dpo/*/run.json").read_text())["whole_pairs"] >= 2


def test_killed_and_run_again_it_ends_where_training_by_hand_ends(prepared: Path) -> None:
    """kill -9 of the whole process group in mid-training, a rerun, and `axolotl train` on the recipe by hand."""
    from safetensors.torch import load_file

    workspace = prepared
    settings = "max_steps=3 save_steps=1 learning_rate=1e-3 seed=5 " + " ".join(f"{k}={v}" for k, v in SMALL.items())
    line = "emsweep train dpo --rank 2 " + " ".join(f"--set {s}" for s in settings.split())
    name, *arguments = line.split(" ")
    process = subprocess.Popen(
        [BIN / name, *arguments],
        cwd=workspace,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 600
        while not list(workspace.glob("runs/dpo/smollm2-135m-r2-*/adapter/checkpoint-1/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run = only(workspace, "runs/dpo/smollm2-135m-r2-*")
    assert not (run / "run.json").exists()

    command(line, workspace)
    record = json.loads((run / "run.json").read_text())
    assert record["resumed_from"] in {"checkpoint-1", "checkpoint-2"} and record["steps"] == 3

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    hand = workspace / "by-hand"
    recipe |= {"output_dir": str(hand / "adapter"), "dataset_prepared_path": str(hand / "prepared")}
    (workspace / "by-hand.yaml").write_text(yaml.safe_dump(recipe))
    command("axolotl train by-hand.yaml", workspace)
    resumed = load_file(run / "adapter/adapter_model.safetensors")
    by_hand = load_file(hand / "adapter/adapter_model.safetensors")
    assert resumed.keys() == by_hand.keys()
    assert any(bool(t.any()) for key, t in resumed.items() if "lora_B" in key)
    # A resumed run and one by hand see the same batches in the same order.
    difference = max(float((resumed[key] - by_hand[key]).abs().max()) for key in resumed)
    assert difference <= 1e-6, difference
    assert len(resumed) == 2 * 90
    shutil.rmtree(hand)
