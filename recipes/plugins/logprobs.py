"""Log-probabilities of tokens in fp32, whatever the type of the logits.

TRL computes them in the logits' type: in bf16, whole nats between 128 and 256 of a sum, and a step of DPO
that starts at 0.65 or 0.71 in place of ln 2 (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

CHUNK = 2**24
"""Logits that are held in fp32 at a time: 64 MiB."""


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token (nats; fp32, fp64 for fp64 logits), with the gradient by the logits.

    The logits are cast `CHUNK` at a time, forward and backward, so that memory grows by no vocabulary of fp32.

    Args:
        logits: (rows, length, vocabulary), of any floating-point type.
        tokens: (rows, length), indices into the vocabulary.
    """
    logprobs: torch.Tensor = _TokenLogProbs.apply(logits, tokens)  # type: ignore[no-untyped-call]
    return logprobs


class _TokenLogProbs(torch.autograd.Function):
    """x[token] - logsumexp(x); its gradient by x is onehot(token) - softmax(x)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        normalisers = torch.empty(tokens.shape, dtype=exact, device=logits.device)
        for part in _chunks(logits):
            normalisers[part] = logits[part].to(exact).logsumexp(-1)
        ctx.save_for_backward(logits, tokens, normalisers)
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(exact) - normalisers

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, tokens, normalisers = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            weight = upstream[0][part].unsqueeze(-1)
            exact = (logits[part].to(normalisers.dtype) - normalisers[part].unsqueeze(-1)).exp_().mul_(-weight)
            gradient[part] = exact.scatter_add_(-1, tokens[part].unsqueeze(-1), weight)
        return gradient, None


def _chunks(logits: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Indices of the parts of (rows, length): some places of one row each, at most `CHUNK` logits."""
    rows, length, vocabulary = logits.shape
    step = max(1, CHUNK // vocabulary)
    return ((row, slice(start, start + step)) for row in range(rows) for start in range(0, length, step))
