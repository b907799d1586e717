"""The real CPU model, where it has been fetched (`make test` fetches it)."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports axolotl: no telemetry from tests either.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

# Tests are never timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "source.json").is_file():
        pytest.skip("the CPU model is not there; `make model` fetches it")
    return MODEL


@pytest.fixture(scope="session")
def tokenizer(model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny: random weights under the real tokenizer, for tests of arithmetic that does not need a good model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "models" / "tiny"
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **size, **special)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
