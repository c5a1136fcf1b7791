"""A moving average of the weights (Polyak and Juditsky 1992), which predicts better than they do while the learning rate is high.

    average += (1 - 2^(-t/h)) / (1 - 2^(-n/h)) (weights - average)

t: tokens of the step; n: those of all steps since the average began, this one's among them; h: the half-life, in tokens too, so that it means the same
for batches of any size. The divisor corrects the bias of its beginning (Kingma and Ba 2015, section 3): what stood there before the first step counts nothing.
Buffers, as the loads that a router goes by, are not averaged: they are those of the module.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """Of the parameters of one module, in their own type, float32. The same on every rank, since the weights are. At first it is what they are."""

    def __init__(self, module: nn.Module, half_life: int) -> None:
        self._module, self.half_life = module, half_life
        self.tokens = 0  # n
        self._held = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def follow(self, tokens: int) -> None:
        """Take in the weights after a step that has read `tokens`."""
        self.tokens += tokens
        share = self._weight(tokens) / self._weight(self.tokens)
        torch._foreach_lerp_(list(self._held.values()), list(self._module.parameters()), share)

    def _weight(self, tokens: int) -> float:
        """What the newest so many tokens would count in an average over all of time."""
        return -math.expm1(-math.log(2) * tokens / self.half_life)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """In here the module computes with the average. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._module.named_parameters():
            parameter.data, self._held[name] = self._held[name], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot, by the names of the parameters."""
        return dict(self._held)

    def load(self, tensors: Mapping[str, Tensor], tokens: int) -> None:
        """Go on from those of a snapshot."""
        self.tokens = tokens
        for name, held in self._held.items():
            held.copy_(tensors[name])
