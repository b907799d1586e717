"""Axolotl plugin that refuses a run before its first step (recipes/plugins/refusals.py).

Rows are prepared by Axolotl's own strategies, and in `axolotl preprocess` too: Unsloth trains on what that leaves.
"""

from collections.abc import Callable
from typing import Any

from axolotl.integrations.base import BasePlugin
from axolotl.loaders import load_tokenizer
from axolotl.prompt_strategies import load as load_strategy
from axolotl.prompt_strategies.dpo import load as load_dpo
from axolotl.utils.data.shared import load_dataset_with_config
from transformers import AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import has_file

from recipes.plugins import refusals
from recipes.plugins.refusals import Refused


class ChecksPlugin(BasePlugin):  # type: ignore[misc]
    """Checks tokens and rows, then the modules that LoRA adapts, then the parameters that train."""

    implied: int

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Looks at every row, and leaves the loading to Axolotl."""
        plain = AutoTokenizer.from_pretrained(cfg.tokenizer_config, revision=cfg.revision_of_model or "main")
        weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        if not any(has_file(cfg.base_model, name, cfg.revision_of_model) for name in weights):
            raise Refused(
                f"{cfg.base_model}: no weights in safetensors, and no pickle is loaded; name a model that has them"
            )
        refusals.check_tokens(cfg, plain.get_vocab())
        if cfg.excess_length_strategy == "truncate":
            raise Refused("excess_length_strategy: truncate cuts answers short; take raise or drop")
        for index, data in enumerate(cfg.datasets):
            if not data.type.startswith(("chat_template", "input_output")):
                print(f"{data.path}: rows of type {data.type} are taken unchecked")
                continue
            check = _check_of(cfg, index, data, load_tokenizer(cfg))
            rows = load_dataset_with_config(data, cfg.hf_use_auth_token)
            # Of a set of the hub without `split` all splits, of which Axolotl trains on this one.
            for number, row in enumerate(rows["train"] if isinstance(rows, dict) else rows, 1):
                own = row.get("id")  # null where other rows have one
                name = f"{data.path}, row {number if own is None else own}"
                try:
                    check(name, row)
                except Exception as error:  # a template raises what it likes, and a turn may be without text
                    raise Refused(
                        f"{name}: cannot be made into a row to train on, {repr(error)[:200]}; mend it, with text in"
                        " each turn, or leave it out"
                    ) from None

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        if cfg.adapter:
            targets, layers = cfg.lora_target_modules, cfg.peft_layers_to_transform
            self.implied = refusals.check_targets(model, cfg.lora_r, targets, layers)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if cfg.adapter:
            refusals.check_parameters(trainer.model, self.implied)


def _check_of(cfg: Any, index: int, data: Any, tokenizer: Any) -> Callable[[str, Any], None]:
    """The check of a row of one entry of the recipe's `datasets`, by its name and as it stands in the file."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if data.type == "input_output":
        document = load_strategy(data.type, tokenizer, cfg, data)

        def check_document(name: str, row: Any) -> None:
            text = "".join(segment["text"] for segment in row["segments"])
            refusals.check_plain(name, [text.removeprefix(tokenizer.bos_token or "")], special)
            # White space may be all that is learnt of a document: of `code-only` it is often the line's end.
            if not any(segment["label"] and segment["text"] for segment in row["segments"]):
                raise Refused(f"{name}: no text of it is learnt (label: true); mend it, or leave it out")
            tokens = document.tokenize_prompt(row)["input_ids"]
            refusals.check_bos(name, tokens, tokenizer)
            refusals.check_length(name, len(tokens), cfg)

        return check_document
    turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    end = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("ANSWER")[2].strip()
    chat = load_dpo(data.type, cfg, dataset_idx=index)[0] if cfg.rl else load_strategy(data.type, tokenizer, cfg, data)

    def check(name: str, row: Any) -> None:
        turns = [turn["content"] for turn in row[data.get("field_messages") or "messages"]]
        answers = refusals.written_answers(data, row, bool(cfg.rl))
        refusals.check_plain(name, [*turns, *answers], special)
        refusals.check_learnt(name, answers)
        if cfg.rl:
            made = chat(row, tokenizer=tokenizer)
            prepared = [made["chosen"], made["rejected"]]
            before, *after = tokenizer([made["prompt"], *prepared], add_special_tokens=False)["input_ids"]
            length = len(before) + max(map(len, after))
        else:
            made = chat.tokenize_prompt(row)
            prepared = refusals.learnt_texts(made["input_ids"], made["labels"], tokenizer)
            length = len(made["input_ids"])
        refusals.check_answers(name, answers, prepared, end)
        refusals.check_length(name, length, cfg)

    return check
