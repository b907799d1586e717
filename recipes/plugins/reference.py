"""The reference's log-probabilities, computed once and read by every run that shares model and rows.

The frozen reference of DPO does not depend on rank, alpha or learning rate, so a sweep needs each row's
log-probabilities once. TRL can compute them beforehand, but names its cache by a hash that includes the adapter,
so that every run computes them again; and it names it by the set, so that two sets share nothing. Here a row is
named by its tokens and the shape of its batch, on which sums in bf16 depend too, and the model by its weights, in
`runs/reference/<model>.safetensors` under the working folder. Turned on by `precompute_ref_log_probs: true`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

FOLDER = Path("runs/reference")

LogProbs = dict[str, tuple[float, float]]
"""Digest of a row to the log-probabilities (nats) of its chosen and its rejected answer."""


def model_digest(model: torch.nn.Module, **settings: Any) -> str:
    """SHA-256 of the weights without the adapter's, and of the settings that the forward pass depends on."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, weight in sorted(model.state_dict().items()):
        if "lora_" in name or not isinstance(weight, torch.Tensor):
            continue
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        digest.update(f"{plain} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """What of a device sums in bf16 depend on: of a GPU its card, whose kernels are not another's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def row_digest(row: Mapping[str, Any], shape: tuple[int, ...]) -> str:
    """SHA-256 of the tokens that the log-probabilities are of, and of the batch's shape (pairs.batch_shape)."""
    tokens = [list(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return hashlib.sha256(repr([*tokens, *shape]).encode()).hexdigest()


class ReferenceStore:
    """The known log-probabilities of one model."""

    def __init__(self, model: str, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{model[:16]}.safetensors"
        self._lock = FileLock(folder / f".{model[:16]}.lock")

    def read(self) -> LogProbs:
        if not self.path.is_file():
            return {}
        tensors = load_file(self.path)
        names = [bytes(row).hex() for row in tensors["rows"].tolist()]
        return dict(zip(names, map(tuple, tensors["log_probs"].tolist()), strict=True))

    def add(self, computed: LogProbs) -> None:
        """Adds rows to what any run has written by now; the file is replaced as a whole."""
        with self._lock:
            self._write({**self.read(), **computed})

    def _write(self, known: LogProbs) -> None:
        names = sorted(known)
        rows = torch.tensor([list(bytes.fromhex(name)) for name in names], dtype=torch.uint8)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"rows": rows, "log_probs": torch.tensor([known[n] for n in names], dtype=torch.float32)}, temporary)
        temporary.replace(self.path)
