"""Rotary positions (Su et al. 2021): pairs of channels turn by an angle that grows with the place, so that a product of a query and
a key depends on their distance. Position interpolation (Chen et al. 2023) divides the places, to read further than was trained.

Sizes: B batch, T time, H heads, K head size (even).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Angles(NamedTuple):
    cos: Tensor  # (B, T, 1, K / 2)
    sin: Tensor  # (B, T, 1, K / 2)


class Rotary(NamedTuple):
    """Frequencies theta^(-2i / K), slowed down by the interpolation factor."""

    head_size: int
    theta: float
    interpolation: float

    def angles(self, position: Tensor, dtype: torch.dtype) -> Angles:
        """Cosine and sine for `position` (B, T), in at least float32; turned in float64, since float32 has no digits left at far places."""
        exponents = torch.arange(0, self.head_size, 2, device=position.device, dtype=torch.float64) / self.head_size
        turns = position.double()[:, :, None, None] * (self.theta**-exponents / self.interpolation)
        exact = torch.promote_types(dtype, torch.float32)
        return Angles(turns.cos().to(exact), turns.sin().to(exact))


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """`x` (B, T, H, K) with channel i and channel i + K/2 turned as a pair, in the dtype of `x`."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos.to(x.dtype), angles.sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
