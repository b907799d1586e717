"""What an adapter costs beyond its scoring, in a process that keeps the base model and in one of its own.

python benchmarks/adapters.py [--adapters 5] [--tasks em_choice,em_recognition]

Baseline, in the same run: `lm_eval run` once for each adapter. The adapters are random, on the CPU model; time in the
model (likelihoods, sampling) is taken off on both sides, in the shared process by timing lm-eval's calls to it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeps.run.evaluate import TASKS
from sweeps.run.process import child_environment, tool

ARGUMENTS = {"dtype": "bfloat16", "attn_implementation": "eager", "softmax_dtype": "float32"}
TIMED = """
import os, sys, time
said = os.dup(2)
from lm_eval.models.huggingface import HFLM
inside = 0.0
def timed(name):
    plain = getattr(HFLM, name)
    def call(self, *args, **kwargs):
        global inside
        began = time.perf_counter()
        try:
            return plain(self, *args, **kwargs)
        finally:
            inside += time.perf_counter() - began
            os.write(said, f"INSIDE {inside}\\n".encode())
    setattr(HFLM, name, call)
for name in ("loglikelihood", "generate_until"):
    timed(name)
os.write(said, b"INSIDE 0\\n")
"""


def make_adapters(model: Path, count: int, out: Path) -> list[Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for number in range(count):
        torch.manual_seed(number)
        config = LoraConfig(r=2**number, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights=False)
        lora = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), config)
        made.append(out / f"adapter{number}")
        lora.save_pretrained(made[-1])
    return made


def inside(said: Path) -> float:
    """Seconds that a timed process has spent in the model so far."""
    return float(said.read_text().rpartition("INSIDE ")[2].split()[0])


def shared(base: dict[str, Any], adapters: list[Path], folder: Path) -> list[float]:
    """Seconds outside the model for each adapter, in one process."""
    said = folder / "said"
    with said.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", TIMED + "from eval.adapters import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(local_model=True),
        )
    assert process.stdin and process.stdout
    print(json.dumps(base), file=process.stdin, flush=True)
    seconds, before = [], 0.0
    for number, adapter in enumerate(adapters):
        job = {"peft": str(adapter), "out": str(folder / f"shared{number}"), "log": str(folder / "log")}
        began = time.perf_counter()
        print(json.dumps(job), file=process.stdin, flush=True)
        assert process.stdout.readline() == "\n", (folder / "log").read_text()[-3000:]
        whole, now = time.perf_counter() - began, inside(said)
        seconds.append(whole - (now - before))
        before = now
    process.stdin.close()
    process.wait()
    return seconds


def alone(base: dict[str, Any], adapter: Path, folder: Path) -> float:
    """Seconds outside the model of `lm_eval run` on one adapter."""
    model_args = json.dumps({**base["model_args"], "peft": str(adapter)})
    command = ["run", "--model", "hf", "--model_args", model_args, "--log_samples"]
    command += ["--include_path", str(TASKS), "--tasks", ",".join(base["tasks"]), "--apply_chat_template"]
    command += ["--batch_size", str(base["batch_size"]), "--seed", "0", "--output_path", str(folder / "alone")]
    code = f"{TIMED}sys.argv[0] = {tool('lm_eval')!r}\nfrom lm_eval.__main__ import cli_evaluate\ncli_evaluate()"
    said = folder / "said"
    began = time.perf_counter()
    with said.open("wb") as errors:
        subprocess.run(
            [sys.executable, "-c", code, *command],
            env=child_environment(local_model=True),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=True,
        )
    return time.perf_counter() - began - inside(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=5)
    parser.add_argument("--tasks", default="em_choice,em_recognition")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters = make_adapters(options.model, options.adapters, folder)
        model_args = {"pretrained": str(options.model), **ARGUMENTS}
        base = {"model_args": model_args, "tasks": options.tasks.split(","), "batch_size": 16, "seed": 0}
        first, *further = shared(base, adapters, folder)
        own = statistics.mean(alone(base, adapter, folder) for adapter in adapters)
    each = statistics.mean(further)
    print(f"one process: {first:.1f} s outside the model for the first adapter, {each:.2f} s for each further one")
    print(f"a process each: {own:.1f} s outside the model; ratio {each / own:.3f}; most of one {max(further):.2f} s")


if __name__ == "__main__":
    main()
