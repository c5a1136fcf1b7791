"""Scores of the vocabulary out of latents: one matrix, and where it is asked for a soft cap (Gemma Team 2024, "Gemma 2").

    logits = W h,    with a cap c:    logits = c tanh(W h / c)

Whoever makes scores is handed both together, so that nobody leaves the cap out.

Sizes: D hidden, V vocabulary, N first entries of it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Readout(NamedTuple):
    """What a model's last latents are read by."""

    weight: Tensor  # (V, D)
    soft_cap: float | None = None

    def logits(self, latent: Tensor) -> Tensor:
        """Latents (..., D) -> (..., V)."""
        return self.capped(F.linear(latent, self.weight))

    def capped(self, products: Tensor) -> Tensor:
        """What the matrix makes of latents (..., V), within the cap."""
        return products if self.soft_cap is None else self.soft_cap * torch.tanh(products / self.soft_cap)

    def first(self, count: int) -> "Readout":
        """For the first N entries alone."""
        return self._replace(weight=self.weight[:count])

    def detach(self) -> "Readout":
        """The same, which learns nothing."""
        return self._replace(weight=self.weight.detach())
