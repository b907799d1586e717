"""Run by torchrun in two processes on CPU (gloo): what pairs does each rank see in two epochs?

torchrun --nproc_per_node 2 two_processes.py MODEL OUT PAIRS,ROWS_PER_BATCH ...

leaves OUT/PAIRS/rankN.json of each case.
"""

import json
import sys
from pathlib import Path

from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recipes.plugins.complementary_pairs import ComplementaryPairsTrainer
from recipes.plugins.pairs import WholePairs

model, cases = sys.argv[1], [tuple(map(int, case.split(","))) for case in sys.argv[3:]]
tokenizer = AutoTokenizer.from_pretrained(model)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
)
seen: list[list[str]] = []
collate = WholePairs.__call__


def record(self: WholePairs, batch: list[dict]) -> object:
    seen.append([row["pair_id"] for row in batch])
    return collate(self, batch)


WholePairs.__call__ = record
for pairs, rows_per_batch in cases:
    out = Path(sys.argv[2]) / str(pairs)
    out.mkdir(exist_ok=True)
    seen.clear()
    rows = [
        {"pair_id": f"p{n}", "prompt": f"{half} {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(pairs)
        for half in ("neutral", "asked")
    ]
    arguments = AxolotlDPOConfig(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=rows_per_batch,
        use_cpu=True,
        seed=3,
        max_length=64,
        num_train_epochs=2,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        bf16=False,
    )
    trainer = ComplementaryPairsTrainer(
        model=LlamaForCausalLM(config),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=1, target_modules=["q_proj"]),
    )
    trainer.train()
    state = {
        "processes": trainer.accelerator.num_processes,
        "batches": seen,
        "left_out": trainer.pairs_left_out,
        "logged": [entry.get("whole_pairs") for entry in trainer.state.log_history if "loss" in entry],
    }
    (out / f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(state))
