"""The recurrence in chunks equals the recurrence token by token, in values and gradients, however strong the decay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lm.ops.linear_attention import decaying_recurrence, scalar_decay_recurrence

B, T, H, K, V = 2, 37, 3, 5, 7
STARTS = {"one document": [], "restarts": [(0, 0), (0, 3), (0, 4), (1, 16), (1, 30), (1, 36)], "all anew": [(0, 32), (1, 32)]}


def drawn(time: int = T, strength: float = 0.5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """query, key, value, log_decay, memory, bonus."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, time, H, K), (B, time, H, K), (B, time, H, V), (B, time, H, K), (B, H, K, V), (H, K)]
    query, key, value, log_decay, memory, bonus = (torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)
    return [query, key, value, -strength * log_decay.exp(), memory, bonus]


def token_by_token(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, memory: Tensor, bonus: Tensor | None, restart: Tensor
) -> tuple[Tensor, Tensor]:
    """From the equations, with no masks in matrices."""
    read = []
    for t in range(query.shape[1]):
        memory = memory * (~restart[:, t, None, None, None])
        written = torch.einsum("bhk,bhv->bhkv", key[:, t], value[:, t])
        after = log_decay[:, t].exp()[..., None] * memory + written
        seen = after if bonus is None else memory + bonus[..., None] * written
        read.append(torch.einsum("bhk,bhkv->bhv", query[:, t], seen))
        memory = after
    return torch.stack(read, 1), memory


def restarts(starts: list[tuple[int, int]], time: int = T) -> Tensor:
    restart = torch.zeros(B, time, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    return restart


def with_gradients(read: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor | None], *rest: object) -> list[Tensor]:
    inputs = [x if x is None else x.clone().requires_grad_() for x in inputs]
    outputs = read(*inputs, *rest)
    generator = torch.Generator().manual_seed(2)
    total = sum((y * torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(total, [x for x in inputs if x is not None])]


@pytest.mark.parametrize("chunk", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("with_bonus", [True, False], ids=["bonus", "no bonus"])
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_chunks_equal_token_by_token(chunk: int, with_bonus: bool, starts: list[tuple[int, int]]) -> None:
    inputs = drawn()
    inputs[-1] = inputs[-1] if with_bonus else None
    wanted = with_gradients(token_by_token, inputs, restarts(starts))
    found = with_gradients(decaying_recurrence, inputs, restarts(starts) if starts else None, chunk)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def drawn_scalar(groups: int, time: int = T, strength: float = 0.5) -> list[Tensor]:
    """query, key (B, T, G, K), value, log_decay (B, T, 6), memory, of six heads."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, time, groups, K), (B, time, groups, K), (B, time, 6, V), (B, time, 6), (B, 6, K, V)]
    query, key, value, log_decay, memory = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [query, key, value, -strength * log_decay.exp(), memory]


def scalar_token_by_token(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """The same decay for every channel, and a copy of the group's query and key for every head."""
    query, key = (x.repeat_interleave(value.shape[2] // x.shape[2], 2) for x in (query, key))
    return token_by_token(query, key, value, log_decay[..., None].expand_as(key), memory, None, restart)


@pytest.mark.parametrize("chunk", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_scalar_decays_equal_token_by_token(chunk: int, groups: int, starts: list[tuple[int, int]]) -> None:
    wanted = with_gradients(scalar_token_by_token, drawn_scalar(groups), restarts(starts))
    found = with_gradients(scalar_decay_recurrence, drawn_scalar(groups), restarts(starts) if starts else None, chunk)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", [1, 2, 3, 32, 33, 65])
def test_every_length(time: int) -> None:
    inputs = drawn(time)
    for left, right in zip(decaying_recurrence(*inputs), token_by_token(*inputs, restarts([], time)), strict=True):
        torch.testing.assert_close(left, right)
    inputs = drawn_scalar(2, time)
    for left, right in zip(scalar_decay_recurrence(*inputs), scalar_token_by_token(*inputs, restarts([], time)), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -8.0, -30.0, -3000.0], ids=str)
def test_float32_is_exact_however_strong_the_decay(log_decay: float) -> None:
    """Every third token decays so, the others little: a difference of sums over the chunk would lose what the others say."""
    inputs = drawn(130)
    inputs[3] *= 0.01
    inputs[3][:, ::3] = log_decay
    wanted = with_gradients(token_by_token, inputs, restarts([], 130))
    found = with_gradients(decaying_recurrence, [x.float() for x in inputs])
    for left, right in zip(found, wanted, strict=True):
        assert left.isfinite().all()
        assert (left - right).abs().max() <= 2e-6 * right.abs().max()


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -8.0, -30.0, -3000.0, -1e30], ids=str)
def test_scalar_decays_are_exact_in_float32_however_strong(log_decay: float) -> None:
    inputs = drawn_scalar(2, 130)
    inputs[3] *= 0.01
    inputs[3][:, ::3] = log_decay
    wanted = with_gradients(scalar_token_by_token, inputs, restarts([], 130))
    found = with_gradients(scalar_decay_recurrence, [x.float() for x in inputs])
    for left, right in zip(found, wanted, strict=True):
        assert left.isfinite().all()
        assert (left - right).abs().max() <= 2e-6 * right.abs().max()


def test_nothing_to_read() -> None:
    inputs = drawn(0)
    y, memory = decaying_recurrence(*inputs, restarts([], 0))
    assert y.shape == (B, 0, H, V)
    assert memory is inputs[4]
    query, key, value, log_decay, memory = drawn_scalar(2, 0)
    y, after = scalar_decay_recurrence(query, key, value, log_decay, memory)
    assert y.shape == (B, 0, 6, V)
    assert after is memory
