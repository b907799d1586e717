"""The benchmarks, which no test runs: at least what they import is there; of the GPU's, the pieces at toy shapes."""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu, interval_coverage, kl, reference_logprobs
from eval.judge import rates
from eval.stats import measures
from sweeps.recipe.layers import load_layer

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_it_imports_is_there(path: Path) -> None:
    names = runpy.run_path(str(path), run_name="imported")
    assert callable(names["main"]) and f"python benchmarks/{path.name}" in names["__doc__"]


@pytest.mark.parametrize("module", [kl, reference_logprobs])
def test_what_trains_in_its_own_process_sends_no_telemetry(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [module.__file__])
    monkeypatch.delenv("AXOLOTL_DO_NOT_TRACK")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environments: list[dict[str, str]] = []

    def restart(*given: Any) -> None:
        environments.append(given[2])
        raise SystemExit

    monkeypatch.setattr(os, "execve", restart)
    with pytest.raises(SystemExit):
        module.main()
    assert environments[0]["AXOLOTL_DO_NOT_TRACK"] == "1"


def test_coverage_is_measured_of_the_intervals_that_reports_have() -> None:
    for name in ("mean_interval", "ratio_interval", "ratio_difference"):
        assert getattr(interval_coverage, name) is getattr(measures, name)
    assert interval_coverage.per_question is rates.per_question, "an entry with all its formats is one question"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # traces are kept in runs
    return tmp_path


@pytest.mark.parametrize("index", range(len(gpu.MEMORY)))
def test_a_steps_memory_is_the_traces(index: int, folder: Path) -> None:
    row = gpu.memory(index, "cpu", True, "cpu")
    assert row["trace"] == pytest.approx(row["peak"], rel=0.1) and row["formula"] > 0
    (kept,) = Path("runs/traces").iterdir()
    kept.write_text(json.dumps([1, 2]))
    assert gpu.memory(index, "cpu", True, "cpu")["trace"] == 1  # it is traced once


def test_steps_have_a_speed_and_a_share_of_the_hardwares_arithmetic() -> None:
    rows = [gpu.steps(index, "cpu", True, "cpu") for index in range(len(gpu.STEPS))]
    assert len({row["what"] for row in rows}) == 4
    assert all(row["tokens_per_second"] > 0 and 0 < row["mfu"] < 10 for row in rows)


PLAIN = {"sft": "as composed", "dpo": "DPO as composed"}


def test_every_flag_is_a_recipe_that_says_so(folder: Path) -> None:
    gpu.write_rows(folder, 60)
    for hardware in ("a100-80g", "rtx5090"):
        plain = {stage: gpu.flag_recipe(name, hardware, folder, toy=False).config for stage, name in PLAIN.items()}
        for name, keys in gpu.FLAGS.items():
            config = gpu.flag_recipe(name, hardware, folder, toy=False).config
            asked = {
                key: value for key, value in keys.items() if key not in ("stage", "plugins", "curriculum_sampling")
            }
            assert {key: config[key] for key in asked} == asked
            assert set(keys.get("plugins", ())) <= set(config["plugins"]) and config["max_steps"] == 25
            assert Path(config["datasets"][0]["path"]).is_file()
            composed = plain[keys.get("stage", "sft")]
            assert not asked or any(composed.get(key) != value for key, value in asked.items()), f"{name}: as composed"
            if config["lora_qkv_kernel"]:
                assert "q_proj" in config["lora_target_modules"], "kernels of adapters that are not there"
                assert gpu.FLAGS[gpu.BASE[name]] == {"lora_target_modules": config["lora_target_modules"]}


def test_the_tables_tell_what_won_and_a_failure_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "piece": "memory",
            "shape": "dpo qwen7b r1",
            "peak": 2 * gpu.GIB,
            "trace": 2 * gpu.GIB,
            "formula": 3 * gpu.GIB,
        },
        {"piece": "steps", "what": "dpo 7B", "tokens_per_second": 1234.5, "mfu": 0.41},
        {"piece": "vllm", "adapters": 16, "tokens_per_second": 9000.0},
    ]
    speeds = {"as composed": 50.0, "short chats": 100.0, "sample_packing": 130.0, "torch.compile": 51.0}
    rows += [{"piece": "flags", "what": k, "stage": "sft", "tokens_per_second": v} for k, v in speeds.items()]
    told = gpu.tables(rows)
    assert "| dpo qwen7b r1 | 2.00 | 2.00 | 3.00 | 1.00 | 1.50 |" in told and "| dpo 7B | 1,234 | 41.0% |" in told
    assert "| 16 | 9,000 |" in told and "| sample_packing | sft | 130 | 1.30 |" in told
    assert told.endswith('Won:\nsample_packing: {"sample_packing": true, "curriculum_sampling": false}')
    monkeypatch.setattr(gpu, "measurements", lambda only: iter([("memory", "99")]))
    monkeypatch.setitem(gpu.LIMIT, "memory", 600)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--hardware", "cpu"])
    gpu.main()
    assert "memory 99: failed: IndexError" in capsys.readouterr().err


def test_a_measurement_out_of_time_is_ended_whole_and_what_it_measured_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"piece": "steps", "what": "half", "tokens_per_second": 7.0, "mfu": 0.5}
    (folder / "measure.py").write_text(
        "import subprocess, sys, tempfile, time\n"
        "from pathlib import Path\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"Path({str(folder / 'left')!r}).write_text(f'{{child.pid}} {{tempfile.mkdtemp()}}')\n"
        f"print('MEASURED', {json.dumps(row)!r}, flush=True)\n"
        "time.sleep(300)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(folder / "measure.py"))
    monkeypatch.setattr(gpu, "measurements", lambda only: iter([("steps", "0")]))
    monkeypatch.setitem(gpu.LIMIT, "steps", 8)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--hardware", "cpu"])
    gpu.main()
    said = capsys.readouterr()
    assert f"steps 0: took over 8 s {json.dumps(row)}" in said.err and "| half | 7 | 50.0% |" in said.out
    child, made = (folder / "left").read_text().split()
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
    assert not Path(made).exists()


def test_what_vllm_has_measured_of_the_toy_is_told_before_it_fails(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = folder / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.with_name("lm_eval").touch()
    python.write_text("""#!/bin/sh\necho 'MEASURED {"adapters": 1}'\nexit 3\n""")
    python.chmod(0o755)
    monkeypatch.setenv("EM_VLLM", str(folder / "vllm"))
    monkeypatch.setattr(gpu, "TOKENIZER", model)
    rows = gpu.vllm(True)
    assert next(rows) == {"adapters": 1}
    with pytest.raises(SystemExit, match="3"):
        next(rows)


def test_a_flags_pace_is_that_of_its_last_steps_and_not_of_the_run_with_its_first() -> None:
    bars = " 96%|█| 24/25 [01:01<00:00,  2.11it/s]\r100%|█| 25/25 [01:02<00:00,  2.00it/s]\n"
    logged = "{'loss': '1.386', 'tokens/total': 102400, 'epoch': '1.5'}\n"
    closed = "100%|█| 25/25 [01:02<00:00,  2.48s/it]\nWriting model shards: 100%|█| 1/1 [00:00<00:00,  3.05it/s]\n"
    assert gpu.pace(bars + logged + closed, 25) == (2.0, 4096.0)
    assert gpu.pace(bars + closed, 25) == (2.0, None)
    assert gpu.pace("25/25 [01:40<00:00,  4.00s/it] {'num_tokens': '1e+05', 'x': 1}", 25) == (0.25, 4000.0)
    with pytest.raises(SystemExit, match="no bar at step 25: nothing"):
        gpu.pace("nothing", 25)


@pytest.mark.parametrize(("words", "fits", "length"), [("WORDS", 1, 1024), ("SHORT", 4, 1024), ("TOY_WORDS", 1, 128)])
def test_as_many_chats_fit_a_row_as_the_flags_are_about(
    words: str, fits: int, length: int, folder: Path, tokenizer: Any
) -> None:
    gpu.write_rows(folder, getattr(gpu, words))
    for name in ("sft", "dpo"):
        for row in map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines()):
            chat = [*row["messages"], *([row["chosen"]] if name == "dpo" else [])]
            tokens = tokenizer.apply_chat_template(chat, return_dict=False)
            assert fits * len(tokens) <= length < 2 * fits * len(tokens)


def test_a_flag_without_what_it_is_held_against_is_told_all_the_same() -> None:
    row = {"piece": "flags", "what": "DPO with lora_mlp_kernel", "stage": "dpo", "tokens_per_second": 9.0}
    told = gpu.tables([row])
    assert "| DPO with lora_mlp_kernel | dpo | 9 | nan |" in told and told.endswith("No flag won.")


def test_a_failure_is_told_by_the_trainings_error_and_not_by_its_launchers() -> None:
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9.00 GiB."
    launcher = 'Traceback (most recent call last):\n  File "launch.py", line 9, in simple_launcher\n'
    command = "subprocess.CalledProcessError: Command '['python', '-m', 'axolotl.cli.train']' returned non-zero exit"
    assert gpu.reason(f"Traceback (most recent call last):\n{memory}\n{launcher}{command} status 1.\n") == memory
    assert gpu.reason(f"refused: row 3: no answer\n{command}\n") == "refused: row 3: no answer"
    assert gpu.reason("Loading\nKilled\n\n") == "Killed" and gpu.reason("") == "without a word"


def test_utilisation_counts_the_weights_that_are_multiplied_and_not_the_embeddings() -> None:
    row = gpu.steps(0, "cpu", True, "cpu")
    tflops = float(load_layer("hardware", "cpu")["em"]["tflops"])
    attention, mlp, small = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128, (64 + 32 + 32) + 2 * 64  # biases and norms
    multiplied = 2 * (attention + mlp + small) + 64 + 512 * 64
    assert row["mfu"] * tflops * 1e12 / row["tokens_per_second"] == pytest.approx(4 * multiplied)
