"""The scan equals its recurrence, one step after the other, and so do its gradients."""

import pytest
import torch
from torch import Tensor

from lm.ops import scan
from lm.ops.scan import decay_scan

B, N = 2, 3


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def one_by_one(log_decay: Tensor, inputs: Tensor, start: Tensor, restart: Tensor | None) -> Tensor:
    hidden, now = [], start
    for t in range(inputs.shape[1]):
        before = now if restart is None else torch.where(restart[:, t, None], 0, now)
        now = log_decay.exp() * before + inputs[:, t]
        hidden.append(now)
    return torch.stack(hidden, 1)


@pytest.mark.parametrize("chunk", [2, 16])
@pytest.mark.parametrize("time", [1, 16, 17, 131])
@pytest.mark.parametrize("share", [None, 0.07, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_equals_the_recurrence(dtype: torch.dtype, share: float | None, time: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", chunk)
    decay = drawn(N, seed=1, dtype=dtype)
    decay = torch.complex(-0.3 * decay.real.abs(), decay.imag) if dtype.is_complex else -0.3 * decay.abs()
    leaves = [decay.requires_grad_(), drawn(B, time, N, seed=2, dtype=dtype).requires_grad_(), drawn(B, N, seed=3, dtype=dtype).requires_grad_()]
    restart = None if share is None else torch.rand(B, time, generator=torch.Generator().manual_seed(4)) < share
    weight = drawn(B, time, N, seed=5, dtype=dtype)
    found = []
    for form in (decay_scan, one_by_one):
        hidden = form(*leaves, restart)
        gradients = torch.autograd.grad((hidden * weight).sum().abs(), leaves)
        found.append((hidden, *gradients))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_no_time_at_all() -> None:
    leaves = [drawn(N, seed=1).requires_grad_(), drawn(B, 0, N, seed=2).requires_grad_(), drawn(B, N, seed=3).requires_grad_()]
    hidden = decay_scan(*leaves, torch.zeros(B, 0, dtype=torch.bool))
    assert hidden.shape == (B, 0, N)
    assert all(not gradient.any() for gradient in torch.autograd.grad(hidden.sum().abs(), leaves))


def test_a_restart_forgets_what_is_not_finite() -> None:
    inputs = drawn(1, 40, N, seed=2)
    restart = torch.arange(40)[None] == 20
    alone = decay_scan(-torch.ones(N), inputs[:, 20:], torch.zeros(1, N, dtype=inputs.dtype))
    inputs[:, 3] = torch.inf
    torch.testing.assert_close(decay_scan(-torch.ones(N), inputs, torch.zeros(1, N, dtype=inputs.dtype), restart)[:, 20:], alone)


def test_a_decay_that_vanishes_divides_nothing() -> None:
    inputs = drawn(1, 40, 2, seed=2, dtype=torch.float32)
    decay = torch.tensor([-1e4, -0.0], requires_grad=True)
    hidden = decay_scan(decay, inputs, torch.zeros(1, 2))
    torch.testing.assert_close(hidden, torch.stack([inputs[..., 0], inputs[..., 1].cumsum(1)], -1))
    hidden.sum().backward()
    assert decay.grad is not None and decay.grad.isfinite().all()
