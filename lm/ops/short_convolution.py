"""Causal convolution with a short filter for each channel, and the inputs that it must remember.

    y_t = sum_{k < K} kernel_{K - 1 - k} x_{t - k}

The history holds the K - 1 inputs before x_0, zeros before a document. A document that begins inside the row sees none of what lies before it.

Sizes: B batch, C channels, T time, K kernel.
"""

import torch
from torch import Tensor


def short_convolution(x: Tensor, kernel: Tensor, history: Tensor, position: Tensor | None = None) -> Tensor:
    """x (B, C, T), kernel (C, K), oldest first, history (B, C, K - 1), position (B, T) in the document where any begins inside -> (B, C, T)."""
    time, before = x.shape[-1], kernel.shape[-1] - 1
    y = x * kernel[:, -1:]
    if not before:
        return y
    text = torch.cat([history, x], -1)
    for back in range(1, before + 1):
        past = text[..., before - back : before - back + time]
        if position is not None:
            past = past.where((position >= back)[:, None], 0)
        y = torch.addcmul(y, past, kernel[:, before - back, None])
    return y


def remembered(x: Tensor, history: Tensor, position: Tensor | None = None) -> Tensor:
    """The history after x, of the last document in each row; zero before it."""
    width = history.shape[-1]
    text = torch.cat([history, x], -1)[..., x.shape[-1] :]
    if position is None or not x.shape[-1]:
        return text.clone()
    ages = torch.arange(width, 0, -1, device=x.device) - 1
    return text.where((ages <= position[:, -1:])[:, None], 0)
