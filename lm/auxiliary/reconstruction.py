"""Reconstruction: which token was just read, so that the last latent keeps it.

Sizes: B batch, T time, N chosen tokens.
"""

from torch import Tensor

from lm.auxiliary.choice import one_in
from lm.auxiliary.head import Reading
from lm.auxiliary.token_head import TokenHead
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class Reconstruction(TokenHead):
    """Names the token of the latent."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("reconstruction", preset)

    def asked(self, reading: Reading) -> tuple[Tensor, Tensor]:
        chosen = one_in(self.stride, self.seed, "reconstruction", reading.row, reading.start, reading.targets)
        index = index_of(chosen & (reading.targets >= 0))
        return index, gathered(reading.tokens, index)
