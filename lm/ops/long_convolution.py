"""Causal convolution with a filter for each channel that may be as long as the text, in blocks by the fast Fourier transform.

    y_t = sum_{j < F} taps_j x_{t - j}

What lies before x_0 is the history: the F - 1 values before, zeros before a document. Blocks overlap by them (overlap-save), so that the
time is T log F and the history costs nothing. The backward pass is written out: autograd's own would go through a complex transform of
the whole length, and back to the time domain for every block of the filter's gradient.

A transform mixes a block, so that rounding (a few 1e-7 of the largest value in it, in float32) reaches earlier places too.

Sizes: B batch, C channels, T time, F filter length, M transform length, L outputs of a block, N blocks.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_FILTERS = 4  # a transform holds about this many filter lengths: longer ones waste less on the overlap, shorter ones stay in the cache


def direct_convolution(x: Tensor, taps: Tensor, history: Tensor) -> Tensor:
    """The definition: x (B, C, T), taps (C, F), history (B, C, F - 1), oldest first -> (B, C, T)."""
    past = torch.cat([history, x], -1).unfold(-1, taps.shape[-1], 1)
    return (past * taps.flip(-1)[:, None]).sum(-1)


def long_convolution(x: Tensor, taps: Tensor, history: Tensor | None = None) -> Tensor:
    """The same in T log F. Without a history nothing lies before, and taps that reach beyond x aren't read."""
    if not x.shape[-1]:
        return x
    if history is None:
        taps = taps[:, : x.shape[-1]]
    return _Convolution.apply(x, taps, history)


def latest(x: Tensor, history: Tensor) -> Tensor:
    """The history after x: as many of the last values as it holds."""
    width = history.shape[-1]
    return torch.cat([history, x], -1)[..., x.shape[-1] :].clone() if x.shape[-1] < width else x[..., x.shape[-1] - width :].clone()


class Cut(NamedTuple):
    """How a text is cut: `blocks` of `outputs` places, each read by a transform of `size`."""

    blocks: int
    outputs: int
    size: int


def cut(time: int, length: int) -> Cut:
    """The cut of `time` places for a filter of `length`."""
    blocks = -(-time // ((BLOCK_FILTERS - 1) * length))
    size = _transform_size(-(-time // blocks) + length - 1)
    return Cut(blocks, size - length + 1, size)


def _transform_size(least: int) -> int:
    """The smallest 2^k, or 9, 10, 12, 14 or 15 eighths of one, that is at least `least`: transforms are fast where prime factors are small."""
    half = 1 << max(3, (least - 1).bit_length() - 1)
    return next(half * eighths // 8 for eighths in (8, 9, 10, 12, 14, 15, 16) if half * eighths >= least * 8)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, history: Tensor | None) -> Tensor:
        time, before = x.shape[-1], taps.shape[-1] - 1
        at = cut(time, before + 1)
        text = x.new_zeros(*x.shape[:-1], before + at.blocks * at.outputs)
        text[..., before : before + time] = x
        if history is not None:
            text[..., :before] = history
        spectrum = torch.fft.rfft(text.unfold(-1, at.size, at.outputs))
        response = torch.fft.rfft(taps, at.size)[:, None]
        ctx.save_for_backward(spectrum, response)
        ctx.sizes = time, before, history is not None
        return torch.fft.irfft(spectrum * response, at.size)[..., before:].flatten(-2)[..., :time]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        spectrum, response = ctx.saved_tensors
        time, before, has_history = ctx.sizes
        at = cut(time, before + 1)
        blocks = F.pad(gradient, (0, at.blocks * at.outputs - time)).unflatten(-1, (at.blocks, at.outputs))
        turned = torch.fft.rfft(F.pad(blocks, (before, 0)))
        taps = torch.fft.irfft((spectrum.conj() * turned).sum((0, 2)), at.size)[:, : before + 1]
        text = _overlapped(torch.fft.irfft(turned * response.conj(), at.size), at)
        return text[..., before : before + time], taps, text[..., :before] if has_history else None


def _overlapped(blocks: Tensor, at: Cut) -> Tensor:
    """The sum of blocks (B, C, N, M) that begin L places apart."""
    if at.blocks == 1:
        return blocks[:, :, 0]
    text = F.pad(blocks[..., : at.outputs], (0, 0, 0, 1))
    text[:, :, 1:, : at.size - at.outputs] += blocks[..., at.outputs :]
    return text.flatten(-2)
