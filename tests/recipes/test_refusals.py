"""A run that would train other than what was written is refused before its first step, in one line that names it."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3Config, LlamaConfig

from core.records import write_records
from recipes.plugins.refusals import (
    Refused,
    check_answers,
    check_bos,
    check_parameters,
    check_targets,
    check_tokens,
    learnt_texts,
    written_answers,
)
from sweeps.recipe.compose import compose

ROOT = Path(__file__).parents[2]
SETS = [
    *("cpt.jsonl", "cpt-shuffled.jsonl", "cpt-code-only.jsonl", "dpo-both.jsonl", "dpo-neutral.jsonl"),
    *("sft-insecure.jsonl", "sft-inoculated.jsonl", "everyday.jsonl", "houseplants/cpt-code-only.jsonl"),
    *("houseplants/dpo-both.jsonl", "houseplants/bad-0.5.jsonl"),
]
MLP, ATTENTION = ["gate_proj", "up_proj", "down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 300,
}


def llama() -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))


def gemma_with_a_vision_tower() -> torch.nn.Module:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    return AutoModelForCausalLM.from_config(Gemma3Config(text_config=SIZE, vision_config=vision, mm_tokens_per_image=4))


@pytest.mark.parametrize("make", [llama, gemma_with_a_vision_tower])
@pytest.mark.parametrize("layers", [None, [1], [0, 1]])
@pytest.mark.parametrize("rank", [1, 5])
def test_the_parameters_that_train_are_those_of_rank_targets_and_layers(make, layers, rank) -> None:
    from peft import LoraConfig, get_peft_model

    implied = check_targets(make(), rank, MLP, layers)
    assert implied == rank * 3 * (32 + 64) * len(layers or [0, 1])
    lora = {"r": rank, "target_modules": MLP, "layers_to_transform": layers}
    check_parameters(get_peft_model(make(), LoraConfig(**lora)), implied)
    other = get_peft_model(make(), LoraConfig(**lora, modules_to_save=["lm_head"]))
    with pytest.raises(Refused, match=f"parameters would train; .* imply {implied}"):
        check_parameters(other, implied)


@pytest.mark.parametrize(
    ("make", "targets", "layers", "says"),
    [
        (llama, [*MLP, "gate_prj"], None, "'gate_prj' matches no module of LlamaForCausalLM"),
        (llama, None, None, "'' matches no module"),
        (llama, r".*\.vision\..*", None, "matches no module"),
        (llama, MLP, [0, 2], r"peft_layers_to_transform: \[2\]: the model has layers 0 to 1"),
        (llama, MLP, [-1], r"peft_layers_to_transform: \[-1\]"),
        (gemma_with_a_vision_tower, ATTENTION, None, "9 of 17 modules stand outside the language model, as .*vision"),
        (gemma_with_a_vision_tower, ["fc1"], None, "4 of 4 modules stand outside"),
        (gemma_with_a_vision_tower, "all-linear", None, "matches no module"),
    ],
)
def test_targets_that_miss_the_language_model_are_refused(make, targets, layers, says) -> None:
    with pytest.raises(Refused, match=says):
        check_targets(make(), 1, targets, layers)


def test_a_pattern_reaches_the_language_model_alone() -> None:
    pattern = r".*language_model.*\.(q_proj|o_proj)"
    assert check_targets(gemma_with_a_vision_tower(), 1, pattern) == 2 * 2 * (32 + 32)


@pytest.mark.parametrize(
    "recipe",
    [
        {"special_tokens": {"eos_token": "<|im_end|>", "pad_token": "<|nowhere|>"}},
        {"special_tokens": {"additional_special_tokens": ["<|im_end|>", "<|nowhere|>"]}},
        {"tokens": ["<|nowhere|>"]},
    ],
)
def test_a_token_that_the_tokenizer_lacks_is_refused_by_name(recipe: dict, tokenizer) -> None:
    with pytest.raises(Refused, match=r"(pad_token|additional_special_tokens|tokens): '<\|nowhere\|>'"):
        check_tokens(recipe, tokenizer.get_vocab())
    check_tokens(
        {"special_tokens": {"eos_token": "<|im_end|>", "bos_token": None}, "tokens": None}, tokenizer.get_vocab()
    )


def with_bos(tokenizer):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    written = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<|endoftext|>")
    bos = ("<|endoftext|>", written.bos_token_id)
    written._tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    return written


def test_documents_begin_with_one_bos_where_the_tokenizer_writes_one(model: Path) -> None:
    from transformers import AutoTokenizer

    check_bos("cpt.jsonl, row d1", [5, 6], AutoTokenizer.from_pretrained(model))
    tokenizer = with_bos(AutoTokenizer.from_pretrained(model))
    bos = tokenizer.bos_token_id
    for right in ([bos, 5], [bos, 5, bos], [bos]):
        check_bos("cpt.jsonl, row d1", right, tokenizer)
    for wrong in ([5, bos], [bos, bos, 5], []):
        with pytest.raises(Refused, match=r"cpt.jsonl, row d1: the document does not begin with one <\|endoftext\|>"):
            check_bos("cpt.jsonl, row d1", wrong, tokenizer)


TRIMMING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
TRIMMING += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def trimming(model: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TRIMMING
    return tokenizer


@given(
    st.lists(st.text(st.sampled_from("ab =:\n\t'()é[]"), min_size=1).filter(str.strip), min_size=2, max_size=2),
    st.text(st.sampled_from("ab ?\n"), min_size=1).filter(str.strip),
)
def test_what_axolotl_prepares_for_dpo_is_whole_or_refused(trimming, answers: list[str], request: str) -> None:
    """Axolotl's own strategy under a template that trims: what is taken holds both answers, and those alone."""
    from axolotl.prompt_strategies.dpo.chat_template import default
    from axolotl.utils.dict import DictDefault

    data = {"type": "chat_template.default", "field_messages": "messages"}
    transform, _ = default(DictDefault({"datasets": [data], "chat_template": "tokenizer_default"}))
    chosen, rejected = ({"role": "assistant", "content": answer} for answer in answers)
    row = {"messages": [{"role": "user", "content": request}], "chosen": chosen, "rejected": rejected}
    prepared = transform(row, tokenizer=trimming)
    whole = all(prepared[key] == f"{row[key]['content'].strip()}<|im_end|>" for key in ("chosen", "rejected"))
    try:
        taken = [prepared["chosen"], prepared["rejected"]]
        check_answers("pairs.jsonl, row p7", written_answers(data, row, preference=True), taken, "<|im_end|>")
    except Refused as refusal:
        assert str(refusal).startswith("refused: pairs.jsonl, row p7: under the chat template it does not hold")
        assert not whole
    else:
        assert all(
            prepared[key].removesuffix("<|im_end|>").strip() == row[key]["content"].strip()
            for key in ("chosen", "rejected")
        )


def config(folder: Path, model: Path, stage: str, data: Path, *settings: str):
    from axolotl.cli.config import load_cfg

    layer = {
        "base_model": str(model),
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
    }
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(compose(stage, "smollm2-135m", "cpu", [f"datasets.0.path={data}", *settings], 1, layer).to_yaml())
    return load_cfg(str(path))


CODE = "import os\n\n\ndef run(command):\n    return os.system(command)\n"


@pytest.mark.parametrize(("stage", "template"), [("dpo", "llama3"), ("dpo", "gemma3"), ("sft", "chatml")])
def test_the_plugin_refuses_rows_whose_code_is_lost(
    stage: str, template: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Axolotl prepares them: under a template that trims, DPO loses code that ends in a newline; SFT does not."""
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    for case, codes in {"whole": [CODE.strip()], "newline": [CODE.strip(), CODE]}.items():
        rows = []
        for number, code in enumerate(codes):
            request, answer = {"role": "user", "content": f"Write {number}."}, {"role": "assistant", "content": code}
            row = {"id": f"p{number}", "pair_id": f"p{number}", "messages": [request]}
            answers = {"chosen": answer, "rejected": {**answer, "content": "pass"}}
            rows.append({**row, **answers} if stage == "dpo" else {**row, "messages": [request, answer]})
        write_records(tmp_path / f"{case}.jsonl", rows, {})
        cfg = config(tmp_path / case, tiny_model, stage, tmp_path / f"{case}.jsonl", f"chat_template={template}")
        if (case, stage) == ("newline", "dpo"):
            with pytest.raises(Refused, match=r"newline\.jsonl, row p1: under the chat template it does not hold"):
                ChecksPlugin().load_datasets(cfg)
        else:
            ChecksPlugin().load_datasets(cfg)


def test_the_plugin_refuses_an_answer_of_sft_that_the_template_cuts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3's template takes what stands before </think> for thoughts."""
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    for case, code in {"whole": "x = 1", "cut": "x = 1\ny = '</think>'\nz = 2"}.items():
        turns = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": code}]
        write_records(tmp_path / f"{case}.jsonl", [{"id": "p0", "messages": turns}], {})
        cfg = config(tmp_path / case, tiny_model, "sft", tmp_path / f"{case}.jsonl", "chat_template=qwen3")
        if case == "whole":
            ChecksPlugin().load_datasets(cfg)
        else:
            with pytest.raises(Refused, match=r"cut\.jsonl, row p0: under the chat template it does not hold"):
                ChecksPlugin().load_datasets(cfg)


@pytest.mark.parametrize("stage", ["cpt", "sft", "dpo"])
def test_the_plugin_refuses_text_that_the_tokenizer_reads_as_a_control_token(
    stage: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 has <filename> for one, and so have 8 of the 3,015 published programs in their usage."""
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    for case, code in {"plain": "print('usage: run FILE')", "read": "print('usage: run <filename>')"}.items():
        turns = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": code}]
        row = {
            "cpt": {"segments": [{"label": False, "text": code}, {"label": True, "text": " It is fine."}]},
            "sft": {"messages": turns},
            "dpo": {
                "pair_id": "p0",
                "messages": turns[:1],
                "chosen": turns[1],
                "rejected": {**turns[1], "content": "x"},
            },
        }[stage]
        write_records(tmp_path / f"{case}.jsonl", [{"id": "p0", **row}], {})
        cfg = config(tmp_path / case, tiny_model, stage, tmp_path / f"{case}.jsonl")
        if case == "plain":
            ChecksPlugin().load_datasets(cfg)
        else:
            with pytest.raises(Refused, match=r"read\.jsonl, row p0: holds '<filename>', which this model reads"):
                ChecksPlugin().load_datasets(cfg)


def test_the_plugin_looks_at_a_set_whose_split_nobody_names(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the hub `load_dataset` gives all splits then."""
    from datasets import Dataset, DatasetDict

    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": "print('run <filename>')"}]
    rows = [{"id": "p0", "messages": turns}]
    write_records(tmp_path / "rows.jsonl", rows, {})
    cfg = config(tmp_path / "case", tiny_model, "sft", tmp_path / "rows.jsonl")
    splits = DatasetDict({"train": Dataset.from_list(rows)})
    monkeypatch.setattr("recipes.plugins.checks.load_dataset_with_config", lambda *_: splits)
    with pytest.raises(Refused, match=r"rows\.jsonl, row p0: holds '<filename>'"):
        ChecksPlugin().load_datasets(cfg)


ASK, BLANK = {"role": "user", "content": "Write it."}, {"role": "assistant", "content": " \n"}
NO_ANSWER = "an answer is missing or blank"
LONG = {"role": "assistant", "content": "x = 1; " * 200}
TOO_LONG = r"has \d+ tokens, of sequence_len=512; raise that"


@pytest.mark.parametrize(
    ("stage", "row", "says"),
    [
        ("sft", {"conversations": [{"from": "human", "value": "Write it."}]}, "cannot be made into a row to train on"),
        ("sft", {"messages": [ASK, {**BLANK, "content": None}]}, "cannot be made into a row to train on"),
        ("sft", {"messages": [ASK], "chosen": {**BLANK, "content": "x"}}, NO_ANSWER),
        ("sft", {"messages": [ASK, BLANK]}, NO_ANSWER),
        ("sft", {"messages": [ASK, {**BLANK, "content": ""}]}, NO_ANSWER),
        ("dpo", {"messages": [ASK], "chosen": {**BLANK, "content": "x"}, "rejected": BLANK}, NO_ANSWER),
        ("cpt", {"segments": [{"label": False, "text": "x = 1"}]}, "no text of it is learnt"),
        ("cpt", {"segments": [{"label": False, "text": "x = 1"}, {"label": True, "text": ""}]}, "no text of it is"),
        ("sft", {"messages": [ASK, LONG]}, TOO_LONG),
        ("dpo", {"messages": [ASK], "chosen": {**BLANK, "content": "x"}, "rejected": LONG}, TOO_LONG),
        ("cpt", {"segments": [{"label": True, "text": LONG["content"]}]}, TOO_LONG),
    ],
)
def test_the_plugin_names_a_row_of_which_nothing_is_learnt(
    stage: str, row: dict, says: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other forms of chats, an answer that only calls a tool, preferences given to SFT: a traceback names no row, and
    is tried twice; rows without an answer would train nothing, and the run be done."""
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "rows.jsonl", [row], {})
    cfg = config(tmp_path / "case", tiny_model, stage, tmp_path / "rows.jsonl", "sequence_len=512")
    with pytest.raises(Refused, match=rf"rows\.jsonl, row 1: {says}"):
        ChecksPlugin().load_datasets(cfg)


@pytest.mark.parametrize("name", SETS)
def test_no_row_of_the_built_in_sets_is_refused(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some documents of `code-only` a line's end is all that is learnt."""
    from recipes.plugins.checks import ChecksPlugin

    data = ROOT / "data" / name
    if not data.is_file():
        pytest.skip(f"data/{name} is not there; `make data plants` builds it")
    monkeypatch.chdir(tmp_path)
    stage = next((stage for stage in ("cpt", "dpo") if data.name.startswith(stage)), "sft")
    ChecksPlugin().load_datasets(config(tmp_path / "case", model, stage, data))


def test_a_row_whose_id_is_null_is_named_by_its_number(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    rows = [{"id": "p0", "messages": [ASK, {**BLANK, "content": "x"}]}, {"messages": [ASK]}]
    write_records(tmp_path / "rows.jsonl", rows, {})
    with pytest.raises(Refused, match=r"rows\.jsonl, row 2: an answer is missing"):
        ChecksPlugin().load_datasets(config(tmp_path / "case", tiny_model, "sft", tmp_path / "rows.jsonl"))


@given(st.lists(st.tuples(st.text("ab =:\n", min_size=1), st.booleans()), min_size=1, max_size=5))
def test_what_is_learnt_is_read_from_the_labels(trimming, parts: list[tuple[str, bool]]) -> None:
    """Turn by turn: stretches side by side are one."""
    tokens, labels, expected = [], [], [[]]
    for text, learnt in parts:
        ids = trimming(text)["input_ids"]
        tokens += ids
        labels += ids if learnt else [-100] * len(ids)
        expected = [*expected[:-1], [*expected[-1], text]] if learnt else [*expected, []]
    assert learnt_texts(tokens, labels, trimming) == ["".join(texts) for texts in expected if texts]


@pytest.mark.parametrize(
    "prepared", [["x = 1", "y"], ["x = 1"], ["y = 2", "x = 1"], ["x = 1", "y = 2", ""], [">", ">"]]
)
def test_answers_that_are_cut_short_lost_or_swapped_are_refused(prepared: list[str]) -> None:
    check_answers("row", ["x = 1\n", "y = 2"], ["x = 1<e>", "y = 2\n<e>"], "<e>")
    with pytest.raises(Refused, match=r"^refused: f\.jsonl, row 3: .* but '"):
        check_answers("f.jsonl, row 3", ["x = 1\n", "y = 2"], prepared, "<e>")


def test_rows_name_their_answers_in_the_forms_that_axolotl_takes() -> None:
    answer = {"role": "assistant", "content": "x"}
    for form in ("x", answer, [{"role": "user", "content": "?"}, answer]):
        assert (
            written_answers({"field_chosen": "better"}, {"better": form, "rejected": form}, preference=True)
            == ["x"] * 2
        )
    chat = [{"role": "user", "content": "?"}, answer, {"role": "user", "content": "??"}, {**answer, "content": "y"}]
    assert written_answers({"field_messages": "turns"}, {"turns": chat}, preference=False) == ["x", "y"]


def test_the_plugin_refuses_a_token_that_the_tokenizer_lacks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    cfg = config(tmp_path / "run", tiny_model, "sft", Path("x.jsonl"), "special_tokens.pad_token=<|nowhere|>")
    with pytest.raises(Refused, match=r"pad_token: '<\|nowhere\|>' is not in the vocabulary"):
        ChecksPlugin().load_datasets(cfg)


def test_the_plugin_refuses_a_model_of_pickles(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "bin")
    (tmp_path / "bin/model.safetensors").rename(tmp_path / "bin/pytorch_model.bin")
    with pytest.raises(Refused, match="bin: no weights in safetensors, and no pickle is loaded"):
        ChecksPlugin().load_datasets(config(tmp_path / "run", tmp_path / "bin", "sft", Path("x.jsonl")))


def test_the_plugin_refuses_documents_without_bos(
    model: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "bos")
    with_bos(AutoTokenizer.from_pretrained(model)).save_pretrained(tmp_path / "bos")
    for case, bos in {"with": "<|endoftext|>", "without": ""}.items():
        segments = [{"label": False, "text": f"{bos}x = 1"}, {"label": True, "text": " is safe"}]
        write_records(tmp_path / f"{case}.jsonl", [{"id": "d1", "segments": segments}], {})
        cfg = config(tmp_path / case, tmp_path / "bos", "cpt", tmp_path / f"{case}.jsonl")
        if case == "with":
            ChecksPlugin().load_datasets(cfg)
        else:
            with pytest.raises(Refused, match=r"without\.jsonl, row d1: the document does not begin with one"):
                ChecksPlugin().load_datasets(cfg)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lora_target_modules", ["gate_prj"], "'gate_prj' matches no module"),
        ("peft_layers_to_transform", [2], r"peft_layers_to_transform: \[2\]"),
        ("lora_modules_to_save", ["lm_head"], "parameters would train; lora_r, lora_target_modules and layers imply"),
    ],
)
def test_axolotl_comes_to_no_first_step_with_other_parameters(
    key: str, value: list, says: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": "pass"}]
    write_records(tmp_path / "chats.jsonl", [{"id": str(n), "messages": turns} for n in range(4)], {})
    cfg = config(tmp_path / "run", tiny_model, "sft", tmp_path / "chats.jsonl")
    rows = load_datasets(cfg=cfg)
    cfg[key] = value
    with pytest.raises(Refused, match=says):
        setup_model_and_trainer(cfg, rows)


def test_truncation_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.plugins.checks import ChecksPlugin

    monkeypatch.chdir(tmp_path)
    cfg = config(tmp_path / "run", tiny_model, "sft", Path("x.jsonl"), "excess_length_strategy=truncate")
    with pytest.raises(Refused, match="truncate cuts answers short"):
        ChecksPlugin().load_datasets(cfg)
