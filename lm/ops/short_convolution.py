"""Causal convolution with a short filter for each channel, and the inputs that it must remember.

    y_t = sum_{k < K} kernel_{K - 1 - k} x_{t - k}

The history holds the K - 1 inputs before x_0, zeros before a document.

Sizes: B batch, C channels, T time, K kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
