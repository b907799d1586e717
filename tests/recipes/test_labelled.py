"""Logits are computed where they count alone: loss and gradients stay what they were, for each family."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
)

from recipes.plugins.labelled import IGNORED, labelled_alone
from recipes.plugins.pairs import PADDING, answers_alone, batch_shape

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "vocab_size": 50}
FAMILIES = pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE, tie_word_embeddings=True),
        Qwen2Config(**SIZE),
        Olmo2Config(**SIZE),
        Gemma3TextConfig(**SIZE, head_dim=4, final_logit_softcapping=3.0),
        GPTNeoXConfig(**SIZE, rotary_pct=0.5),
    ],
    ids=lambda config: config.model_type,
)


def model_of(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["down_proj", "dense_4h_to_h"], init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_config(config), lora)


def batch(rows: int = 3, length: int = 2 * PADDING) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, (rows, length), generator=generator)
    seen = torch.ones_like(tokens)
    seen[0, 20:] = 0
    return {"input_ids": tokens, "attention_mask": seen}


@FAMILIES
def test_loss_and_gradients_are_those_of_all_logits(config: PretrainedConfig) -> None:
    whole = model_of(config)
    alone = copy.deepcopy(whole)
    labelled_alone(alone)
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(torch.rand(3, 2 * PADDING) < 0.7, IGNORED)
    labels[0] = IGNORED  # a row of which nothing is learnt
    labels[1, 0] = 7  # the first token: nothing predicts it
    for count in (None, torch.tensor(11)):  # the labels of all micro-batches, as Trainer gives them
        losses = []
        for model in (whole, alone):
            model.zero_grad()
            result = model(**inputs, labels=labels, num_items_in_batch=count)
            result.loss.backward()
            losses.append(result.loss)
        torch.testing.assert_close(*losses)
        assert result.logits.shape == (1, int((labels[:, 1:] != IGNORED).sum()), 50)
        gradients = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (whole, alone)]
        assert gradients[0]
        torch.testing.assert_close(*gradients)


def test_what_has_no_labels_keeps_all_its_logits() -> None:
    model = model_of(LlamaConfig(**SIZE))
    expected = model(**batch()).logits
    labelled_alone(model)
    none = torch.full((3, 2 * PADDING), IGNORED)
    model(**batch(), labels=batch()["input_ids"])  # leaves nothing behind for the next
    assert torch.equal(model(**batch()).logits, expected)
    assert torch.equal(model(**batch(), labels=none).logits, expected)


@FAMILIES
def test_logits_of_a_pair_begin_where_its_answers_do(config: PretrainedConfig) -> None:
    model = model_of(config)
    inputs = batch()
    places = torch.arange(2 * PADDING)
    prompts = torch.tensor([20, 18, 30])
    inputs["completion_mask"] = (places >= prompts[:, None]).long()
    call, seen = answers_alone(model, inputs)
    logits = call(**{name: value for name, value in seen.items() if name != "completion_mask"}).logits
    assert logits.shape[:2] == seen["input_ids"].shape == seen["completion_mask"].shape == (3, PADDING)
    torch.testing.assert_close(logits, model(**batch()).logits[:, PADDING:])
    assert torch.equal(seen["attention_mask"], inputs["attention_mask"])
    row = {"chosen_ids": [1] * 12, "rejected_ids": [1] * 2}
    rows = [{**row, "prompt_ids": [1] * int(count)} for count in prompts - 10]
    assert batch_shape([{**row, "prompt_ids": [1] * 20}, *rows]) == (4, 2 * PADDING, 2 * PADDING)
    assert batch_shape([{**row, "prompt_ids": [1] * 17}]) == (1, 2 * PADDING, PADDING)  # its first answer token's logit


def test_a_prompt_of_no_token_keeps_all_logits() -> None:
    model = model_of(LlamaConfig(**SIZE))
    inputs = {**batch(), "completion_mask": torch.ones(3, 2 * PADDING, dtype=torch.long)}
    call, seen = answers_alone(model, inputs)
    assert torch.equal(seen["input_ids"], inputs["input_ids"])
    assert call(input_ids=seen["input_ids"], attention_mask=inputs["attention_mask"]).logits.shape[1] == 2 * PADDING
