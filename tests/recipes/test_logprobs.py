"""Log-probabilities of tokens: the values and gradients of fp64, from logits of any type, in fp32 a chunk at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.plugins import logprobs
from recipes.plugins.logprobs import token_logprobs

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 40), DTYPES, st.integers(1, 200), st.data())
def test_values_and_gradients_are_those_of_fp64(rows, length, vocabulary, dtype, chunk, data) -> None:
    """Over shapes, types and chunks; masked places, as TRL masks them, give no gradient."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scale = data.draw(st.sampled_from([0.1, 5.0, 50.0]))
    whole = (torch.randn(rows, length + 1, vocabulary, generator=generator) * scale).to(dtype).requires_grad_()
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK", chunk)
        values = token_logprobs(whole[:, :-1], tokens)
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        values[~mask] = 0.0
        values.sum().backward()
    exact = whole.detach().double().requires_grad_()
    expected = exact[:, :-1].log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask
    expected.sum().backward()
    torch.testing.assert_close(values.double(), expected, atol=2e-5 * scale, rtol=1e-6)
    grain = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 1e-5
    torch.testing.assert_close(whole.grad.double(), exact.grad, atol=max(grain * 1e-2, 1e-5), rtol=grain)
    assert not whole.grad[:, :-1][~mask].any() and not whole.grad[:, -1].any()


def test_memory_grows_by_a_chunk_and_not_by_a_vocabulary_of_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor on the way has more bytes than the logits' gradient; fp32 logits would have twice as many."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0
        in_fp32 = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            out = operation(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.bytes = max(self.bytes, out.untyped_storage().nbytes())
                self.in_fp32 = max(self.in_fp32, out.numel() if out.dtype == torch.float32 else 0)
            return out

    monkeypatch.setattr(logprobs, "CHUNK", 2_000)
    logits = torch.randn(2, 30, 1_000).bfloat16().requires_grad_()
    with Largest() as largest:
        token_logprobs(logits, torch.zeros(2, 30, dtype=torch.long)).sum().backward()
    assert largest.bytes == logits.untyped_storage().nbytes()
    assert largest.in_fp32 == logprobs.CHUNK, "of a long row too, no more at a time"
