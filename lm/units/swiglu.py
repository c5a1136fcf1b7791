"""SwiGLU (Shazeer 2020): y = W_down (silu(W_gate x) * W_up x). Each token by itself, so the state is empty."""

import torch.nn.functional as F
from torch import Tensor, nn

from lm.preset.switches import Preset
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit


class SwiGLU(Unit):
    """The feed-forward of a layer that no mechanism claims."""

    def __init__(self, preset: Preset, width: int | None = None) -> None:
        """width: the preset's where none is given."""
        super().__init__()
        width = width or preset.model.feed_forward_size
        self.gate_up = Joined(preset.model.hidden_size, width, width)
        self.output = nn.Linear(width, preset.model.hidden_size, bias=False)

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        return Mixed(self.mapped(x), state)

    def mapped(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.output(F.silu(gate) * up)
