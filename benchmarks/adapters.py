"""What an adapter costs beyond its scoring, in a process that keeps the base model and in one of its own.

python benchmarks/adapters.py [--adapters 5] [--tasks em_choice,em_recognition]

Baseline, in the same run: `lm_eval run` once for each adapter. The adapters are random, on the CPU model; time in the
model (likelihoods, sampling) is taken off on both sides, in the shared process by timing lm-eval's calls to it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps.evaluate import TASKS
from sweeps.runs import child_environment, tool

ARGUMENTS = "dtype=bfloat16,attn_implementation=eager"
TIMED = """
import sys, time
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
    setattr(HFLM, name, call)
for name in ("loglikelihood", "generate_until"):
    timed(name)
import atexit
atexit.register(lambda: print("INSIDE", inside, file=sys.stderr))
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


def timed(code: str, arguments: list[str], said: str = "") -> tuple[float, float]:
    """Seconds of a process that runs `code`, and those of them that it spent in the model."""
    began = time.perf_counter()
    command = [sys.executable, "-c", TIMED + code, *arguments]
    done = subprocess.run(
        command, input=said, env=child_environment(local_model=True), capture_output=True, text=True, check=True
    )
    whole = time.perf_counter() - began
    return whole, float(done.stderr.rpartition("INSIDE ")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=5)
    parser.add_argument("--tasks", default="em_choice,em_recognition")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters = make_adapters(asked.model, asked.adapters, folder)
        base = {
            "model_args": f"pretrained={asked.model},{ARGUMENTS}",
            "tasks": asked.tasks.split(","),
            "batch_size": 16,
            "seed": 0,
        }
        jobs = [{"peft": str(a), "out": str(folder / f"shared{n}"), "log": str(folder / "log")}
                for n, a in enumerate(adapters)]  # fmt: skip
        shared = [
            timed("from eval.adapters import main; main()", [], "\n".join(json.dumps(line) for line in [base, *some]))
            for some in (jobs[:1], jobs)
        ]
        first, all_of_them = (whole - inside for whole, inside in shared)
        alone = []
        for number, adapter in enumerate(adapters):
            command = ["run", "--model", "hf", "--model_args", f"{base['model_args']},peft={adapter}", "--log_samples"]
            command += ["--include_path", str(TASKS), "--tasks", asked.tasks, "--apply_chat_template"]
            command += ["--batch_size", "16", "--seed", "0", "--output_path", str(folder / f"alone{number}")]
            run = f"sys.argv[0] = {tool('lm_eval')!r}; from lm_eval.__main__ import cli_evaluate as f; f()"
            whole, inside = timed(run, command)
            alone.append(whole - inside)
    each = (all_of_them - first) / (len(adapters) - 1)
    print(f"shared process: {first:.1f} s for the first adapter, {each:.2f} s for each further one, outside the model")
    own = sum(alone) / len(alone)
    print(f"a process each: {own:.1f} s outside the model; ratio {each / own:.3f}")


if __name__ == "__main__":
    main()
