"""Second next token (Gloeckle et al. 2024, "Better & faster large language models via multi-token prediction"): what follows the next one.

Sizes: B batch, T time, N chosen tokens.
"""

import torch
from torch import Tensor

from lm.auxiliary.choice import goes_on, one_in
from lm.auxiliary.head import Reading
from lm.auxiliary.token_head import TokenHead
from lm.ops.cross_entropy import IGNORED
from lm.ops.picking import gathered, index_of
from lm.preset import Preset


class SecondNext(TokenHead):
    """Predicts the token after the next."""

    def __init__(self, preset: Preset) -> None:
        super().__init__("second_next", preset)

    def asked(self, reading: Reading) -> tuple[Tensor, Tensor]:
        after = torch.cat([reading.targets[:, 1:], torch.full_like(reading.targets[:, :1], IGNORED)], 1)[:, : reading.targets.shape[1]]
        chosen = one_in(self.stride, self.seed, "second next", reading.row, reading.start, reading.targets)
        index = index_of(chosen & goes_on(reading.restart, 1) & (reading.targets >= 0) & (after >= 0))
        return index, gathered(after, index)
