"""What a recipe says, in the words of Unsloth's loader, its LoRA and TRL's trainers.

The keys are Axolotl's: one recipe means the same under both engines. A key that would change the training and
that is not known here is refused, so that no setting is lost without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

# Axolotl's name: the argument's name.
LOADER = {
    "base_model": "model_name",
    "revision_of_model": "revision",
    "sequence_len": "max_seq_length",
    "load_in_4bit": "load_in_4bit",
    "attn_implementation": "attn_implementation",
}
LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_use_rslora": "use_rslora",
    "seed": "random_state",
}
TRAINING = {
    "output_dir": "output_dir",
    "micro_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "seed": "seed",
    "bf16": "bf16",
    "tf32": "tf32",
    "logging_steps": "logging_steps",
    "save_strategy": "save_strategy",
    "save_steps": "save_steps",
    "save_total_limit": "save_total_limit",
    "dataset_num_proc": "dataset_num_proc",
    "dataloader_pin_memory": "dataloader_pin_memory",
    "sequence_len": "max_length",
}
DPO = {
    "rl_beta": "beta",
    "precompute_ref_log_probs": "precompute_ref_log_probs",
    "dpo_loss_type": "loss_type",
    "dpo_loss_weights": "loss_weights",
}

# Axolotl has prepared the data by these, or they choose among its own kernels and classes.
LEFT_TO_AXOLOTL = {
    "adapter",
    "auto_resume_from_checkpoints",
    "chat_template",
    "chat_template_jinja",
    "dataset_prepared_path",
    "datasets",
    "excess_length_strategy",
    "lora_mlp_kernel",
    "lora_o_kernel",
    "lora_qkv_kernel",
    "plugins",
    "shuffle_merged_datasets",
    "special_tokens",
    "trainer_cls",
}
READ_HERE = {
    *("curriculum_sampling", "gradient_checkpointing", "pad_to_sequence_len", "rl", "sample_packing", "val_set_size"),
    *("max_steps", "warmup_ratio", "warmup_steps"),
}

WARMUP, MOST_WARMUP = 0.03, 100
"""Axolotl's default: a share of the steps, and so many at most."""


@dataclass(frozen=True)
class Arguments:
    """Keyword arguments for `from_pretrained`, `get_peft_model` and SFTConfig or DPOConfig."""

    loader: dict[str, Any]
    lora: dict[str, Any]
    training: dict[str, Any]
    dpo: bool


def arguments(recipe: Mapping[str, Any], rows: int = 0) -> Arguments:
    """Translates a composed recipe.

    Args:
        rows: of the prepared data; 0 where a recipe is only looked at.

    Raises:
        ValueError: for a key or a value that Unsloth's engine does not know, naming it.
    """
    known = {*LOADER, *LORA, *TRAINING, *DPO, *LEFT_TO_AXOLOTL, *READ_HERE}
    if unknown := sorted(key for key, value in recipe.items() if key not in known and value is not None):
        raise ValueError(f"the Unsloth engine does not know {', '.join(unknown)}; leave it out, or use ENGINE=axolotl")
    if recipe.get("adapter") != "lora" and not recipe.get("load_in_4bit"):
        raise ValueError(f"adapter {recipe.get('adapter')!r}: the Unsloth engine trains LoRA adapters only")
    if recipe.get("val_set_size"):
        raise ValueError("val_set_size: the Unsloth engine has no validation split; set it to 0, or use ENGINE=axolotl")
    if recipe.get("sample_packing"):
        raise ValueError("sample_packing: the Unsloth engine trains on rows as they are; use ENGINE=axolotl")
    if recipe.get("pad_to_sequence_len"):
        raise ValueError("pad_to_sequence_len: the Unsloth engine pads to the longest row; use ENGINE=axolotl")
    if recipe.get("rl", "dpo") != "dpo":
        raise ValueError(f"rl: {recipe['rl']!r}: the Unsloth engine knows dpo")
    dpo = "rl" in recipe
    # Unsloth's own checkpointing is torch's with activations kept in host memory; False must stay False.
    checkpointing = "unsloth" if recipe.get("gradient_checkpointing") else False
    loader = {
        "load_in_4bit": False,
        # Else it loads its own copy of a model of the hub, or one in 4 bits, at no revision.
        "use_exact_model_name": True,
        "use_gradient_checkpointing": checkpointing,
        **_named(LOADER, recipe),
    }
    lora = {"bias": "none", "use_gradient_checkpointing": checkpointing, **_named(LORA, recipe)}
    training = {
        "weight_decay": 0.0,  # Axolotl's default; that of the configurations that Unsloth puts in TRL's place is 0.001
        **_named(TRAINING, recipe),
        **_steps(recipe, rows),
        "gradient_checkpointing": bool(checkpointing),
        "report_to": [],
        "remove_unused_columns": False,
        **(_named(DPO, recipe) if dpo else {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}),
    }
    if recipe.get("curriculum_sampling"):
        training["train_sampling_strategy"] = "sequential"
    return Arguments(loader, lora, training, dpo)


def _steps(recipe: Mapping[str, Any], rows: int) -> dict[str, int]:
    """`max_steps` and `warmup_steps` as Axolotl has them; transformers would count and round otherwise.

    Source: axolotl 0.19.0, core/builders/base.py; under DPO the share is of all epochs, whatever max_steps says.
    """
    per_step = recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"]
    every = ceil(rows * (recipe.get("num_epochs") or 1) / per_step)
    most = recipe.get("max_steps") or every
    if (warmup := recipe.get("warmup_steps")) is None:
        warmup = warmup_of(every if "rl" in recipe else min(every, most), recipe.get("warmup_ratio"))
    return {"max_steps": most, "warmup_steps": 2 if warmup == 1 else warmup}


def warmup_of(steps: int, share: float | None) -> int:
    """The steps of so many that Axolotl warms up for, which makes two of one; its default if there is no share."""
    warmup = min(int(WARMUP * steps), MOST_WARMUP) if share is None else int(share * steps)
    return 2 if warmup == 1 else warmup


def _named(names: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {argument: recipe[key] for key, argument in names.items() if recipe.get(key) is not None}
