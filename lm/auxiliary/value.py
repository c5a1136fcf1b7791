"""Value: how hard the text to come is, as the mean loss of the next tokens.

    v(h_t) = m + outer silu(inner h_t)   ~   mean of nll_t ... nll_{t+S-1},   nll_t = -log p(x_{t+1} | x_{<=t})

The losses are those of this very pass, S of them (value_span) or as many as the document or the piece has left; none is of a token that
the latent has read. m is the running mean of what is predicted, which sinks while the model learns: the network has only to tell hard
from easy. Smooth L1 (Huber 1964), since a few spans are far off.

Sizes: B batch, T time, D hidden, N chosen tokens.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.auxiliary.choice import coming_mean
from lm.auxiliary.head import FeedForward, Head, Reading, Taught
from lm.ops.picking import gathered, index_of
from lm.preset import Preset

SLOWEST = 0.1  # part of the running mean that a step makes up, at least


class Value(Head):
    """Mean nats a token of the coming value_span tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("value", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.span = config.value_span
        self.network = FeedForward(size, config.value_size or size, 1)
        nn.init.zeros_(self.network.outer.weight)
        self.register_buffer("mean", torch.zeros(()))  # m
        self.register_buffer("steps", torch.zeros(()))

    def estimate(self, latent: Tensor) -> Tensor:
        """Of latents (..., D) as after the model's last norm: (...), nats a token."""
        return self.mean + self.network(latent)[..., 0]

    def wanted(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """What should be predicted at each token (B, T), and where there is anything (B, T) bool."""
        return coming_mean(reading.nll, reading.targets >= 0, reading.restart, self.span)

    def taught(self, reading: Reading) -> Taught:
        wanted, known = self.wanted(reading)
        index = index_of(known)
        wanted = gathered(wanted, index)
        total = F.smooth_l1_loss(self.estimate(gathered(reading.hidden, index)).to(wanted.dtype), wanted, reduction="sum")
        count = wanted.new_tensor(len(wanted))
        return Taught({"value": total}, {"value": count}, {"total": wanted.sum(), "count": count})

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        count = float(stats["count"])
        if not count:
            return
        self.steps.add_(1)
        part = torch.clamp(1 / self.steps, min=SLOWEST)
        self.mean.add_(part * (float(stats["total"]) / count - self.mean))
