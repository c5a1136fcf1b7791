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


def remembered(x: Tensor, history: Tensor, position: Tensor | None = None) -> Tensor:
    """The history after x; of the last document in each row, and zero before it, where `position` (B, T) in the document is given."""
    width = history.shape[-1]
    text = torch.cat([history, x], -1)[..., x.shape[-1] :]
    if position is None or not x.shape[-1]:
        return text.clone()
    ages = torch.arange(width - 1, -1, -1, device=x.device)
    return text.where((ages <= position[:, -1:])[:, None], 0)


def token_convolution(x: Tensor, kernel: Tensor, history: Tensor, position: Tensor | None = None) -> Tensor:
    """The same with time before channels: x (B, T, C), kernel (C, K), oldest first, history (B, C, K - 1) -> (B, T, C).

    Where `position` (B, T) in the document is given, nothing before its document counts. Can be differentiated once.
    """
    return _Taps.apply(torch.cat([history.mT, x], 1), kernel.T.contiguous(), position)


class _Taps(torch.autograd.Function):
    """A sum of shifted products, text (B, T + K - 1, C) and taps (K, C): on the CPU less than half of a grouped convolution's time."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, taps: Tensor, position: Tensor | None) -> Tensor:
        ctx.save_for_backward(text, taps, position)
        y = text[:, len(taps) - 1 :] * taps[-1]
        for tap, (then, seen) in zip(taps[:-1], _earlier(text, len(taps), position), strict=True):
            y.addcmul_(then if seen is None else then * seen, tap)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        text, taps, position = ctx.saved_tensors
        grad_text, grad_taps = torch.zeros_like(text), torch.empty_like(taps)
        now = slice(len(taps) - 1, None)
        grad_text[:, now] = grad * taps[-1]
        grad_taps[-1] = (grad * text[:, now]).sum((0, 1))
        pairs = zip(_earlier(text, len(taps), position), _earlier(grad_text, len(taps), None), strict=True)
        for n, ((then, seen), (grad_then, _)) in enumerate(pairs):
            passed = grad if seen is None else grad * seen
            grad_then.addcmul_(passed, taps[n])
            grad_taps[n] = (passed * then).sum((0, 1))
        return grad_text, grad_taps, None


def _earlier(text: Tensor, kernel: int, position: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Views (B, T, C) of what stood K - 1, K - 2 .. 1 tokens before each, and whether it is of its document (B, T, 1)."""
    time = text.shape[1] - kernel + 1
    for back in range(kernel - 1, 0, -1):
        start = kernel - 1 - back
        yield text[:, start : start + time], None if position is None else (position >= back)[..., None].to(text.dtype)
