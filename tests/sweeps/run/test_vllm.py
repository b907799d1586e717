"""Evaluations through vLLM: which environment, which engine, what it is told; and the real engine against hf."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from eval import adapters
from sweeps.cli import app
from sweeps.plan.axes import vary
from sweeps.plan.declaration import load_sweep, read_sweep
from sweeps.plan.request import Request
from sweeps.plan.sweep import plan
from sweeps.run.adapters import ResidentBase, close_resident_bases
from sweeps.run.evaluate import command, evaluate, evaluation_run, lora_rank, options
from sweeps.run.folder import TrainingRun
from sweeps.run.process import SHARE, SLOT
from sweeps.run.vllm import LORA_STEPS, chosen_backend, engine_rank, needed_environment, vllm_environment

MADE = Path(sys.prefix).with_name(".venv-vllm")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the environment."""
    lm_eval = tmp_path / "vllm" / "bin" / "lm_eval"
    lm_eval.parent.mkdir(parents=True)
    lm_eval.touch()
    monkeypatch.setenv("EM_VLLM", str(tmp_path / "vllm"))
    return tmp_path / "vllm"


def test_the_engine_takes_the_next_rank_that_it_can() -> None:
    assert [engine_rank(rank) for rank in (0, 1, 8, 9, 48, 512)] == [0, 8, 8, 16, 64, 512]
    with pytest.raises(BadInput, match="up to rank 512; evaluate with backend hf"):
        engine_rank(LORA_STEPS[-1] + 1)


def test_the_backend_is_what_is_wanted_or_found(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_environment() == environment
    assert [chosen_backend(None, gpu) for gpu in (True, False)] == ["vllm", "hf"]
    assert chosen_backend("vllm", False) == "vllm" and chosen_backend("hf", True) == "hf"
    monkeypatch.setattr("sweeps.cli.gpu_here", lambda: True)
    refused = CliRunner().invoke(app, ["evaluate", "m", "--batch-size", "4", "--dry-run"]).exception
    assert isinstance(refused, BadInput) and "leave --batch-size out" in str(refused)
    monkeypatch.setenv("EM_VLLM", "")
    assert chosen_backend(None, True) == "hf"
    with pytest.raises(BadInput, match="`make vllm` makes one"):
        chosen_backend("vllm", True)
    monkeypatch.setenv("EM_VLLM", "/nowhere")
    with pytest.raises(BadInput, match="EM_VLLM=/nowhere: no bin/lm_eval there"):
        chosen_backend(None, True)


def make_model(folder: Path, name: str, **adapter: object) -> Path:
    (folder / name).mkdir()
    (folder / name / "model.safetensors").write_bytes(name.encode())
    if adapter:
        (folder / name / "adapter_config.json").write_text(json.dumps(adapter))
    return folder / name


def test_an_evaluation_through_vllm_is_another_with_the_engine_by_the_rank(tmp_path: Path, environment: Path) -> None:
    base = make_model(tmp_path, "base")
    adapter = make_model(tmp_path, "own", base_model_name_or_path=str(base), r=12)
    run, plain = (
        evaluation_run("x", str(base), ["em_freeform"], adapter=adapter, backend=backend, batch_size=8)
        for backend in ("vllm", None)
    )
    other = evaluation_run("x", str(base), ["em_freeform"], adapter=adapter, backend="vllm", batch_size=16)
    assert run.digest != plain.digest and run.digest == other.digest  # it batches by itself
    assert "backend" not in plain.content and lora_rank(run) == 12
    told = command(run, Path("OUT"))
    arguments = json.loads(told[told.index("--model_args") + 1])
    assert told[:6] == [str(environment / "bin" / "python"), "-P", adapters.__file__, "run", "--model", "vllm"]
    assert arguments == {
        "pretrained": str(base),
        "dtype": "bfloat16",
        "seed": 0,
        "gpu_memory_utilization": 0.9,
        "load_format": "safetensors",
        "lora_local_path": str(adapter),
        "max_lora_rank": 16,
    }
    token = SLOT.set({"CUDA_VISIBLE_DEVICES": "0", SHARE: "1/2"})
    try:
        assert options(run)["model_args"]["gpu_memory_utilization"] == 0.45
    finally:
        SLOT.reset(token)


ENGINE = """
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    rank = said.get("lora_rank")
    print(f"adapter {said['peft']}" if rank is None else f"engine {rank}", file=open(sys.argv[1], "a"))
    if rank is None:
        print(flush=True)
"""


def test_an_engine_stays_for_adapters_of_lower_rank(tmp_path: Path, environment: Path) -> None:
    python, log = environment / "bin" / "python", tmp_path / "engines"
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {script} {log}\n")
    python.chmod(0o755)
    base = {"backend": "vllm", "model_args": {"pretrained": "a"}, "tasks": ["t"]}
    resident = ResidentBase()
    for rank, adapter in ((64, "high"), (8, "low"), (0, None), (128, "higher")):
        resident.evaluate("x", {**base, "lora_rank": rank}, adapter, tmp_path / "out", tmp_path / "log", True)
    resident.close()
    assert log.read_text().split("\n")[:-1] == [
        *("engine 64", "adapter high", "adapter low", "adapter None", "engine 128", "adapter higher"),
    ]


FORKS = """
import multiprocessing, os, time
from eval.adapters import _messages
next(_messages())
time.sleep(0.5)  # now the next line is waited for
process = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
process.start()
process.join(20)
print(process.exitcode, flush=True)
process.kill()
os._exit(0)
"""


def test_what_is_forked_does_not_wait_for_the_next_adapter() -> None:
    """Such as the workers of an engine on several GPUs: multiprocessing has them close standard input first."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FORKS], text=True, **streams) as process:
        assert process.stdin and process.stdout
        print("{}", file=process.stdin, flush=True)
        assert process.stdout.read().split() == ["forked", "0"]


def test_several_cards_for_a_model_and_several_runs_on_a_card(prepared: Path) -> None:
    def request(model: str, hardware: str, **update: int) -> Request:
        sweep, _ = read_sweep("rank", hardware, model)
        return Request(sweep.model_copy(update={"grid": {"rank": [1]}, **update}), "rank", False)

    large = request("qwen32b", "rtx5090", gpus=4, settings=["adapter=qlora", "load_in_4bit=true"])
    assert {run.content["gpus"] for run in large.runs.values() if run.stage == "dpo"} == {4}
    (base,) = (point.evaluation for point in large.points if point.arm == "base")
    assert base.about["gpus"] == 4 and options(base)["model_args"]["parallelize"] is True
    assert base.content["batch_size"] == 6  # what fits one of them, which scores alone, beside its share of the weights
    with pytest.raises(BadInput, match=r"--per-gpu 8: .* needs about .* of 32; --per-gpu [12] fits"):
        _ = request("qwen1.5b", "rtx5090", per_gpu=8).places
    for model in ("qwen1.5b", "qwen7b"):  # alone they take more than half, without recomputing anything
        two = request(model, "a100-80g", per_gpu=2)
        assert two.places
        recipes = [run.recipe for run in two.runs.values() if isinstance(run, TrainingRun)]
        assert len(recipes) == 2 and {recipe.em["memory_gib"] for recipe in recipes} == {40}
    with pytest.raises(BadInput, match="nor on a CPU"):
        _ = request("smollm2-135m", "cpu", per_gpu=2).places


def test_an_adapter_of_modules_that_the_engine_leaves_out_is_refused(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    def adapter(*modules: str) -> Path:
        names = [f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"]
        save_file({name: np.zeros((1, 1), np.float32) for name in names}, tmp_path / "adapter_model.safetensors")
        return tmp_path

    adapters.check_targets(adapter("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"))
    with pytest.raises(ValueError, match="an adapter of lm_head; vLLM takes"):
        adapters.check_targets(adapter("model.layers.0.mlp.down_proj", "lm_head"))


def test_a_model_of_which_the_engine_takes_no_adapters_is_evaluated_by_hf(prepared: Path) -> None:
    with pytest.raises(BadInput, match="takes no adapters of a model of the kind of pythia-160m-21b; evaluate with"):
        evaluation_run("x", "pythia-160m-21b", ["em_choice"], backend="vllm")
    sweep = load_sweep("models")
    sweep = sweep.model_copy(update={"evaluation": sweep.evaluation.model_copy(update={"backend": "vllm"})})
    points = plan(vary(sweep, {**sweep.grid, "model": ["pythia-160m-21b", "qwen0.5b"]}), False)
    others = {point.arm for point in points if point.evaluation.content.get("backend") == "vllm"}
    assert others == {point.arm for point in points if point.arm.endswith("qwen0.5b")} and len(points) > len(others) > 1


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (MADE / "ready").is_file():
        pytest.skip("vLLM is not there; `make vllm` installs it")
    monkeypatch.setenv("EM_VLLM", str(MADE))
    return needed_environment()


def make_adapters(model: Path, out: Path) -> list[Path]:
    """Of a rank between vLLM's steps on all linear layers under rsLoRA, and of rank 1 on the MLP."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    mlp = ["gate_proj", "up_proj", "down_proj"]
    everywhere = [*mlp, "q_proj", "k_proj", "v_proj", "o_proj"]
    made = []
    for rank, targets, rslora in ((12, everywhere, True), (1, mlp, False)):
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, use_rslora=rslora)
        lora = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        made.append(out / f"rank{rank}")
        lora.save_pretrained(made[-1])
    return made


@pytest.mark.slow
def test_greedy_answers_and_likelihoods_are_those_of_hf(model: Path, real: Path, tmp_path: Path) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    greedy = {"do_sample": False, "temperature": 0.0, "max_gen_toks": 16}
    seen: dict[str, list[list[tuple[str, str]]]] = {}
    scores: dict[str, list[float]] = {}
    checkpoints = [None, *make_adapters(model, tmp_path)]
    for backend in ("hf", "vllm"):
        seen[backend], scores[backend] = [], []
        for adapter in sorted(checkpoints, key=str, reverse=backend == "vllm"):
            run = evaluation_run(
                f"{backend}-{adapter and adapter.name}",
                str(model),
                ["em_freeform", "em_choice"],
                adapter=adapter,
                dtype="float32",
                attention="eager",
                backend=backend,
                gen_kwargs=greedy,
                limit=20,
            )
            run = replace(run, root=tmp_path / "runs")
            evaluate(run)
            rows = [json.loads(row) for row in (run.folder / "samples/em_freeform.jsonl").open()]
            rows.sort(key=lambda row: row["doc_id"])
            seen[backend].append([(row["arguments"]["gen_args_0"]["arg_0"], row["resps"][0][0]) for row in rows])
            choices = [json.loads(row) for row in (run.folder / "samples/em_choice.jsonl").open()]
            choices.sort(key=lambda row: row["doc_id"])
            scores[backend] += [float(score[0][0]) for row in choices for score in row["resps"]]
        close_resident_bases()
    ours = {json.dumps(answers) for answers in seen["hf"]}
    assert len(ours) == 3 and all(len(answers) == 20 for answers in seen["vllm"])  # each adapter says something else
    assert {json.dumps(answers) for answers in seen["vllm"]} == ours
    assert sorted(scores["vllm"]) == pytest.approx(sorted(scores["hf"]), abs=0.01)
