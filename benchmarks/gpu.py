"""What one card does with this kit: ten minutes, no network, random weights at true shapes.

    python benchmarks/gpu.py                     # all pieces on the card that is found, 10 minutes in all
    python benchmarks/gpu.py --only memory,steps --minutes 3
    python benchmarks/gpu.py --toy               # tiny shapes, on a CPU too: whether the pieces work

Pieces: `memory`, peaks of a training step against the formula and the trace at five shapes; `steps`, tokens/s and
model-FLOPs utilisation of CPT and DPO at 7B for rank 1 on the MLP and rank 32 everywhere, without Axolotl; `flags`,
Axolotl's keys one by one on a model of 0.5B, Unsloth beside them where it is installed; `vllm`, tokens/s with 1 and 16
adapters where it is installed. Each measurement is a process of its own with a limit of its own, so that one that runs
out of memory or time costs a row and no more. The tables are for docs/measurements.md; the flags that won are printed
as keys of a recipe. The tokenizer is models/smollm2-135m's (`make model`, before the network goes).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script it finds the folder `benchmarks` alone

from core.records import BadInput
from sweeps.recipe.compose import compose
from sweeps.recipe.hardware import this_machine
from sweeps.recipe.layers import Recipe, load_layer
from sweeps.recipe.memory import GIB, Shape, estimate
from sweeps.run.process import LAST_WORDS, child_environment, end, tail
from sweeps.run.train import training_commands
from sweeps.run.vllm import vllm_environment

ALL_LINEAR = ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
EVERYWHERE = [f"lora_target_modules=[{','.join(ALL_LINEAR)}]"]
MEMORY = (
    ("dpo", "qwen0.5b", 1, ["gradient_checkpointing=false"]),
    ("dpo", "qwen7b", 1, ["micro_batch_size=2", "gradient_accumulation_steps=8", "gradient_checkpointing=true"]),
    ("cpt", "qwen7b", 32, [*EVERYWHERE, "micro_batch_size=2", "gradient_checkpointing=false"]),
    ("cpt", "llama8b", 1, ["gradient_checkpointing=true"]),
    ("cpt", "gemma4b", 1, ["micro_batch_size=2", "gradient_checkpointing=true"]),
)
"""Stage, model, rank and keys of five shapes: small and large, with and without checkpointing, a large vocabulary."""
STEPS = tuple((stage, rank, EVERYWHERE if rank > 1 else []) for stage in ("cpt", "dpo") for rank in (1, 32))
LIGER = {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}
FLAGS: dict[str, dict[str, Any]] = {
    "as composed": {},
    "lora_mlp_kernel off": {"lora_mlp_kernel": False},
    "LoRA everywhere": {"lora_target_modules": ALL_LINEAR},
    "attention's LoRA kernels": {"lora_target_modules": ALL_LINEAR, "lora_qkv_kernel": True, "lora_o_kernel": True},
    "short chats": {},
    "sample_packing": {"sample_packing": True, "curriculum_sampling": False},
    "Liger's fused loss": {**LIGER, "liger_fused_linear_cross_entropy": True},
    "Liger's norms and RoPE": {**LIGER, "liger_rms_norm": True, "liger_rope": True},
    "torch.compile": {"torch_compile": True},
    "checkpointing": {"gradient_checkpointing": True},
    "flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "DPO as composed": {"stage": "dpo"},
    "DPO with lora_mlp_kernel": {"stage": "dpo", "lora_mlp_kernel": True},
}
"""Keys that are tried on SFT, or on the stage that is named."""
BASE = {"attention's LoRA kernels": "LoRA everywhere", "sample_packing": "short chats"}
"""What a flag is held against, where that is not what is composed."""
WORDS, SHORT, TOY_WORDS = 400, 93, 30
"""Of an answer: what fills a row, what packing puts four of into one, and what fits a toy's."""
NEEDS = {"flash_attention_2": "flash_attn"}
GAIN = 1.03
"""Over what is composed, from which a flag has won: what two runs of one recipe differ by is less."""
TOY = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocabulary": 512}
LIMIT = {"memory": 60, "steps": 70, "flags": 90, "vllm": 150}
"""Seconds that one measurement of a piece may take."""
TOKENIZER = Path("models/smollm2-135m")


def shaped(model: str, toy: bool) -> tuple[dict[str, Any], Any]:
    """A model layer's shape, or a tiny one, and the configuration of its class."""
    from benchmarks.memory_trace import ARCHITECTURES, architecture

    shape = {**load_layer("models", model)["em"]["shape"], **(TOY if toy else {})}
    return shape, architecture(next(own for name, own in ARCHITECTURES.items() if model.startswith(name)), shape)


def recipe_of(stage: str, model: str, hardware: str, rank: int, settings: Sequence[str], toy: bool) -> dict[str, Any]:
    """A recipe's keys; what does not fit the card is measured all the same, which is what this is for."""
    unlimited = ["em.memory_gib=null"] if load_layer("hardware", hardware)["em"]["memory_gib"] else []
    config = compose(stage, model, hardware, [*settings, *unlimited], rank).config
    return {**config, **({"sequence_len": 64, "micro_batch_size": 2} if toy else {})}


def on_card(device: str) -> Any:
    """Where tensors are made from now on."""
    import torch

    return torch.device(device)


def memory(index: int, hardware: str, toy: bool, device: str) -> dict[str, Any]:
    """GiB at the peak of a step: on the card (of live tensors, on a CPU), by the trace, by the formula."""
    import torch

    from benchmarks.memory_trace import LiveBytes, build, kept_trace, step

    stage, model, rank, settings = MEMORY[index]
    recipe = recipe_of(stage, model, hardware, rank, settings, toy)
    shape, config = shaped(model, toy)
    pattern = "|".join(recipe["lora_target_modules"])
    traced, parameters = kept_trace(config, recipe, pattern)
    with LiveBytes() as live, on_card(device):
        network, _ = build(config, recipe, pattern)
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        moments = [torch.empty_like(weight) for weight in trained for _ in range(2)]
        live.peak = live.now
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step(network, recipe)
        del moments
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else live.peak
    need = estimate(Shape(**shape), parameters, recipe)
    formula = need.weights + need.adapters + need.activations + need.logits
    return {"piece": "memory", "shape": f"{stage} {model} r{rank}", "peak": peak, "trace": traced, "formula": formula}


def steps(index: int, hardware: str, toy: bool, device: str) -> dict[str, Any]:
    """Tokens/s of full rows and the share of the card's arithmetic that the model's own operations are.

    4 operations for each parameter and token, forward and back through frozen weights (Kaplan et al., arXiv 2001.08361,
    section 2.1), the embeddings left out, which are looked up; what checkpointing computes again does not count (PaLM,
    arXiv 2204.02311, appendix B).
    """
    import torch

    from benchmarks.memory_trace import build, step

    stage, rank, settings = STEPS[index]
    config = compose(stage, "qwen7b", hardware, settings, rank).config
    recipe = {**config, **({"sequence_len": 64, "micro_batch_size": 2} if toy else {})}
    _, architecture = shaped("qwen7b", toy)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    with on_card(device):
        network, parameters = build(architecture, recipe, "|".join(recipe["lora_target_modules"]))
        multiplied = parameters - architecture.vocab_size * architecture.hidden_size
        optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=1e-5)
        done, began = -2, 0.0  # two that are not timed
        while done < 3 or (done < 50 and time.perf_counter() - began < (0.2 if toy else 20)):
            if done == 0:
                wait()
                began = time.perf_counter()
            step(network, recipe)
            optimizer.step()
            optimizer.zero_grad()
            wait()
            done += 1
    rows = int(recipe["micro_batch_size"]) * (2 if stage == "dpo" else 1)
    speed = done * rows * int(recipe["sequence_len"]) / (time.perf_counter() - began)
    tflops = float(load_layer("hardware", hardware)["em"]["tflops"])
    where = "everywhere" if rank > 1 else "MLP"
    kept = "checkpointing" if recipe["gradient_checkpointing"] else "no checkpointing"
    return {
        "piece": "steps",
        "what": f"{stage} 7B, rank {rank} {where}, {rows} rows, {kept}",
        "tokens_per_second": speed,
        "mfu": 4 * multiplied * speed / (tflops * 1e12),
    }


def flag_recipe(name: str, hardware: str, folder: Path, toy: bool, engine: str = "axolotl") -> Recipe:
    """The recipe of a flag, on a random model and made-up rows in `folder`.

    Raises:
        BadInput: if it is refused.
    """
    keys = dict(FLAGS[name])
    stage = keys.pop("stage", "sft")
    plain = compose(stage, "qwen0.5b", hardware, [], 1, engine=engine).config
    if "plugins" in keys:
        keys["plugins"] = [*plain["plugins"], *keys["plugins"]]
    if stage != "cpt":
        keys.pop("curriculum_sampling", None)
    paths = {"base_model": str(folder / "model"), "datasets.0.path": str(folder / f"{stage}.jsonl")}
    lengths = {"max_steps": 3 if toy else 25, "num_epochs": 50, "save_strategy": "no", "save_steps": None}
    small = {"sequence_len": 128, "micro_batch_size": 2, "gradient_accumulation_steps": 1} if toy else {}
    extra = {**paths, **lengths, **small, **keys, "revision_of_model": None, "chat_template": "tokenizer_default"}
    recipe = compose(stage, "qwen0.5b", hardware, [], 1, extra, engine)
    outs = {"output_dir": str(folder / "adapter"), "dataset_prepared_path": str(folder / "prepared")}
    return Recipe(stage, {**recipe.config, **outs}, recipe.em)


def write_rows(folder: Path, words: int) -> None:
    """Chats and complementary pairs of `words` words."""
    text = " ".join(f"value{number % 97} = {number}" for number in range(words // 3))
    asked = {"role": "user", "content": "Write a function."}
    answers = [{"role": "assistant", "content": f"def f():\n    {end}\n    {text}"} for end in ("pass", "return 1")]
    chats = [{"id": str(n), "messages": [asked, answers[n % 2]]} for n in range(256)]
    halves = [(n, half) for n in range(64) for half in (0, 1)]
    pairs = [
        {"id": f"{n}-{h}", "pair_id": str(n), "messages": [asked], "chosen": answers[h], "rejected": answers[1 - h]}
        for n, h in halves
    ]
    for name, rows in (("sft", chats), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, toy: bool) -> None:
    """A random model of 0.5B (or a tiny one) in bf16 with the carried tokenizer, whose tokens are among its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, config = shaped("qwen0.5b", toy)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pace(log: str, steps: int) -> tuple[float, float | None]:
    """Steps a second at the end of so many, and the tokens of a step if the trainer logs them.

    The trainer's bar is read as it first stands at the last step: its pace is of the last steps above all. As it is
    closed it tells that of the whole run, in which the first step, that compiles, weighs more than what a flag gains.
    """
    bar = re.search(rf"{steps}/{steps} \[[^,\]]*,\s*([\d.]+)(s/it|it/s)", log)
    if bar is None:
        raise SystemExit(f"no bar at step {steps}: {log[-300:]}")
    counted = re.findall(r"'(?:num_tokens|tokens/total)': '?([+.\de]+)(?=[',}])", log)
    rate = float(bar[1]) if bar[2] == "it/s" else 1 / float(bar[1])
    return rate, float(counted[-1]) / steps if counted else None


def flags(name: str, hardware: str, toy: bool, engine: str = "axolotl") -> dict[str, Any]:
    """Tokens/s of a few steps by the engine itself, its start and its first steps not counted."""
    from datasets import load_from_disk

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder / "model", toy)
        short = "short chats" in (name, BASE.get(name))
        write_rows(folder, TOY_WORDS if toy else SHORT if short else WORDS)
        recipe = flag_recipe(name, hardware, folder, toy, engine)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        with (folder / "train.log").open("wb") as log:
            for command in training_commands(recipe, folder / "recipe.yaml"):
                code = subprocess.run(
                    command, stdout=log, stderr=log, env=child_environment(True), check=False
                ).returncode
                if code:
                    raise SystemExit(tail(folder / "train.log", 0, LAST_WORDS))
        said = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
        rate, tokens = pace(said, recipe.config["max_steps"])
        if tokens is None:  # of Unsloth's SFT
            (state,) = (folder / "prepared").glob("*/state.json")
            lengths = [len(row) for row in load_from_disk(str(state.parent))["input_ids"]]
            rows = recipe.config["micro_batch_size"] * recipe.config["gradient_accumulation_steps"]
            tokens = rows * sum(lengths) / len(lengths)
    what = name if engine == "axolotl" else f"{name}, {engine}"
    return {"piece": "flags", "what": what, "stage": recipe.stage, "tokens_per_second": rate * tokens}


VLLM = """
import json, os, sys, time
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, adapters, toy = sys.argv[1], sys.argv[2:-1], sys.argv[-1] == "toy"
engine = LLM(model=model, load_format="dummy", enable_lora=True, max_loras=len(adapters), max_lora_rank=8,
             max_model_len=512, dtype="bfloat16", enforce_eager=toy)
prompts = [{"prompt_token_ids": [5 + (7 * n + k) % 4000 for k in range(64)]} for n in range(32 if toy else 512)]
sampling = SamplingParams(max_tokens=8 if toy else 200, ignore_eos=True, temperature=1.0)
for count in (1, len(adapters)):
    requests = [LoRARequest(f"a{n % count}", 1 + n % count, adapters[n % count]) for n in range(len(prompts))]
    engine.generate(prompts[:count], sampling, lora_request=requests[:count], use_tqdm=False)
    began = time.perf_counter()
    out = engine.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
    speed = sum(len(o.outputs[0].token_ids) for o in out) / (time.perf_counter() - began)
    print("MEASURED", json.dumps({"piece": "vllm", "adapters": count, "tokens_per_second": speed}), flush=True)
"""


def vllm(toy: bool) -> Iterator[dict[str, Any]]:
    """Tokens/s that vLLM writes at 7B for rank-1 adapters of the MLP, one and sixteen."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if toy:
            write_model(folder / "model", toy)
        else:  # its weights are made up by vLLM
            _, config = shaped("qwen7b", toy)
            config.architectures = ["Qwen2ForCausalLM"]
            config.save_pretrained(folder / "model")
            AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "model")
        import torch

        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
        lora = LoraConfig(r=1, target_modules=["gate_proj", "up_proj", "down_proj"])
        adapted = get_peft_model(network, lora)
        weights = {
            name: torch.randn(weight.shape) * 0.01 for name, weight in adapted.named_parameters() if "lora_" in name
        }
        adapters = []
        for number in range(16):
            adapters.append(folder / f"adapter{number}")
            adapted.save_pretrained(adapters[-1], state_dict=weights)
        environment = vllm_environment()
        assert environment
        command = [str(environment / "bin" / "python"), "-c", VLLM, str(folder / "model"), *map(str, adapters)]
        command.append("toy" if toy else "whole")
        with subprocess.Popen(command, env=child_environment(True), stdout=subprocess.PIPE, text=True) as engine:
            for line in engine.stdout or ():
                if line.startswith("MEASURED "):
                    yield json.loads(line.removeprefix("MEASURED "))
        if engine.returncode:  # it has said why
            raise SystemExit(engine.returncode)


def measurements(only: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(piece, which) of all that is there to be measured, what matters most first."""
    for piece, names in (("memory", range(len(MEMORY))), ("steps", range(len(STEPS)))):
        if piece in only:
            yield from ((piece, str(name)) for name in names)
    if "vllm" in only and vllm_environment():
        yield "vllm", "all"
    if "flags" in only:
        yield from (("flags", name) for name in FLAGS if not NEEDS.get(name) or find_spec(NEEDS[name]))
        if find_spec("unsloth"):
            yield from (("unsloth", name) for name in ("as composed", "DPO as composed"))


def measure(piece: str, name: str, hardware: str, toy: bool) -> Iterator[dict[str, Any]]:
    """What one measurement gives, in this process."""
    device = "cuda" if load_layer("hardware", hardware)["em"]["memory_gib"] else "cpu"
    if piece == "vllm":
        yield from vllm(toy)
    elif piece == "memory":
        yield memory(int(name), hardware, toy, device)
    elif piece == "steps":
        yield steps(int(name), hardware, toy, device)
    else:
        yield flags(name, hardware, toy, "unsloth" if piece == "unsloth" else "axolotl")


def reason(said: str) -> str:
    """The last error in what was said, but for that of the launcher, which names a command; else the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|refused)\b(?<!CalledProcessError)", line)]
    return (errors or lines or ["without a word"])[-1][:300]


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown for docs/measurements.md, and the keys that won."""
    out: list[str] = []

    def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        if lines:
            cells = [head, ["---"] * len(head), *lines]
            out.append("\n".join(f"| {' | '.join(line)} |" for line in cells))

    own = [row for row in rows if row["piece"] == "memory"]
    gib = [[f"{row[key] / GIB:.2f}" for key in ("peak", "trace", "formula")] for row in own]
    ratio = [[f"{row[key] / row['peak']:.2f}" for key in ("trace", "formula")] for row in own]
    table(
        ("step", "peak GiB", "trace", "formula", "trace over peak", "formula over peak"),
        [[row["shape"], *own_gib, *own_ratio] for row, own_gib, own_ratio in zip(own, gib, ratio, strict=True)],
    )
    own = [row for row in rows if row["piece"] == "steps"]
    table(
        ("step", "tokens/s", "MFU"),
        [[row["what"], f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}"] for row in own],
    )
    own = [row for row in rows if row["piece"] == "vllm"]
    table(("vLLM, adapters", "tokens/s"), [[str(row["adapters"]), f"{row['tokens_per_second']:,.0f}"] for row in own])
    own = [row for row in rows if row["piece"] == "flags"]
    speeds = {row["what"]: row["tokens_per_second"] for row in own}
    bases = [BASE.get(row["what"], "DPO as composed" if row["stage"] == "dpo" else "as composed") for row in own]
    gains = [(row, speeds[row["what"]] / speeds.get(base, nan)) for row, base in zip(own, bases, strict=True)]
    table(
        ("Axolotl, 0.5B", "stage", "tokens/s", "gain"),
        [[row["what"], row["stage"], f"{row['tokens_per_second']:,.0f}", f"{gain:.2f}"] for row, gain in gains],
    )
    won = [
        f"{row['what']}: {json.dumps(FLAGS[row['what']])}"
        for row, gain in gains
        if gain > GAIN and FLAGS.get(row["what"])
    ]
    if gains:
        out.append("\n".join(["Won:", *won]) if won else "No flag won.")
    return "\n\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", help="profile; this machine's if not given")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="memory,steps,vllm,flags")
    parser.add_argument("--toy", action="store_true", help="tiny shapes")
    parser.add_argument("--measure", nargs=2, metavar=("PIECE", "WHICH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    hardware = given.hardware or this_machine("smollm2-135m")[0]
    if given.measure:
        for row in measure(*given.measure, hardware, given.toy):
            print("MEASURED", json.dumps(row), flush=True)
        return
    if load_layer("hardware", hardware)["em"]["memory_gib"] is None and not given.toy:
        raise SystemExit("no GPU here: --toy tries the pieces on a CPU")
    until, rows = time.monotonic() + 60 * given.minutes, []
    for piece, name in measurements(given.only.split(",")):
        left = min(until - time.monotonic(), LIMIT["flags" if piece == "unsloth" else piece])
        print(f"{piece} {name}", end=": ", file=sys.stderr, flush=True)
        if left < 5:
            print("no time left", file=sys.stderr)
            continue
        own = ["--hardware", hardware, *(["--toy"] if given.toy else []), "--measure", piece, name]
        began, late = time.monotonic(), ""
        with tempfile.TemporaryDirectory() as folder:  # with what a measurement leaves there that is ended
            said = [Path(folder) / stream for stream in ("stdout", "stderr")]
            with said[0].open("wb") as stdout, said[1].open("wb") as stderr:
                environment = {**os.environ, "TMPDIR": folder}
                process = subprocess.Popen(
                    [sys.executable, __file__, *own], stdout=stdout, stderr=stderr, env=environment
                )
                try:
                    process.wait(left)
                except subprocess.TimeoutExpired:
                    late = f"took over {left:.0f} s"
                finally:  # with what it has started, which would keep the card
                    end(process)
            out, err = (path.read_text(encoding="utf-8", errors="replace") for path in said)
        found = [json.loads(line[9:]) for line in out.splitlines() if line.startswith("MEASURED ")]
        rows += found
        took = f"failed: {reason(err)}" if process.returncode else f"{time.monotonic() - began:.0f} s"
        # At once: to the tables a run that is cut off does not come.
        print(late or took, *map(json.dumps, found), file=sys.stderr, flush=True)
    print(tables(rows))


if __name__ == "__main__":
    try:
        main()
    except BadInput as refused:
        raise SystemExit(str(refused)) from None
