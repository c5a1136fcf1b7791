"""Latent consistency: one pass foretells where the model's own short rollouts lead, so that what they would find is in the latent before.

    s_t = norm(h_t + outer silu(inner h_t))   ~   mean over R rollouts of h'_{t+d}

In a rollout the d tokens after t (consistency_depth) are drawn one after the other from the model's own distribution, and the trunk reads
the row with them in their place; h' is its latent after the last. The mean of several is the teacher and learns nothing; the single pass
is the student (self-distillation after Hinton et al. 2015; a rollout's end as target as in consistency models, Song et al. 2023). Rollouts
begin at one in consistency_every tokens of a row, and each stands on the row's text with the rollouts before it in it.

Sizes: B batch, T time, D hidden, V vocabulary, N rollouts' beginnings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.auxiliary.choice import goes_on, one_in, uniform
from lm.auxiliary.head import FeedForward, Head, Reading, Taught, at_least_float32
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class LatentConsistency(Head):
    """Foretells the mean end of rollouts."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("latent_consistency", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.rollouts, self.depth, self.stride = config.consistency_rollouts, config.consistency_depth, config.consistency_every
        self.network = FeedForward(size, size, size)
        self.norm = nn.RMSNorm(size, eps=preset.model.norm_eps)

    def foretold(self, latent: Tensor) -> Tensor:
        """Where the model's writing leads on the mean: latents (..., D) -> (..., D)."""
        return self.norm(latent + self.network(latent))

    def beginnings(self, reading: Reading) -> Tensor:
        """Places (N,) in the flattened B * T after which rollouts begin."""
        chosen = one_in(self.stride, self.seed, "rollouts", reading.row, reading.start, reading.targets)
        return index_of(chosen & goes_on(reading.restart, self.depth) & (reading.targets >= 0))

    @torch.no_grad()
    def teacher(self, reading: Reading, first: Tensor) -> Tensor:
        """The mean end (N, D) of the rollouts that begin after `first` (N,)."""
        ends = torch.zeros_like(gathered(reading.hidden, first))
        for rollout in range(self.rollouts):
            tokens, hidden = reading.tokens, reading.hidden
            for step in range(self.depth):
                lot = uniform(self.seed, f"rollout {rollout} {step}", reading.row, reading.start, tokens)
                written = drawn(reading.readout.logits(gathered(hidden, first + step)), gathered(lot, first))
                tokens = tokens.flatten().index_copy(0, first + step + 1, written).view_as(tokens)
                hidden = reading.again(tokens)
            ends = ends + gathered(hidden, first + self.depth) / self.rollouts
        return ends

    def taught(self, reading: Reading) -> Taught:
        first = self.beginnings(reading)
        guess = self.foretold(gathered(reading.hidden, first))
        total = F.smooth_l1_loss(guess, self.teacher(reading, first).to(guess.dtype), reduction="none").mean(-1).sum()
        return Taught({"latent_consistency": total * self.stride}, {"latent_consistency": total.new_tensor(len(first) * self.stride)})


def drawn(logits: Tensor, lot: Tensor) -> Tensor:
    """The entry (N,) that each lot (N,) in [0, 1) falls to under softmax of `logits` (N, V)."""
    shares = at_least_float32(logits).softmax(-1).cumsum(-1)
    return torch.searchsorted(shares, lot[:, None].to(shares) * shares[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
