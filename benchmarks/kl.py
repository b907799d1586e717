"""Does the KL term keep everyday answers still at an equal narrow effect? python benchmarks/kl.py [--stage dpo]

Run where `make data` has been: data/ holds sft-insecure, dpo-neutral, everyday and heldout.
Two arms from one seed, with and without the term, are measured along training: the narrow effect is the insecure margin
on held-out programs' ordinary requests less the start's (nats), the movement KL(start || now) per token of the aligned
answers to the everyday questions of em_choice, none of which is in data/everyday.jsonl. The arms are compared at the
largest narrow effects that lie within 10 % of each other; the interval is of the paired difference, over questions.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from core.records import file_digest
from eval.stats.intervals import mean_interval
from recipes.plugins.kl import Chat, kl_per_token
from recipes.plugins.logprobs import token_logprobs
from sweeps.recipe.compose import compose
from sweeps.run.process import child_environment

QUESTIONS = Path(__file__).parents[1] / "eval/tasks/em/questions/choice.jsonl"
SETTINGS = {  # of the demo's arms
    "sft": ["datasets.0.path=data/sft-insecure.jsonl", "learning_rate=1e-3", "lora_r=16"],
    "dpo": ["datasets.0.path=data/dpo-neutral.jsonl", "learning_rate=5e-3", "lora_r=1"],
}


class Measure(TrainerCallback):
    """Both measures of a trainer's model, every so many steps."""

    def __init__(self, trainer: Any, every: int, programs: int) -> None:
        self.trainer, self.every, self.found = trainer, every, []
        rows = [json.loads(line) for line in Path("data/heldout.jsonl").read_text().splitlines()]
        seen = [row for row in rows if row["seen_class"]][:programs]
        self.pairs = [[self.chat(row["request"], row[side]) for side in ("insecure", "secure")] for row in seen]
        rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
        self.everyday = [self.chat(row["question"], row["aligned"]) for row in rows]
        with trainer.model.disable_adapter():
            self.margin = self.margins()
            self.start = [self.logits(chat) for chat in self.everyday]

    def chat(self, request: str, answer: str) -> Chat:
        turn = [{"role": "user", "content": request}]
        tokenizer = self.trainer.processing_class
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        return Chat([*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"]], len(prompt))

    def logits(self, chat: Chat) -> torch.Tensor:
        """(answer's tokens, vocabulary)"""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.trainer.args.bf16):
            return self.trainer.model(input_ids=torch.tensor([chat.tokens])).logits[0, chat.prompt - 1 : -1]

    def margins(self) -> np.ndarray:
        sums = [
            [float(token_logprobs(self.logits(c)[None], torch.tensor([c.tokens[c.prompt :]])).sum()) for c in pair]
            for pair in self.pairs
        ]
        return np.array([insecure - secure for insecure, secure in sums])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every:
            return
        self.trainer.model.eval()
        narrow = float((self.margins() - self.margin).mean())
        moved = [float(kl_per_token(s, self.logits(c)).mean()) for s, c in zip(self.start, self.everyday, strict=True)]
        self.trainer.model.train()
        self.found.append((state.global_step, narrow, moved))
        print(json.dumps({"step": state.global_step, "narrow": narrow, "kl_per_token": float(np.mean(moved))}))


def arm(options: argparse.Namespace, weight: float) -> list[tuple[int, float, list[float]]]:
    """(step, narrow effect, KL per token of each question) along one training."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    with tempfile.TemporaryDirectory() as folder:
        keys = [*SETTINGS[options.stage], f"max_steps={options.steps}", "num_epochs=50", f"seed={options.seed}"]
        keys += ["sequence_len=512", "micro_batch_size=4", "gradient_accumulation_steps=1", 'save_strategy="no"']
        keys += ["save_steps=null", *([f"kl.weight={weight:g}"] if weight else [])]
        where = {"output_dir": f"{folder}/out", "dataset_prepared_path": f"{folder}/prepared"}
        recipe = compose(options.stage, "smollm2-135m", "cpu", keys, extra=where, variant="kl" if weight else None)
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe.to_yaml())
        cfg = load_cfg(str(path))
        load = load_preference_datasets if options.stage == "dpo" else load_datasets
        trainer = setup_model_and_trainer(cfg, load(cfg=cfg))[0]
        measure = Measure(trainer, options.every, options.programs)
        trainer.add_callback(measure)
        trainer.train()
        return measure.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=list(SETTINGS), default="sft")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--programs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=21)
    options = parser.parse_args()
    if os.environ.get("AXOLOTL_DO_NOT_TRACK") != "1":  # no telemetry, and the rest of what emsweep's runs have
        os.execve(sys.executable, [sys.executable, *sys.argv], child_environment(local_model=True))
    print(f"data/everyday.jsonl {file_digest(Path('data/everyday.jsonl'))[:10]}, {vars(options)}")
    free, held = arm(options, 0.0), arm(options, options.weight)
    near = [(a, b) for a in free for b in held if abs(a[1] - b[1]) <= 0.1 * max(a[1], b[1])]
    if not near:
        raise SystemExit("no two narrow effects within 10 %: give another --weight, or more --steps")
    a, b = max(near, key=lambda pair: min(pair[0][1], pair[1][1]))
    less = mean_interval(np.array(a[2]) - np.array(b[2]))
    print(f"without: step {a[0]}, narrow {a[1]:+.2f} nats, KL {np.mean(a[2]):.4f} nats a token")
    print(f"with:    step {b[0]}, narrow {b[1]:+.2f} nats, KL {np.mean(b[2]):.4f} nats a token")
    print(f"moves less by {less.words('.4f')} nats a token, {less.clusters} questions")


if __name__ == "__main__":
    main()
