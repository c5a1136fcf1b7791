"""The long and the short convolution equal their sums, numpy's convolution, and their own gradients by differences."""

from itertools import pairwise

import numpy
import pytest
import torch
from torch import Tensor

from lm.ops.long_convolution import cut, direct_convolution, latest, long_convolution
from lm.ops.short_convolution import remembered, short_convolution, short_convolution_of_pieces, token_convolution

B, C = 2, 3
SHAPES = [(1, 1), (1, 7), (5, 7), (29, 7), (30, 1), (64, 5), (211, 6), (23, 40)]  # T and F; the longest take several blocks


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def three(time: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    return drawn(B, C, time, seed=1), drawn(C, length, seed=2), drawn(B, C, length - 1, seed=3)


@pytest.mark.parametrize(("time", "length"), SHAPES)
def test_blocks_equal_the_sum_and_numpy(time: int, length: int) -> None:
    x, taps, history = three(time, length)
    y = long_convolution(x, taps, history)
    torch.testing.assert_close(y, direct_convolution(x, taps, history), rtol=1e-11, atol=1e-11)
    for row in range(B):
        for channel in range(C):
            text = numpy.concatenate([history[row, channel], x[row, channel]])
            expected = numpy.convolve(text, taps[channel])[length - 1 : length - 1 + time]
            numpy.testing.assert_allclose(y[row, channel], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(long_convolution(x, taps), direct_convolution(x, taps, torch.zeros_like(history)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("time", "length"), [(1, 1), (4, 3), (9, 2), (5, 8)])
def test_gradients_equal_differences(time: int, length: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in three(time, length)]
    assert torch.autograd.gradcheck(long_convolution, inputs)
    assert torch.autograd.gradcheck(lambda x, taps: long_convolution(x, taps), inputs[:2])


@pytest.mark.parametrize(("time", "length"), SHAPES)
def test_gradients_equal_the_sums(time: int, length: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in three(time, length)]
    weight = drawn(B, C, time, seed=4)
    fast, direct = (torch.autograd.grad((form(inputs[0], inputs[1], inputs[2]) * weight).sum(), inputs) for form in (long_convolution, direct_convolution))
    for found, expected in zip(fast, direct, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_blocks_hold_a_few_filters() -> None:
    for time, length in [(1, 1), (7, 512), (1024, 512), (65_536, 512), (65_537, 1000), (3, 100_000)]:
        at = cut(time, length)
        assert (at.blocks - 1) * at.outputs < time <= at.blocks * at.outputs and at.size == at.outputs + length - 1
        assert at.size <= 9 * max(length, 2) and (at.blocks == 1 or at.outputs >= length)


@pytest.mark.parametrize("time", [0, 1, 3, 6, 9])
def test_latest_is_the_end_of_all(time: int) -> None:
    x, history = drawn(B, C, time, seed=5), drawn(B, C, 6, seed=6)
    torch.testing.assert_close(latest(x, history), torch.cat([history, x], -1)[..., -6:])


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize("time", [0, 1, 3, 11])
def test_short_convolution_equals_torch(time: int, kernel_size: int) -> None:
    x, kernel, history = drawn(B, C, time, seed=7), drawn(C, kernel_size, seed=8), drawn(B, C, kernel_size - 1, seed=9)
    text = torch.cat([history, x], -1)
    y = short_convolution(x, kernel, history)
    if time:
        torch.testing.assert_close(y, torch.conv1d(text, kernel[:, None], groups=C))
    torch.testing.assert_close(remembered(x, history), text[..., time:])


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
def test_short_convolution_forgets_where_a_document_begins(kernel_size: int) -> None:
    x, kernel, history = drawn(B, C, 11, seed=7), drawn(C, kernel_size, seed=8), drawn(B, C, kernel_size - 1, seed=9)
    position = torch.tensor([[8, 9, 0, 1, 2, 3, 4, 5, 6, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    after, empty = remembered(x, history, position), torch.zeros_like(history[0])
    spans = [(0, 0, 2, history[0]), (0, 2, 9, empty), (0, 9, 11, empty), (1, 0, 1, empty), (1, 1, 11, empty)]
    pieces = [x[row, :, start:stop] for row, start, stop, _ in spans]
    together = short_convolution_of_pieces(pieces, kernel, [past for *_, past in spans])
    for piece, (row, _, stop, past), y in zip(pieces, spans, together, strict=True):
        torch.testing.assert_close(y, short_convolution(piece[None], kernel, past[None])[0])
        if stop == 11:
            torch.testing.assert_close(after[row], remembered(piece[None], past[None])[0])


@pytest.mark.parametrize(("time", "length"), SHAPES[:3] + [(2, 4), (0, 3)])
def test_the_convolution_of_channels_side_by_side_is_the_same(time: int, length: int) -> None:
    x, kernel, history = three(time, length)
    bias = drawn(C, seed=6)
    y = token_convolution(x.mT, kernel, bias, history)
    torch.testing.assert_close(y.mT, short_convolution(x, kernel, history) + bias[:, None] * bool(time), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_no_document_is_convolved_with_another(length: int) -> None:
    x, kernel, history = three(11, length)
    position = torch.tensor([[4, 5, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4]])
    bias, none = drawn(C, seed=6), torch.zeros_like(history[:1])
    history[0, :, : max(length - 5, 0)], history[1] = 0, 0  # four tokens stand before the first row, none before the second
    y = token_convolution(x.mT, kernel, bias, history, position).mT
    for row, cuts in enumerate([(0, 2, 11), (0, 1, 4, 6, 11)]):
        for start, stop in pairwise(cuts):
            past = history[row : row + 1] if start == 0 else none
            torch.testing.assert_close(y[row : row + 1, :, start:stop], short_convolution(x[row : row + 1, :, start:stop], kernel, past) + bias[:, None])
    inputs = [tensor.requires_grad_() for tensor in (x.mT.contiguous(), kernel, bias, history)]
    assert torch.autograd.gradcheck(lambda *inputs: token_convolution(*inputs, position), inputs)
    assert torch.autograd.gradcheck(token_convolution, inputs)
