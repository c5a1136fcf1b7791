"""Squared ReLU (So et al. 2021, "Primer"): y = W_down relu(W_up x)^2. Each token by itself, so the state is empty."""

import torch.nn.functional as F
from torch import Tensor, nn

from lm.preset.switches import Preset
from lm.units.unit import Context, Mixed, Unit


class Relu2(Unit):
    """The feed-forward of a layer that no mechanism claims, where model.activation is "relu2"."""

    def __init__(self, preset: Preset, width: int | None = None) -> None:
        """width: the preset's where none is given."""
        super().__init__()
        width = width or preset.model.feed_forward_size
        self.up = nn.Linear(preset.model.hidden_size, width, bias=False)
        self.output = nn.Linear(width, preset.model.hidden_size, bias=False)

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        return Mixed(self.output(F.relu(self.up(x)).square()), state)
