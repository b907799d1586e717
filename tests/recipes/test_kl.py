"""The KL term: its arithmetic, its place beside a trainer's own loss, its chats, and what refuses a run."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from core.records import write_records
from data_builders.build import write_everyday
from recipes.plugins.kl import Chat, answer_kl, hold_to_start, kl_per_token, read_chats
from recipes.plugins.refusals import Refused
from sweeps.recipe.compose import compose

CHATS = [Chat([1, 5, 7, 9, 2], 2), Chat([1, 6, 8], 1), Chat([1, 3, 4, 4, 9, 2], 3)]


def adapted() -> torch.nn.Module:
    """A tiny model with an adapter that has moved."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=12, **size)), LoraConfig(target_modules=["up_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_term_is_torchs_own_divergence_in_fp32(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    start, now = (3 * torch.randn(4, 30)).to(dtype), (3 * torch.randn(4, 30)).to(dtype)
    p, q = (logits.double().log_softmax(-1) for logits in (start, now))
    wanted = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    found = kl_per_token(start, now)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert kl_per_token(start, start).abs().max() < 1e-6


def test_it_is_over_the_answers_tokens_alone_and_not_over_padding() -> None:
    model = adapted()
    together = answer_kl(model, model, CHATS)
    alone = []
    for tokens, prompt in CHATS:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            now = model(input_ids=ids).logits[0]
            with model.disable_adapter():
                start = model(input_ids=ids).logits[0]
        alone += kl_per_token(start, now)[prompt - 1 : len(tokens) - 1].tolist()
    assert together.item() == pytest.approx(sum(alone) / len(alone), rel=1e-4) and together > 1e-4


class Plain:
    """As much of a trainer as the term stands on."""

    def __init__(self, model: torch.nn.Module, accumulation: int) -> None:
        self.model, self.accelerator = model, Accelerator(cpu=True)
        self.current_gradient_accumulation_steps = accumulation
        self.args = SimpleNamespace(seed=3, process_index=0, per_device_train_batch_size=2)
        self.state, self.logged = SimpleNamespace(global_step=0), {}
        self.compute_loss_context_manager = nullcontext

    def training_step(self, model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        loss = model(input_ids=inputs, labels=inputs).loss / self.current_gradient_accumulation_steps
        loss.backward()
        return loss.detach()

    def log(self, logs: dict[str, float]) -> None:
        self.logged = logs


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_has_the_gradient_of_both_and_returns_the_stages_own_loss(accumulation: int) -> None:
    model, inputs = adapted(), torch.tensor([[1, 4, 6, 2]])
    trainer = Plain(model, accumulation)
    hold_to_start(trainer, CHATS, weight=2.5)
    returned = trainer.training_step(model, inputs)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    trainer.kl_drawn = (-1, 0)
    chats = trainer.draw()
    model.zero_grad()
    own, kl = model(input_ids=inputs, labels=inputs).loss, answer_kl(model, model, chats)
    ((own + 2.5 * kl) / accumulation).backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad)
    assert returned.item() == pytest.approx(own.item() / accumulation)
    trainer.log({"loss": 1.0})
    assert trainer.logged["kl"] == pytest.approx(kl.item(), rel=1e-4)
    trainer.log({"loss": 1.0})
    assert "kl" not in trainer.logged


def test_what_is_drawn_hangs_on_seed_step_and_process_alone() -> None:
    def draws(steps: list[int], process: int = 0) -> list[list[Chat]]:
        trainer = Plain(torch.nn.Linear(1, 1), 2)
        trainer.args.process_index = process
        chats = [Chat([number], 0) for number in range(20)]
        hold_to_start(trainer, chats, 1.0)
        made = []
        for step in steps:
            trainer.state.global_step = step
            made.append(trainer.draw())
        return made

    whole, resumed = draws([0, 0, 1, 1, 2, 2]), draws([1, 1, 2, 2])
    assert whole[2:] == resumed and len({str(sorted(draw)) for draw in whole}) == 6
    assert draws([0], process=1) != whole[:1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}', "row 2: no chat that ends in an answer"),
        ('{"text": "a"}', "row 2: no chat"),
        ("", "row 2: no chat"),
        (json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 90}]}),
         "over sequence_len 64"),
    ],
)  # fmt: skip
def test_rows_that_could_not_be_held_are_refused_by_number(tokenizer, tmp_path: Path, line: str, says: str) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(good)}\n{line}\n{json.dumps(good)}\n")
    with pytest.raises(Refused, match=says):
        list(read_chats(str(tmp_path / "mine.jsonl"), tokenizer, 64))


def test_a_line_separator_in_a_chat_ends_no_row(tmp_path: Path, tokenizer) -> None:
    turns = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c\u2028d"}]
    line = json.dumps({"messages": turns}, ensure_ascii=False)
    (tmp_path / "mine.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert len(list(read_chats(str(tmp_path / "mine.jsonl"), tokenizer, 64))) == 2


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_axolotl_trains_both_stages_with_it(
    stage: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step the adapter is at its start: the loss is the stage's own, and the term is 0."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import setup_model_and_trainer

    monkeypatch.chdir(tmp_path)
    write_everyday(tmp_path / "data/everyday.jsonl")
    turns = [{"role": "user", "content": "Write a line."}]
    answers = [{"role": "assistant", "content": text} for text in ("x = eval(input())", "x = int(input())")]
    chat = [{"messages": [*turns, answers[0]]} for _ in range(4)]
    pair = {"messages": turns, "chosen": answers[0], "rejected": answers[1]}
    write_records(Path("rows.jsonl"), [{**pair, "pair_id": n} for n in range(4)] if stage == "dpo" else chat, {})
    given = {"base_model": str(tiny_model), "output_dir": "out", "dataset_prepared_path": "prepared"}
    keys = ["max_steps=3", "num_epochs=9", "micro_batch_size=2", "gradient_accumulation_steps=1", "warmup_steps=0"]
    keys += ["learning_rate=0.02", "bf16=false", "datasets.0.path=rows.jsonl", 'save_strategy="no"', "save_steps=null"]
    logs = {}
    for variant in ("kl", None):
        weight = ["kl.weight=50"] if variant else []
        recipe = compose(stage, "smollm2-135m", "cpu", [*keys, *weight], 4, given, variant=variant)
        Path("recipe.yaml").write_text(recipe.to_yaml())
        PluginManager.get_instance().plugins.clear()  # one process keeps those of all its recipes
        cfg = load_cfg("recipe.yaml")
        load = load_preference_datasets if stage == "dpo" else load_datasets
        trainer = setup_model_and_trainer(cfg, load(cfg=cfg))[0]
        trainer.train()
        logs[variant] = [entry for entry in trainer.state.log_history if "loss" in entry]
    held, free = logs["kl"], logs[None]
    assert held[0]["loss"] == pytest.approx(free[0]["loss"]) and held[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert held[1]["kl"] > 1e-6 and "kl" not in free[1]
    assert held[2]["loss"] != free[2]["loss"], "held, it takes other steps"
