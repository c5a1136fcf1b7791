"""What options of the plan make of any unit: gates before its output matrix, a feed-forward of which other layers share a part, and values
of the first attention among those of the others.

Gates (after Qiu et al. 2025, "Gated Attention for Large Language Models", who gate each head after attention): what goes into the output
matrix W of a unit, cut into groups (the heads of a mixer), is scaled by

    g_t = 2 sigmoid(W_g z_t / rms(z_t) + b_g),    y_t = W (z_t * g_t)    with z_t cut into as many groups as g_t has entries

They see what they gate and no other input, so that a unit need not know of them, and begin at exactly 1, so that they change nothing at first.

Shared feed-forwards (after Reid, Marrese-Taylor and Matsuo 2021, "Subformer"): a SwiGLU or a squared ReLU of width F is the sum of two whose widths
add up to F.
One of them is the same in all layers, the other a layer's own:

    y = own(x) + a * shared(x)

The scale a, a number for each channel and layer, lets layers differ; and a layer that a grown model did not have begins with 0.

Mixed values (Zhou et al. 2024, "Value residual learning"; learned as in Jordan et al. 2024, "modded-nanogpt"): what the attention of layer l
attends to, and keeps in its state, is, v1 being the values of the first attention of the model for the same tokens,

    v^l_t + a_l (v1_t - v^l_t)

The share a_l is a number of each layer, 0 at first: so that a model that gets it computes what it did.

Sizes: B batch, T time, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.preset.switches import Preset
from lm.units.relu2 import Relu2
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context, Mixed, Unit


class GatedLinear(nn.Linear):
    """A matrix without a bias, and a gate for each group of what goes into it."""

    def __init__(self, width: int, size: int, groups: int) -> None:
        super().__init__(width, size, bias=False)
        self.gate = nn.Linear(width, groups)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def gates(self, z: Tensor) -> Tensor:
        """From 0 to 2, in at least float32: (..., width) -> (..., groups)."""
        exact = torch.promote_types(z.dtype, torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            scaled = F.rms_norm(z.to(exact), z.shape[-1:], eps=1e-6)
            return 2 * torch.sigmoid(F.linear(scaled, self.gate.weight.to(exact), self.gate.bias.to(exact)))

    def forward(self, z: Tensor) -> Tensor:
        gates = self.gates(z).to(z.dtype)
        return super().forward((z.unflatten(-1, (gates.shape[-1], -1)) * gates[..., None]).flatten(-2))


def with_gates(unit: Unit, groups: int) -> Unit:
    """`unit` with that many gates before its output matrix, which keeps its name; 0: as it is."""
    if groups:
        unit.output = GatedLinear(unit.output.in_features, unit.output.out_features, groups)
    return unit


def with_values(unit: Unit, values: str) -> Unit:
    """`unit` with the part that it has in mixed values: "first" or "mixed"; "own": as it is."""
    if values == "first":
        unit.tells_values = True
    if values == "mixed":
        unit.first_share = nn.Parameter(torch.zeros(1))
    return unit


class AllShared(Unit):
    """A feed-forward that has nothing for itself but how much of the shared one it takes."""

    def __init__(self, preset: Preset, shared: Unit) -> None:
        super().__init__()
        self.shared_scale = nn.Parameter(torch.ones(preset.model.hidden_size))
        self._elsewhere = (shared,)  # in a tuple, so that its parameters are the model's and not this unit's too

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        return Mixed(self.shared_scale * self._elsewhere[0](x, state, context).y, state)


class PartlyShared(Unit):
    """A feed-forward of its own, which is another base of each kind of these, and beside it the shared one."""

    def __init__(self, preset: Preset, shared: Unit) -> None:
        super().__init__(preset)
        self.beside = AllShared(preset, shared)

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        return Mixed(super().forward(x, state, context).y + self.beside(x, state, context).y, state)


class PartlySharedSwiGLU(PartlyShared, SwiGLU):
    """With SwiGLU."""


class PartlySharedRelu2(PartlyShared, Relu2):
    """With squared ReLU."""


PARTLY_SHARED = {"swiglu": PartlySharedSwiGLU, "relu2": PartlySharedRelu2}


def feed_forward(preset: Preset, shared: Unit) -> Unit:
    """The feed-forward of a layer that takes part in `shared`. `preset`: as it is for the layer."""
    return (PARTLY_SHARED[preset.model.activation] if preset.model.feed_forward_size else AllShared)(preset, shared)
