"""The interface of a head: what it sees of a reading of the trunk, and what it gives back.

A head is trained beside the model and changes nothing that the model computes. What it predicts from is known at its token; what comes
later reaches it as a target only. Each token's part in a loss depends on its row alone, so that it makes no difference how rows are cut
into micro-batches and ranks. All of a head's parameters take part in every step: a selection that is empty runs through them, too.

Sizes: B batch, T time, D hidden, V vocabulary, N chosen tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.readout import Readout
from lm.preset import Preset


class Reading(NamedTuple):
    """A piece of rows, as the trunk read it."""

    hidden: Tensor  # (B, T, D), after the last norm
    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64; negative where nothing is scored
    restart: Tensor  # (B, T) bool: a new document begins here, or this is padding
    nll: Tensor  # (B, T) detached: nats of each target, 0 where none is scored
    row: Tensor  # (B,) int64 on the host: number of the row in the whole order of the data
    lane: Tensor  # (B,) int64 on the host
    start: int  # place in the row of the first column
    embedding: Tensor  # (V, D)
    readout: Readout  # of V entries
    again: Callable[[Tensor], Tensor]  # the trunk on other tokens (B, T) in the place of these, without neighbours: their hidden states (B, T, D)
    heads: Mapping[str, Any]  # all that are on, by name

    def cut_off(self) -> "Reading":
        """The same, through which no gradient reaches the trunk."""
        hidden, embedding, readout = (part.detach() for part in (self.hidden, self.embedding, self.readout))
        return self._replace(hidden=hidden, embedding=embedding, readout=readout, again=lambda tokens: self.again(tokens).detach())


class Taught(NamedTuple):
    """What a reading taught a head. A loss's mean is its sum over its count; what is trained is its sum over the scored tokens."""

    sums: Mapping[str, Tensor]  # by name of the loss, over the tokens it was taken at, each as often as it stands for others
    counts: Mapping[str, Tensor]  # how many tokens those stand for
    stats: Mapping[str, Tensor] = {}  # detached sums, added up over micro-batches and ranks


class Head(nn.Module):
    """Reading -> named losses."""

    def __init__(self, name: str, preset: Preset) -> None:
        super().__init__()
        self.seed = preset.train.seed
        self.stops = name in preset.auxiliary.stop_gradients

    def forward(self, reading: Reading) -> Taught:
        """The losses of one piece of rows."""
        return self.taught(reading.cut_off() if self.stops else reading)

    def taught(self, reading: Reading) -> Taught:
        """Those of `reading`, through which gradients flow as they should."""
        raise NotImplementedError

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Change buffers by what the head's stats came to over all rows of an optimizer step, of all ranks. Most heads have none."""


class FeedForward(nn.Module):
    """outer silu(inner x): (..., D) -> (..., O)."""

    def __init__(self, size: int, width: int, out: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(size, width, bias=False), nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(x)))


def at_least_float32(x: Tensor) -> Tensor:
    """`x` as it is in float32 or float64, and in float32 where it has less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student) of scores (N, V) -> (N,) nats, in at least float32; the teacher learns nothing."""
    teacher, student = (at_least_float32(scores).log_softmax(-1) for scores in (teacher.detach(), student))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
