"""Which tokens a head looks at, and what belongs together: functions of the row alone, whatever else is read with it.

Sizes: B batch, T time.
"""

import numpy as np
import torch
from torch import Tensor

from data_sources.order import draw


def one_in(stride: int, seed: int, purpose: str, row: Tensor, start: int, like: Tensor) -> Tensor:
    """One in `stride` columns of each row, from a place drawn for it: (B, T) bool for `like` (B, T), whose columns begin at `start`.

    row: (B,) int64 on the host, numbers of the rows.
    """
    return after_first(stride, seed, purpose, row, start, like) % stride == 0


def after_first(stride: int, seed: int, purpose: str, row: Tensor, start: int, like: Tensor) -> Tensor:
    """Columns since the first that is chosen of each row, negative before it: (B, T) int64."""
    first = torch.tensor([draw(seed, number, purpose) % stride for number in row.tolist()], dtype=torch.int64).to(like.device)
    return start + torch.arange(like.shape[1], device=like.device) - first[:, None]


def uniform(seed: int, purpose: str, row: Tensor, start: int, like: Tensor) -> Tensor:
    """A number in [0, 1) for each column of each row: (B, T) float32. SplitMix64 (Steele, Lea, Flood 2014) over a seed drawn for the row."""
    seeds = np.array([draw(seed, number, purpose) for number in row.tolist()], dtype=np.uint64)
    columns = np.arange(start + 1, start + 1 + like.shape[1], dtype=np.uint64)
    x = seeds[:, None] + columns * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(40)).astype(np.float32) / np.float32(2**24)).to(like.device)


def goes_on(restart: Tensor, steps: int) -> Tensor:
    """Whether the token `steps` columns later is there and in the same document: (B, T) bool."""
    document = restart.cumsum(1)
    later = document[:, steps:] == document[:, : max(document.shape[1] - steps, 0)]
    return torch.cat([later, restart.new_zeros(len(restart), min(steps, restart.shape[1]))], 1)


def coming_mean(nll: Tensor, scored: Tensor, restart: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """The mean of `nll` (B, T) over the next `span` scored tokens of the same document: (B, T), and where there is any: (B, T) bool.

    nll[t] is what the token after t costs, so the span of t begins with it. Near the end of a document or of the piece the mean is
    over what is left.
    """
    time = nll.shape[1]
    columns = torch.arange(time, device=nll.device).expand_as(restart)
    begins = torch.cat([restart[:, 1:], restart.new_ones(len(restart), 1)], 1)[:, :time]  # a document after t begins at t + 1
    end = torch.where(begins, columns + 1, time).flip(1).cummin(1).values.flip(1) if time else columns
    end = torch.minimum(end, columns + span)
    total, count = _between(torch.where(scored, nll, 0).double(), end), _between(scored.double(), end)
    return (total / count.clamp(min=1)).to(nll.dtype), count > 0


def _between(values: Tensor, end: Tensor) -> Tensor:
    """Sums of `values` (B, T) from each column up to `end` (B, T), exclusive."""
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    return sums.gather(1, end) - sums[:, : values.shape[1]]
