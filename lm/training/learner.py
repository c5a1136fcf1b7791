"""What is wrapped for training: trunk, output loss and auxiliary heads in one module, from a batch to named losses."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_sources import Batch
from lm.model import Context, Model
from lm.ops.cross_entropy import linear_cross_entropy


class Learned(NamedTuple):
    """What one micro-batch taught."""

    losses: Mapping[str, Tensor]  # unweighted means over the scored tokens, 0 when there are none
    nll: Tensor  # (B, T) detached, nats, 0 where not scored
    stats: Mapping[str, Tensor]  # of the units, detached


class Learner(nn.Module):
    """(batch) -> losses. DDP, FSDP and compile wrap this, so that nothing they must see happens outside."""

    def __init__(self, model: Model, heads: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.model = model
        self.heads = heads or nn.ModuleDict()

    def forward(self, batch: Batch) -> Learned:
        context = Context(restart=batch.restart, cu_seqlens=batch.cu_seqlens, any_restart=batch.any_restart)
        out = self.model(batch.tokens, context=context)
        total, nll = linear_cross_entropy(out.hidden.flatten(0, 1), self.model.output_weight, batch.targets.flatten())
        losses = {"next_token": total / max(batch.valid, 1), **out.losses}
        return Learned(losses, nll.view_as(batch.targets), out.stats)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The one sum in which every named loss has its weight; a loss without one counts once."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
