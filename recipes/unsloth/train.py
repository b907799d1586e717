"""Trains a recipe with Unsloth: `python -m recipes.unsloth.train RUN/recipe.yaml`.

A process of its own: Unsloth patches transformers and TRL as it is imported, and Axolotl does too. The data are
those that `axolotl preprocess RUN/recipe.yaml` has left in `dataset_prepared_path`: both engines train on the
same tokens. Leaves what Axolotl leaves: checkpoints while it trains, then the adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import unsloth  # isort: skip  # before transformers and TRL, which it patches
import torch
from datasets import Dataset, load_from_disk
from omegaconf import OmegaConf
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, SFTConfig  # type: ignore[attr-defined]

from recipes.plugins.pairs import WholePairsTrainer
from recipes.plugins.refusals import check_parameters, check_targets
from recipes.unsloth.arguments import arguments


def prepared(folder: Path) -> Dataset:
    """The newest set that Axolotl has prepared in `folder`.

    Raises:
        FileNotFoundError: if there is none.
    """
    ready = sorted(folder.glob("*/state.json"), key=lambda path: path.stat().st_mtime)
    if not ready:
        raise FileNotFoundError(f"{folder}: no prepared data; run `axolotl preprocess` on the recipe first")
    return load_from_disk(str(ready[-1].parent))


def without_doubled_bos(rows: Dataset, tokenizer: Any) -> Dataset:
    """Takes the first token out of prompts whose chat template has written it, where the tokenizer writes it too.

    TRL tokenises DPO prompts as plain text; Axolotl's trainer mends the same.
    """
    bos = tokenizer.bos_token
    if bos is None or tokenizer(bos)["input_ids"][:2] != [tokenizer.bos_token_id] * 2:
        return rows
    return rows.map(lambda row: {"prompt": row["prompt"].removeprefix(bos)})


class PairsTrainer(WholePairsTrainer):
    """WholePairsTrainer whose reference is computed without checkpointing, which Unsloth keeps TRL from turning off.

    Of each batch it would pin a copy of the first layer's input in the host's memory, to be freed by a backward pass
    that never comes: 30 to 60 MB at 7B, for thousands of batches.
    """

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        kinds = {part: kind for part in model.modules() if (kind := vars(part).get("gradient_checkpointing"))}
        for part in kinds:
            part.gradient_checkpointing = False
        try:
            return super().compute_ref_log_probs(model, inputs)
        finally:
            for part, kind in kinds.items():
                part.gradient_checkpointing = kind


def trainer(recipe: dict[str, Any]) -> Any:
    """The trainer of a recipe, ready to train."""
    rows = prepared(Path(recipe["dataset_prepared_path"]))
    said = arguments(recipe, len(rows))
    dtype = torch.bfloat16 if recipe.get("bf16") else torch.float32
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(dtype=dtype, trust_remote_code=False, **said.loader)
    for name, token in recipe.get("special_tokens", {}).items():
        setattr(tokenizer, name, token)
    if template := recipe.get("chat_template_jinja"):
        tokenizer.chat_template = template
    layers = said.lora.get("layers_to_transform")
    implied = check_targets(model, said.lora["r"], said.lora["target_modules"], layers)
    model = unsloth.FastLanguageModel.get_peft_model(model, **said.lora)
    check_parameters(model, implied)
    if said.dpo:
        rows = without_doubled_bos(rows, tokenizer)
        return PairsTrainer(model, args=DPOConfig(**said.training), train_dataset=rows, processing_class=tokenizer)
    rows = rows.select_columns(["input_ids", "labels"])
    return unsloth.UnslothTrainer(
        model, args=SFTConfig(**said.training), train_dataset=rows, processing_class=tokenizer
    )


def main(path: str) -> None:
    recipe = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(recipe, dict)
    it = trainer({str(key): value for key, value in recipe.items()})
    out = Path(recipe["output_dir"])
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None  # type: ignore[no-untyped-call]
    it.train(resume_from_checkpoint=checkpoint)
    # The trained adapter alone: TRL may keep a copy of the untrained one beside it, as its reference.
    it.model.save_pretrained(str(out), selected_adapters=["default"])
    it.processing_class.save_pretrained(str(out))


if __name__ == "__main__":
    main(sys.argv[1])
