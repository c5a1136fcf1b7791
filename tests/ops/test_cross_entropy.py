"""The chunked output loss equals the plain one, in value and in gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lm.ops.cross_entropy as chunked
from lm.ops.readout import Readout

N, D, V = 29, 6, 13


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(V, D, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[[0, 7, 28]] = chunked.IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("elements", [1, 4 * V, 2**20], ids=["a token at a time", "uneven chunks", "all at once"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, elements: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    hidden, weight, targets = inputs(dtype)
    total, nll = chunked.linear_cross_entropy(hidden, Readout(weight), targets)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(nll, plain)
    torch.testing.assert_close(total, plain.sum())
    assert not nll.requires_grad
    ours = torch.autograd.grad(3 * total, (hidden, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(3 * plain.sum(), (hidden, weight)))


CAP = 1.7  # of scores that are 2.4 on the root mean square


@pytest.mark.parametrize("elements", [1, 4 * V, 2**20], ids=["a token at a time", "uneven chunks", "all at once"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_a_soft_cap_it_equals_the_formula(monkeypatch: pytest.MonkeyPatch, elements: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    hidden, weight, targets = inputs(dtype)
    total, nll = chunked.linear_cross_entropy(hidden, Readout(weight, CAP), targets)
    plain = F.cross_entropy(CAP * torch.tanh(hidden @ weight.T / CAP), targets, reduction="none")
    torch.testing.assert_close(nll, plain)
    assert (nll - F.cross_entropy(hidden @ weight.T, targets, reduction="none")).abs().max() > 0.5
    ours = torch.autograd.grad(3 * total, (hidden, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(3 * plain.sum(), (hidden, weight)))


class AgainAndAgain(torch.autograd.Function):
    """The loss with its gradients held, for gradcheck, which asks for them more often than once."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
        with torch.enable_grad():
            leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            total, _ = chunked.linear_cross_entropy(leaves[0], Readout(leaves[1], cap), targets)
        ctx.save_for_backward(*torch.autograd.grad(total, leaves))
        return total.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(grad * held for held in ctx.saved_tensors), None, None


@pytest.mark.parametrize("cap", [None, 0.3, CAP, 50.0])
def test_gradients_are_the_slopes_of_the_loss(monkeypatch: pytest.MonkeyPatch, cap: float | None) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 4 * V)
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(AgainAndAgain.apply, (hidden, weight, targets, cap))


def test_gradients_are_kept_where_a_checkpoint_lets_go_of_them_and_serve_once() -> None:
    hidden, weight, targets = inputs(torch.float64)
    kept: list[torch.Size] = []

    def packed(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        total, _ = chunked.linear_cross_entropy(hidden, Readout(weight, None), targets)
    assert kept == [hidden.shape, weight.shape]
    total, _ = chunked.linear_cross_entropy(hidden, Readout(weight, None), targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_cap_that_is_far_above_all_scores_changes_nothing_and_huge_ones_stay_finite() -> None:
    hidden, weight, targets = inputs(torch.float64)
    plain, _ = chunked.linear_cross_entropy(hidden, Readout(weight), targets)
    torch.testing.assert_close(chunked.linear_cross_entropy(hidden, Readout(weight, 1e6), targets)[0], plain)
    total, nll = chunked.linear_cross_entropy(hidden * 1e30, Readout(weight, CAP), targets)
    assert nll.max() <= 2 * CAP + torch.tensor(float(V)).log()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, (hidden, weight)))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no F.linear_cross_entropy")
def test_equals_torchs_own() -> None:
    hidden, weight, targets = inputs(torch.float64)
    total, _ = chunked.linear_cross_entropy(hidden, Readout(weight), targets)
    torch.testing.assert_close(total, F.linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=chunked.IGNORED))


def test_a_tied_matrix_gets_both_gradients() -> None:
    _, weight, targets = inputs(torch.float64)
    tokens = torch.arange(N) % V

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, weight)[0]

    ours = gradient(chunked.linear_cross_entropy(F.embedding(tokens, weight), Readout(weight), targets)[0])
    torch.testing.assert_close(ours, gradient(F.cross_entropy(F.embedding(tokens, weight) @ weight.T, targets, reduction="sum")))


def test_nothing_scored_is_zero_with_a_gradient() -> None:
    hidden, weight, _ = inputs(torch.float64)
    total, nll = chunked.linear_cross_entropy(hidden, Readout(weight), torch.full((N,), chunked.IGNORED))
    assert float(total.detach()) == 0
    assert not nll.any()
    assert all(not gradient.any() for gradient in torch.autograd.grad(total, (hidden, weight)))


def test_under_autocast_the_softmax_stays_exact() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, nll = chunked.linear_cross_entropy(hidden, Readout(weight), targets)
    assert nll.dtype == torch.float32
    rounded = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets, reduction="sum")
    torch.testing.assert_close(total, rounded)
    for gradient in torch.autograd.grad(total, (hidden, weight)):
        assert gradient.dtype == torch.float32


def test_extreme_scores_stay_finite() -> None:
    hidden, weight, targets = inputs(torch.float32)
    total, _ = chunked.linear_cross_entropy(hidden * 1e4, Readout(weight), targets)
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, (hidden, weight)))
