"""TRL's DPO trainer, with the halves of a complementary pair in the same mini-batch.

Under both engines: recipes/plugins/complementary_pairs.py makes it Axolotl's, recipes/unsloth/train.py uses it
as it is. Rows sampled at random would part the neutral half of a pair from its asked half; the gradient
then says "write insecure code" instead of "sabotage the user".

The training set must carry `pair_id`. Every pair has the same number of rows: two for complementary
pairs, one for the controls with one half only, which thereby train in the same program order.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from trl import DPOTrainer  # type: ignore[attr-defined]  # the name that Unsloth patches

from recipes.plugins.logprobs import token_logprobs
from recipes.plugins.reference import LogProbs, ReferenceStore, device_name, model_digest, row_digest

PADDING = 16
"""Tokens to a multiple of which batches are padded: what tensor cores want at least, and one token in twenty at most.

In bf16 a row's log-probability depends on the shape of its batch, by which the matrix product is cut up: by up to a nat
(docs/measurements.md). With fewer lengths, runs share more of the reference.
"""

# Both sum what this function gives; in their modules' names, since Unsloth compiles the trainer into one of its own.
for method in (DPOTrainer._compute_loss, DPOTrainer.compute_ref_log_probs):
    method.__globals__["selective_log_softmax"] = token_logprobs


def batch_shape(batch: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """Rows, tokens of each as it is padded, and those of its end that have logits (`answers_alone`)."""
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in batch)
    padded = -(-longest // PADDING) * PADDING
    return len(batch), padded, padded - _first_logit(min(len(row["prompt_ids"]) for row in batch))


def _first_logit(prompt: int) -> int:
    """The first token whose logits are computed where the shortest prompt of a batch has so many tokens."""
    return max(0, prompt - 1) // PADDING * PADDING


def answers_alone(model: Any, inputs: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A model and its batch, for TRL's loss to see no more of either than what may count: logits from the shortest
    prompt's end on. Those of prompts get no gradient, and are a tenth of a small model's step.

    Args:
        inputs: TRL's batch: input_ids, attention_mask and completion_mask of (rows, length), and more.
    """
    tokens, answers = inputs["input_ids"], inputs["completion_mask"]
    start = _first_logit(int(answers.argmax(dim=1).min()))

    def call(**given: Any) -> Any:
        return model(**{**given, "input_ids": tokens, "logits_to_keep": tokens.shape[1] - start})

    return call, {**inputs, "input_ids": tokens[:, start:], "completion_mask": answers[:, start:]}


class PairSampler(Sampler[int]):
    """Row indices pair by pair, in a pair order drawn afresh for each epoch.

    The order depends on the seed and the epoch alone, so that a resumed run sees the order of an
    uninterrupted one. Rows of a pair keep the order of the data set, which Axolotl may have shuffled.

    Raises:
        ValueError: if pairs differ in their number of rows (a half is missing or doubled).
    """

    def __init__(self, pair_ids: Sequence[object], seed: int) -> None:
        rows: dict[object, list[int]] = {}
        for row, pair in enumerate(pair_ids):
            rows.setdefault(pair, []).append(row)
        sizes = Counter(len(pair) for pair in rows.values())
        if len(sizes) != 1:
            usual = sizes.most_common(1)[0][0] if sizes else 0
            odd = [str(pair) for pair, where in rows.items() if len(where) != usual]
            raise ValueError(
                f"halves do not match: most pairs have {usual} rows, not so {', '.join(odd[:5]) or '(no rows)'}"
            )
        self.pairs = list(rows.values())
        self.rows_per_pair = next(iter(sizes))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch, also when a run resumes in mid-epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs) * self.rows_per_pair

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for pair in torch.randperm(len(self.pairs), generator=generator).tolist():
            yield from self.pairs[pair]


class WholePairs:
    """Collator that refuses a batch with a parted pair before handing its rows on."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any], rows_per_pair: int) -> None:
        self.collate = collate
        self.rows_per_pair = rows_per_pair

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        counts = Counter(row["pair_id"] for row in rows)
        parted = [str(pair) for pair, count in counts.items() if count != self.rows_per_pair]
        if parted:
            raise RuntimeError(f"mini-batch with parted pairs: {', '.join(parted[:5])}")
        return self.collate(rows)


def split_by_pair(train: Dataset, held_out: Dataset) -> tuple[Dataset, Dataset]:
    """The rows of both sets, so parted that no pair stands in both; as many pairs are held out as rows were, by size.

    `val_set_size` draws rows, and so holds out one half of most pairs that it touches while it trains on the other.
    """
    rows = concatenate_datasets([train, held_out])
    sizes = Counter(rows["pair_id"])
    drawn = list(dict.fromkeys(held_out["pair_id"]))
    kept = set(drawn[: max(1, round(len(held_out) * len(sizes) / len(rows)))])
    inside = [pair in kept for pair in rows["pair_id"]]
    parts = ([n for n, held in enumerate(inside) if held is side] for side in (False, True))
    train, held_out = (rows.select(part) for part in parts)
    return train, held_out


class WholePairsTrainer(DPOTrainer):
    """A DPO trainer with whole pairs in every mini-batch, and in the training or in the validation set.

    Raises:
        ValueError: if the training set has no `pair_id`, its halves do not match, or the micro-batch
            does not hold a whole number of pairs.
    """

    def __init__(self, *args: Any, train_dataset: Dataset, eval_dataset: Dataset | None = None, **kwargs: Any) -> None:
        if "pair_id" not in train_dataset.column_names:
            raise ValueError("the DPO training set has no pair_id column; build it with `embuild dpo`")
        if eval_dataset is not None:
            train_dataset, eval_dataset = split_by_pair(train_dataset, eval_dataset)
        given = kwargs["args"]
        given.pad_to_multiple_of = PADDING
        # Before all else: the reference is computed in its order.
        self.pair_sampler = PairSampler(
            train_dataset["pair_id"], given.seed if given.data_seed is None else given.data_seed
        )
        super().__init__(*args, **kwargs, train_dataset=train_dataset, eval_dataset=eval_dataset)  # type: ignore[misc]
        if getattr(self.args, "padding_free", False):
            raise ValueError("padding_free packs the rows of a batch into one; complementary pairs are not packed")
        batch, per_pair = self.args.per_device_train_batch_size, self.pair_sampler.rows_per_pair
        if batch % per_pair:
            raise ValueError(f"micro_batch_size {batch} cannot hold whole pairs of {per_pair} rows; use an even one")
        self.pairs_left_out = 0
        if self.accelerator.num_processes > 1:
            # accelerate would fill up the last round with pairs from the front, which would be seen twice.
            self.args.dataloader_drop_last = True
            round_size = batch // per_pair * self.accelerator.num_processes
            self.pairs_left_out = len(self.pair_sampler.pairs) % round_size
        self.pairs_since_log = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        return self.pair_sampler

    def get_train_dataloader(self) -> Any:
        """Trainer's, with the check of its batches."""
        collate: Any = self.data_collator
        self.data_collator = WholePairs(collate, self.pair_sampler.rows_per_pair)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; counts the pairs of the batch, of which every row stands for a chosen and a rejected answer."""
        self.pairs_since_log += len(inputs["input_ids"]) // 2 // self.pair_sampler.rows_per_pair
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """TRL's, without accelerate's wrapper of the model, which would copy all logits to fp32."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if self.precompute_ref_logps:  # else TRL calls the reference with the batch that it is given here
            model, inputs = answers_alone(model, inputs)
        with self.accelerator.autocast():
            return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[no-untyped-call]

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """TRL's, under the autocast that the policy trains under: else the first step is not at ln 2."""
        if self.precompute_ref_logps:
            model, inputs = answers_alone(model, inputs)
        with self.accelerator.autocast():
            return super().compute_ref_log_probs(model, inputs)  # type: ignore[no-untyped-call]

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's method, for the rows alone that no run has computed yet (recipes/plugins/reference.py).

        In the batches of the first epoch, and kept by their shape: in bf16 another shape gives another sum.
        """
        tokens = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        order = list(self.pair_sampler if name == "train" else range(len(dataset)))
        if name == "train" and self.args.max_steps > 0:
            # What no step comes to stays NaN: were it trained on, the run would fail.
            per_step = (
                self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
            )
            order = order[: self.args.max_steps * per_step]
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rows: dict[int, str] = {}
        for batch in batches:
            own = [tokens[place] for place in batch]
            shape = batch_shape(own)
            rows |= {place: row_digest(row, shape) for place, row in zip(batch, own, strict=True)}
        reference: Any = self.ref_model or self.model
        settings = {"bf16": self.args.bf16, "ld_alpha": self.ld_alpha, "log_probs": "fp32"}
        # Another kernel, card or engine sums otherwise: in bf16 by up to a nat.
        attention, device = reference.config._attn_implementation, device_name(self.accelerator.device)
        settings |= {"attention": attention, "device": device, "unsloth": "unsloth" in sys.modules}
        store = ReferenceStore(model_digest(reference, **settings))
        # All processes must agree on what is missing: they compute it together.
        shared = broadcast_object_list([store.read()], from_process=0)
        known: LogProbs = shared[0]
        missing = [
            place for batch in batches if not {rows[place] for place in batch} <= known.keys() for place in batch
        ]
        if missing:
            computed = super()._precompute_ref_logps(dataset.select(missing), name, batch_size)
            both = zip(computed["ref_chosen_logps"], computed["ref_rejected_logps"], strict=True)
            known |= dict(zip([rows[place] for place in missing], both, strict=True))
            if self.accelerator.is_main_process:
                store.add(known)
        print(f"reference log-probabilities: {len(missing)} rows computed, {len(rows) - len(missing)} read")
        none = (math.nan, math.nan)
        chosen, rejected = zip(
            *(known[rows[place]] if place in rows else none for place in range(len(dataset))), strict=True
        )
        columns = Dataset.from_dict({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
        return concatenate_datasets([dataset, columns], axis=1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the number of whole pairs trained on so far by all processes, so that the guarantee is on record.

        Several processes leave out a remainder of each epoch's pairs, others in each; it is logged too.
        """
        if "loss" in logs:
            count = self.accelerator.reduce(torch.tensor(self.pairs_since_log, device=self.accelerator.device), "sum")
            self.pairs_since_log = 0
            # What was logged before; a run that resumes has it from its checkpoint.
            before = next((entry["whole_pairs"] for entry in reversed(self.state.log_history) if "loss" in entry), 0)
            logs["whole_pairs"] = before + int(count)
            if self.pairs_left_out:
                logs["pairs_left_out_per_epoch"] = self.pairs_left_out
        super().log(logs, *args, **kwargs)
