"""Causal convolution with a short filter for each channel, and the inputs that it must remember.

    y_t = sum_{k < K} kernel_{K - 1 - k} x_{t - k}

The history holds the K - 1 inputs before x_0, zeros before a document.

Sizes: B batch, C channels, T time, K kernel.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256  # tokens of all rows at once: on the CPU the fastest of 32 to 4096


def short_convolution(x: Tensor, kernel: Tensor, history: Tensor) -> Tensor:
    """x (B, C, T), kernel (C, K), oldest first, history (B, C, K - 1) -> (B, C, T)."""
    return F.conv1d(torch.cat([history, x], -1), kernel[:, None], groups=len(kernel)) if x.shape[-1] else x


def short_convolution_of_pieces(pieces: list[Tensor], kernel: Tensor, histories: list[Tensor]) -> list[Tensor]:
    """The same for pieces (C, any time), each after its history (C, K - 1), laid end to end: no piece sees another."""
    width = kernel.shape[1] - 1
    text = torch.cat([part for both in zip(histories, pieces, strict=True) for part in both], -1)
    ends = [length for piece in pieces for length in (width, piece.shape[-1])]
    y = F.conv1d(text[None], kernel[:, None], groups=len(kernel))[0]
    return list(y.split(ends[1:], -1))[::2]


def token_convolution(x: Tensor, kernel: Tensor, bias: Tensor | None, history: Tensor, position: Tensor | None = None) -> Tensor:
    """The same, plus bias (C,) where there is one, for channels that lie side by side: x (B, T, C), history (B, C, K - 1) -> (B, T, C).

    No document sees another where `position` (B, T) in the document is given. Made of K products of all tokens: on the CPU, with four
    taps, in a third of conv1d's time. Can be differentiated once.
    """
    text = torch.cat([history.mT, x], 1)
    if x.shape[1] == 1 and position is None:
        y = (text * kernel.T).sum(1, keepdim=True)
        return y if bias is None else y + bias
    return _TokenConvolution.apply(text, kernel, bias, position)


class _TokenConvolution(torch.autograd.Function):
    """Of text (B, K - 1 + T, C). No product of a tap is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, kernel: Tensor, bias: Tensor | None, position: Tensor | None) -> Tensor:
        ctx.save_for_backward(text, kernel, position)
        taps = kernel.T.contiguous()
        shape = len(text), text.shape[1] - len(taps) + 1, text.shape[2]
        y = text.new_zeros(shape) if bias is None else bias.expand(shape).clone()
        for block, now in _blocks(y, position):
            for lag, tap in enumerate(taps.flip(0)):
                y[:, block].addcmul_(_known(text[:, _ago(block, lag, len(taps))], lag, now), tap)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        text, kernel, position = ctx.saved_tensors
        taps = kernel.T.contiguous()
        grad_text, grad_taps = torch.zeros_like(text), torch.zeros_like(taps)
        for block, now in _blocks(grad, position):
            for lag, tap in enumerate(taps.flip(0)):
                known, then = _known(grad[:, block], lag, now), _ago(block, lag, len(taps))
                grad_text[:, then].addcmul_(known, tap)
                grad_taps[len(taps) - 1 - lag] += (known * text[:, then]).sum((0, 1))
        return grad_text, grad_taps.T, grad.sum((0, 1)) if ctx.needs_input_grad[2] else None, None


def _blocks(x: Tensor, position: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
    """Places of x (B, T, C), few enough at once on the CPU to stay in its cache, and the positions there."""
    length = max(1, BLOCK // max(len(x), 1) if x.device.type == "cpu" else x.shape[1])
    for start in range(0, x.shape[1], length):
        block = slice(start, min(start + length, x.shape[1]))
        yield block, None if position is None else position[:, block]


def _ago(block: slice, lag: int, kernel: int) -> slice:
    """Where in a text (B, K - 1 + T, C) what stands `lag` tokens before each of a block is."""
    return slice(block.start + kernel - 1 - lag, block.stop + kernel - 1 - lag)


def _known(x: Tensor, lag: int, position: Tensor | None) -> Tensor:
    """x (B, T, C), zero at tokens whose document began less than `lag` tokens before."""
    return x if position is None or not lag else x.masked_fill((position < lag)[..., None], 0)


def remembered(x: Tensor, history: Tensor, position: Tensor | None = None) -> Tensor:
    """The history after x; of the last document in each row, and zero before it, where `position` (B, T) in the document is given."""
    width = history.shape[-1]
    x = x[..., max(x.shape[-1] - width, 0) :]
    text = torch.cat([history, x], -1)[..., x.shape[-1] :]
    if position is None or not position.shape[1]:
        return text.clone()
    ages = torch.arange(width - 1, -1, -1, device=x.device)
    return text.where((ages <= position[:, -1:])[:, None], 0)
