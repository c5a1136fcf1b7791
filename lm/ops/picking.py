"""Some tokens of a batch taken out, and what became of them put back: one gather, one scatter.

Sizes: B batch, T time, D hidden, N picked tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Beginnings(NamedTuple):
    """Where documents begin for one who sees the picked tokens alone."""

    begins: Tensor  # (B, T) bool: picked, and the first of its document that is
    waits: Tensor  # (B,) bool: after the last token, whether a document has begun of which nothing was picked yet


def index_of(picked: Tensor) -> Tensor:
    """Places (N,) int64 in the flattened B * T of the tokens that `picked` (B, T) bool names, in order."""
    return picked.flatten().nonzero().flatten()


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """The tokens (N, ...) of `x` (B, T, ...) at the flattened places `index` (N,)."""
    return x.flatten(0, 1).index_select(0, index)


def added_at(x: Tensor, index: Tensor, change: Tensor) -> Tensor:
    """`x` (B, T, D), and `change` (N, D) added at the flattened places `index` (N,)."""
    return x.flatten(0, 1).index_add(0, index, change.to(x.dtype)).view_as(x)


def beginnings(picked: Tensor, restart: Tensor | None, waits: Tensor) -> Beginnings:
    """A document whose first tokens are not picked begins with the first that is; `waits` (B,) says that one had begun before."""
    count = torch.zeros_like(picked, dtype=torch.int64) if restart is None else restart.cumsum(1)
    document = F.pad(count, (1, 0))  # (B, T + 1): that of the token before the first, too
    known = torch.cat([torch.where(waits, -1, 0)[:, None], torch.where(picked, count, -1)], 1).cummax(1).values
    return Beginnings(picked & (known[:, :-1] < document[:, 1:]), known[:, -1] < document[:, -1])
