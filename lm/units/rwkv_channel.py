"""RWKV-6 channel mix (Peng et al. 2024, "Eagle and Finch"): a feed-forward that also sees the token before.

    x^i_t = x_t + (x_{t-1} - x_t) * mu_i     for i = k, r
    y_t = sigmoid(W_r x^r_t) * W_v relu(W_k x^k_t)^2

The state holds the input before.

Sizes: B batch, T time, D hidden, F width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.token_shift import token_shift
from lm.preset.switches import Preset
from lm.units.unit import Context, Mixed, Unit


class RwkvChannelState(NamedTuple):
    before: Tensor  # (B, D)


class RwkvChannel(Unit):
    """RWKV-6 channel mix."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, width = preset.model.hidden_size, preset.model.channel_mix_size
        place = torch.arange(size) / max(size - 1, 1)
        self.mix_key, self.mix_receptance = nn.Parameter(1 - place**0.5), nn.Parameter(1 - place**0.5)
        self.key = nn.Linear(size, width, bias=False)
        self.receptance = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(width, size, bias=False)

    def initial_state(self, batch_size: int) -> RwkvChannelState:
        return RwkvChannelState(self.output.weight.new_zeros(batch_size, len(self.output.weight)))

    def forward(self, x: Tensor, state: RwkvChannelState, context: Context) -> Mixed:
        shifted, last = token_shift(x, state.before, context.restart if context.any_restart else None)
        change = shifted - x
        key = F.relu(self.key(torch.addcmul(x, change, self.mix_key))).square()
        receptance = torch.sigmoid(self.receptance(torch.addcmul(x, change, self.mix_receptance)))
        return Mixed(receptance * self.output(key), RwkvChannelState(last) if context.carry else state)
