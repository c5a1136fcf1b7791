"""Dynamics: the next latent from a latent and the token that follows it (MuZero, Schrittwieser et al. 2020), chained.

    z_0 = h_t;   z_i = norm(z_{i-1} + outer silu(inner [z_{i-1}; norm(embedding of x_{t+i})])),   i = 1 ... dynamics_steps

Losses: smooth L1 between z_i and h_{t+i}, the trunk's own latent, from which no gradient flows (as in BYOL, Grill et al. 2020, and
EfficientZero, Ye et al. 2021); KL(softmax W h_{t+i} || softmax W z_i); and where the value head is on, smooth L1 between the mean of
its estimates along the chain and that of what they should be. A chain ends where its document does.

Sizes: B batch, T time, D hidden, V vocabulary, N chains.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.auxiliary.choice import after_first, goes_on
from lm.auxiliary.head import FeedForward, Head, Reading, Taught, divergence
from lm.auxiliary.value import Value
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class Link(NamedTuple):
    """What a chain's step came to: of the chains that are long enough."""

    chain: Tensor  # (M,) int64: their numbers among the N
    place: Tensor  # (M,) int64: where the foretold token stands in the flattened B * T
    latent: Tensor  # (M, D)


class Dynamics(Head):
    """Foretells latents, from one in latent_every tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("dynamics", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.steps, self.stride = config.dynamics_steps, config.latent_every
        self.compared = -(-config.distribution_every // config.latent_every)  # one in so many chains has its distributions compared
        self.token_norm = nn.RMSNorm(size, eps=preset.model.norm_eps)
        self.network = FeedForward(2 * size, config.dynamics_size or 2 * size, size)
        self.norm = nn.RMSNorm(size, eps=preset.model.norm_eps)

    def step(self, latent: Tensor, embedded: Tensor) -> Tensor:
        """The next latent, as after the model's last norm: latents (..., D), and the embeddings (..., D) of the tokens that follow."""
        return self.norm(latent + self.network(torch.cat([latent, self.token_norm(embedded)], -1)))

    def chains(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Where chains begin: places (N,) in the flattened B * T, and which of them compare distributions (N,) bool."""
        columns = after_first(self.stride * self.compared, self.seed, "dynamics", reading.row, reading.start, reading.targets)
        index = index_of((columns % self.stride == 0) & goes_on(reading.restart, 1) & (reading.targets >= 0))
        return index, gathered(columns % (self.stride * self.compared) == 0, index)

    def links(self, reading: Reading, first: Tensor) -> list[Link]:
        """The steps of chains that begin at `first` (N,)."""
        chain, latent, links = torch.arange(len(first), device=first.device), gathered(reading.hidden, first), []
        for step in range(1, self.steps + 1):
            kept = index_of(gathered(goes_on(reading.restart, step) & (reading.targets >= 0), first[chain])[None])
            chain, place = chain[kept], first[chain[kept]] + step
            latent = self.step(latent[kept], F.embedding(gathered(reading.tokens, place), reading.embedding))
            links.append(Link(chain, place, latent))
        return links

    def taught(self, reading: Reading) -> Taught:
        first, compares = self.chains(reading)
        links = self.links(reading, first)
        readout = reading.readout.detach()
        near, kl, near_count, kl_count = 0.0, 0.0, 0, 0
        for link in links:
            true = gathered(reading.hidden, link.place).detach()
            near = near + F.smooth_l1_loss(link.latent, true, reduction="none").mean(-1).sum()
            both = index_of(compares[link.chain][None])
            kl = kl + divergence(readout.logits(true[both]), readout.logits(link.latent[both])).sum()
            near_count, kl_count = near_count + len(link.chain), kl_count + len(both)
        share, apart = self.stride / self.steps, self.stride * self.compared / self.steps
        sums, counts = {"dynamics": near * share, "dynamics_kl": kl * apart}, {"dynamics": near_count * share, "dynamics_kl": kl_count * apart}
        if "value" in reading.heads:
            total, count = self.value_along(links, len(first), reading.heads["value"], reading)
            sums["dynamics_value"], counts["dynamics_value"] = total * self.stride, count * self.stride
        return Taught(sums, {name: reading.hidden.new_tensor(float(count)) for name, count in counts.items()})

    def value_along(self, links: list[Link], chains: int, value: Value, reading: Reading) -> tuple[Tensor, int]:
        """The value head on foretold latents: summed loss of the mean estimate of each chain, and how many chains have one."""
        wanted, known = (part.flatten() for part in value.wanted(reading))
        place = torch.cat([link.place for link in links])
        chain, latent = torch.cat([link.chain for link in links]), torch.cat([link.latent for link in links])
        kept = index_of(known[place][None])
        chain, place, guess = chain[kept], place[kept], value.estimate(latent[kept]).to(wanted.dtype)
        count = torch.bincount(chain, minlength=chains).clamp(min=1)
        guesses, truths = (wanted.new_zeros(chains).index_add(0, chain, values) / count for values in (guess, wanted[place]))
        return F.smooth_l1_loss(guesses, truths, reduction="sum"), int(torch.unique(chain).numel())
