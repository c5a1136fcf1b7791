"""Second next token (Gloeckle et al. 2024, "Better & faster large language models via multi-token prediction"): what follows the next one.

    p(x_{t+2} | x_{<=t}) = softmax(W outer silu(inner h_t)),   W: the model's output matrix

Sizes: B batch, T time, D hidden, V vocabulary, N chosen tokens.
"""

import torch
from torch import Tensor

from lm.auxiliary.choice import every, goes_on
from lm.auxiliary.head import FeedForward, Head, Reading, Taught
from lm.ops.cross_entropy import IGNORED, linear_cross_entropy
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class SecondNext(Head):
    """Predicts the token after the next, at one in token_every tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("second_next", preset)
        size = preset.model.hidden_size
        self.stride = preset.auxiliary.token_every
        self.network = FeedForward(size, size, size)

    def asked(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Places (N,) in the flattened B * T, and the token that each should foretell (N,)."""
        after = torch.cat([reading.targets[:, 1:], torch.full_like(reading.targets[:, :1], IGNORED)], 1)[:, : reading.targets.shape[1]]
        chosen = every(self.stride, self.seed, "second next", reading.row, reading.start, reading.targets)
        index = index_of(chosen & goes_on(reading.restart, 1) & (reading.targets >= 0) & (after >= 0))
        return index, gathered(after, index)

    def taught(self, reading: Reading) -> Taught:
        index, wanted = self.asked(reading)
        total, _ = linear_cross_entropy(self.network(gathered(reading.hidden, index)), reading.readout, wanted)
        return Taught({"second_next": total * self.stride}, {"second_next": wanted.new_tensor(len(wanted) * self.stride)})
