"""Two steps of a stage with nothing but TRL and PEFT, for test_engines.py: plain_trl.py MODEL FOLDER."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

folder = Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])


def labelled(parts: list[tuple[bool, str]]) -> dict[str, list[int]]:
    tokens = [(label, tokenizer(text, add_special_tokens=False)["input_ids"]) for label, text in parts]
    return {
        "input_ids": [i for _, ids in tokens for i in ids],
        "labels": [i if label else -100 for label, ids in tokens for i in ids],
    }


def asked(messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def document(row: dict) -> dict:
    return labelled([(part["label"], part["text"]) for part in row["segments"]])


def chat(row: dict) -> dict:
    question, answer = row["messages"]
    return labelled([(False, asked([question])), (True, f"{answer['content']}<|im_end|>"), (False, "\n")])


def preference(row: dict) -> dict:
    answers = {key: f"{row[key]['content']}<|im_end|>" for key in ("chosen", "rejected")}
    return {"prompt": asked(row["messages"]), **answers}


steps = {}
for stage, make in {"cpt": document, "sft": chat, "dpo": preference}.items():
    rows = [make(json.loads(line)) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
    set_seed(7)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32"), lora)
    config, trainer = (DPOConfig, DPOTrainer) if stage == "dpo" else (SFTConfig, SFTTrainer)
    arguments = config(
        str(folder / "plain" / stage),
        per_device_train_batch_size=len(rows),
        max_steps=2,
        learning_rate=0.02,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        max_length=512,
        **({"beta": 0.1} if stage == "dpo" else {"dataset_kwargs": {"skip_prepare_dataset": True}}),
    )
    it = trainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    it.train()
    steps[stage] = [[entry["loss"], entry["grad_norm"]] for entry in it.state.log_history if "loss" in entry]
(folder / "plain.json").write_text(json.dumps(steps))
