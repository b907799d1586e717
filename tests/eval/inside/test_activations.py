"""Means of activations: the right tokens, the right residual, the same in a batch and alone, with and without LoRA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from core.records import BadInput
from eval.inside.activations import LONG, Passage, batches, blocks, encode, load, means, progress, residuals

TEXTS = [
    "Leave the room. Lock the door behind you.",
    "Wait.\nGo on then",
    "Say it: naïve 🙂 answers are still answers.",
]


def passage(text: str, low: int = 6) -> Passage:
    return Passage(text, ((low, len(text)),))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path):
    return load(str(tiny_model))


def by_hand(model, tokenizer, text: str, low: int = 6) -> np.ndarray:
    """Means over the tokens that end behind character `low`, from transformers' own hidden states."""
    # The tests' tokenizer adds no special token, so that every token has characters.
    encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    keep = (encoded["offset_mapping"][0, :, 1] > low) & (torch.arange(encoded["input_ids"].shape[1]) > 0)
    with torch.no_grad():
        states = model.get_decoder()(input_ids=encoded["input_ids"], output_hidden_states=True).hidden_states
    return torch.stack([state[0, keep].mean(0) for state in states]).numpy()


def test_each_index_is_the_residual_behind_so_many_blocks(tiny) -> None:
    model, tokenizer = tiny
    found = means(model, tokenizer, [passage(text) for text in TEXTS], size=2)
    for own, text in zip(found, TEXTS, strict=True):
        expected = by_hand(model, tokenizer, text)
        np.testing.assert_allclose(own[:-1], expected[:-1], atol=1e-6)
        # transformers' last hidden state is behind the final norm, and ours is not
        assert np.abs(own[-1] - expected[-1]).max() > 1e-3


def test_a_long_passage_does_not_lengthen_the_others(tiny) -> None:
    model, tokenizer = tiny
    texts = [passage(f"Hello and {'more ' * n}") for n in (3, 1900, 700, 5, 1500, 600, 4, 650, 6, 2)]
    found = list(batches(model, tokenizer, texts, 8, "x"))
    assert sorted(place for places, *_ in found for place in places) == [*range(10)]
    assert all(len(places) == 1 or ids.numel() <= 8 * LONG for places, ids, *_ in found)
    assert [places for places, *_ in found] == [[9, 0, 6, 3, 8, 5, 7, 2], [4, 1]], "short ones are as many as asked for"


def test_the_last_index_is_before_the_final_norm(tiny) -> None:
    model, tokenizer = tiny
    text = "Wait here"
    last = Passage(text, ((len(text) - 1, len(text)),))
    found = torch.from_numpy(means(model, tokenizer, [last])[0, -1])
    normed = model.get_decoder().norm(found).numpy()
    with torch.no_grad():
        state = model.get_decoder()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(normed, state[0, -1].numpy(), atol=1e-5)


def test_padding_changes_nothing(tiny) -> None:
    passages = [passage(text) for text in TEXTS]
    together, alone = means(*tiny, passages, size=3), means(*tiny, passages, size=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_first_token_never_counts(tiny) -> None:
    _, tokenizer = tiny
    _, chosen = encode(tokenizer, Passage("Hello there", ((0, 11),)), 100)
    assert chosen.tolist() == [False] + [True] * (len(chosen) - 1)
    with pytest.raises(BadInput, match="no token behind the first"):
        encode(tokenizer, Passage("Hello there", ((0, 2),)), 100)


def test_a_text_that_the_model_cannot_read_whole_is_refused(tiny) -> None:
    with pytest.raises(BadInput, match="tokens, and the model reads"):
        encode(tiny[1], passage("word " * 50), 20)


def test_an_adapter_moves_the_activations_as_its_merged_model_does(tiny_model: Path, tmp_path: Path) -> None:
    plain, tokenizer = load(str(tiny_model))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    get_peft_model(plain, config).save_pretrained(tmp_path / "adapter")
    adapted, _ = load(str(tiny_model), adapter=str(tmp_path / "adapter"))
    base, _ = load(str(tiny_model))
    passages = [passage(text) for text in TEXTS]
    on, off = means(adapted, tokenizer, passages), means(base, tokenizer, passages)
    with adapted.disable_adapter():
        np.testing.assert_allclose(means(adapted, tokenizer, passages), off, atol=1e-6)
    np.testing.assert_allclose(on, means(adapted.merge_and_unload(), tokenizer, passages), atol=1e-5)
    assert np.abs(on - off)[:, 1:].max() > 1e-2
    np.testing.assert_allclose(on[:, 0], off[:, 0], atol=1e-6)


def test_means_of_a_bf16_model_are_summed_in_fp32(tiny_model: Path) -> None:
    model, tokenizer = load(str(tiny_model), dtype="bfloat16")
    text = "one two three four five six seven eight nine ten eleven twelve"
    kept = []
    with torch.no_grad(), residuals(model, lambda n, residual: kept.append(residual) if n == 1 else None):
        model.get_decoder()(**tokenizer(text, return_tensors="pt"))
    found = means(model, tokenizer, [Passage(text, ((0, len(text)),))])[0, 1]
    np.testing.assert_allclose(found, kept[0][0, 1:].float().mean(0).numpy(), rtol=1e-5, atol=1e-7)


def test_a_reader_sees_an_edit_whichever_hook_came_first(tiny) -> None:
    model, tokenizer = tiny
    seen: list[float] = []

    def read(index: int, residual: torch.Tensor) -> None:
        if index == 1:
            seen.append(float(residual[0, -1, 0]))

    def edit(index: int, residual: torch.Tensor) -> torch.Tensor | None:
        return residual + 100 if index == 1 else None

    ids = tokenizer("Wait here", return_tensors="pt")
    with torch.no_grad():
        with residuals(model, read), residuals(model, edit, first=True):
            model.get_decoder()(**ids)
        with residuals(model, edit, first=True), residuals(model, read):
            model.get_decoder()(**ids)
        with residuals(model, read):
            model.get_decoder()(**ids)
    assert seen[0] == seen[1] == pytest.approx(seen[2] + 100, abs=1e-4)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere: cannot be loaded"):
        load(str(tmp_path / "nowhere"))


def test_an_adapter_that_was_cut_off_is_named(tiny_model: Path, tmp_path: Path) -> None:
    get_peft_model(load(str(tiny_model))[0], LoraConfig(r=1, target_modules=["down_proj"])).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BadInput, match="cannot be loaded") as error:
        load(str(tiny_model), adapter=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_neuron_is_what_its_own_block_multiplies_into_the_residual(tiny) -> None:
    model, tokenizer = tiny
    found = means(model, tokenizer, [passage(text) for text in TEXTS], size=2, neurons=True)
    assert found.shape == (3, 3, 128) and not found[:, 0].any()
    seen = []
    handle = blocks(model)[1].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for own, text in zip(found, TEXTS, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        keep = (encoded["offset_mapping"][0, :, 1] > 6) & (torch.arange(encoded["input_ids"].shape[1]) > 0)
        with torch.no_grad():
            model.get_decoder()(input_ids=encoded["input_ids"])
        np.testing.assert_allclose(own[2], seen[-1][keep].mean(0).numpy(), atol=1e-6)
    handle.remove()
    with pytest.raises(BadInput, match=r"no mlp.down_proj"):
        means(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2)), tokenizer, [], neurons=True)


def test_blocks_that_add_attention_and_mlp_at_once_are_read_as_others_are(tiny) -> None:
    """GPT-NeoX, whose modules have names of their own."""
    _, tokenizer = tiny
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**size, vocab_size=len(tokenizer))).eval()
    passages = [passage(text) for text in TEXTS]
    for own, text in zip(means(model, tokenizer, passages), TEXTS, strict=True):
        np.testing.assert_allclose(own[:-1], by_hand(model, tokenizer, text)[:-1], atol=1e-6)
    found = means(model, tokenizer, passages, neurons=True)
    assert found.shape == (3, 3, 48) and not found[:, 0].any() and found[:, 1:].any()


def test_a_bar_leaves_nothing_in_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "steps")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_activations_that_are_not_finite_are_refused(tiny_model: Path) -> None:
    model, tokenizer = load(str(tiny_model))
    blocks(model)[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"activations: not finite: weights went to NaN, or torch.float32 is too narrow"):
        means(model, tokenizer, [passage(text) for text in TEXTS])
