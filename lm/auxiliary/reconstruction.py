"""Reconstruction: which token was just read, so that the last latent keeps it.

    p(x_t | h_t) = softmax(W outer silu(inner h_t)),   W: the model's output matrix

Sizes: B batch, T time, D hidden, V vocabulary, N chosen tokens.
"""

from torch import Tensor

from lm.auxiliary.choice import every
from lm.auxiliary.head import FeedForward, Head, Reading, Taught
from lm.ops.cross_entropy import linear_cross_entropy
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class Reconstruction(Head):
    """Names the token of the latent, at one in token_every tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("reconstruction", preset)
        size = preset.model.hidden_size
        self.stride = preset.auxiliary.token_every
        self.network = FeedForward(size, size, size)

    def asked(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Places (N,) in the flattened B * T, and the token that stands at each (N,)."""
        chosen = every(self.stride, self.seed, "reconstruction", reading.row, reading.start, reading.targets)
        index = index_of(chosen & (reading.targets >= 0))
        return index, gathered(reading.tokens, index)

    def taught(self, reading: Reading) -> Taught:
        index, wanted = self.asked(reading)
        total, _ = linear_cross_entropy(self.network(gathered(reading.hidden, index)), reading.readout, wanted)
        return Taught({"reconstruction": total * self.stride}, {"reconstruction": wanted.new_tensor(len(wanted) * self.stride)})
