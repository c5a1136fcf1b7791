"""Policy: the model's own next-token distribution through a narrow network of its own (the prior of MuZero, Schrittwieser et al. 2020).

    pi(. | h_t) = softmax(W outer silu(inner h_t)),   loss: KL(p_t || pi_t),   p_t = softmax(W h_t), from which it learns alone

Nothing is handed past the network: it has to hold in policy_size numbers what the latent says of the next token.

Sizes: D hidden, V vocabulary, N chosen tokens.
"""

from torch import Tensor

from lm.auxiliary.choice import one_in
from lm.auxiliary.head import FeedForward, Head, Reading, Taught, divergence
from lm.ops.picking import gathered, index_of
from lm.ops.readout import Readout
from lm.preset import Preset


class Policy(Head):
    """Scores of the next token, at one in distribution_every tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("policy", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.stride = config.distribution_every
        self.network = FeedForward(size, config.policy_size or -(-size // 2), size)

    def scores(self, latent: Tensor, readout: Readout) -> Tensor:
        """Of every entry of the vocabulary as the next token: latents (..., D), as the model's own are read -> (..., V)."""
        return readout.logits(self.network(latent))

    def asked(self, reading: Reading) -> Tensor:
        """The latents (N, D) that are looked at."""
        chosen = one_in(self.stride, self.seed, "policy", reading.row, reading.start, reading.targets)
        return gathered(reading.hidden, index_of(chosen & (reading.targets >= 0)))

    def taught(self, reading: Reading) -> Taught:
        latent = self.asked(reading)
        readout = reading.readout.detach()  # it would otherwise be drawn to what is easy for the head
        total = divergence(readout.logits(latent.detach()), self.scores(latent, readout)).sum()
        return Taught({"policy": total * self.stride}, {"policy": total.new_tensor(len(latent) * self.stride)})
