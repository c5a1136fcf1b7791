"""Token shift (Peng et al. 2023): each token beside the one before it.

Sizes: B batch, T time, D hidden.
"""

import torch
from torch import Tensor


def token_shift(x: Tensor, before: Tensor, restart: Tensor | None) -> tuple[Tensor, Tensor]:
    """The token before each of `x` (B, T, D), and the last of all (B, D), of its own memory.

    `before` (B, D) stands before the first; nothing (zeros) stands before a document that begins, where `restart` (B, T) says so.
    """
    both = torch.cat([before[:, None].to(x.dtype), x], 1)
    shifted = both[:, :-1]
    if restart is not None:
        shifted = shifted.masked_fill(restart[..., None], 0)
    return shifted, both[:, -1].clone()
