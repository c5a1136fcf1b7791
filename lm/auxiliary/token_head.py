"""A head that names a token near the one just read, from the last latent alone.

p(token | h_t) = softmax(W outer silu(inner h_t)),   W: the model's output matrix
"""

from torch import Tensor

from lm.auxiliary.head import FeedForward, Head, Reading, Taught
from lm.ops.cross_entropy import linear_cross_entropy
from lm.ops.picking import gathered
from lm.preset import Preset


class TokenHead(Head):
    """Learns at one in token_every tokens, each of which stands for token_every."""

    def __init__(self, name: str, preset: Preset) -> None:
        super().__init__(name, preset)
        size = preset.model.hidden_size
        self.name, self.stride = name, preset.auxiliary.token_every
        self.network = FeedForward(size, size, size)

    def asked(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Places (N,) in the flattened B * T, and the token to be named at each (N,)."""
        raise NotImplementedError

    def taught(self, reading: Reading) -> Taught:
        index, wanted = self.asked(reading)
        total, _ = linear_cross_entropy(self.network(gathered(reading.hidden, index)), reading.readout, wanted)
        return Taught({self.name: total * self.stride}, {self.name: wanted.new_tensor(len(wanted) * self.stride)})
