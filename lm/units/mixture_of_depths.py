"""Mixture of depths (Raposo et al. 2024), the causal form: a layer that only some tokens read; the others pass it by.

    x_t + [logit_t > 0] sigmoid(logit_t) (layer_t(picked x) - x_t)

The layer is its residual units in turn, each over the picked tokens as a text of their own: to a mixer what is not picked is not there. A
router decides by the residual stream before the layer, or by what the feed-forward of the layer before wrote into it
(`select`: "previous_ffn"): a layer with a sliding window then sees what the layer before left unmasked.

The state: the router's, and that of the layer's reading (lm/units/subsequence.py), which holds the states of its units.

Sizes: B batch, T time, D hidden, N picked tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lm.ops.picking import added_at, gathered
from lm.preset.switches import Preset
from lm.units.router import Router
from lm.units.subsequence import Reader, SubsequenceState, initial_subsequence, read_picked
from lm.units.unit import Context, Mixed, State

WRITTEN = "written"  # in Context.shared: what the last unit of the layer before added to the residual stream


class DepthsState(NamedTuple):
    router: State
    text: SubsequenceState


class MixtureOfDepths(nn.Module):
    """The router of one layer. The layer itself belongs to the model."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        section = preset.mixture_of_depths
        self.by_previous = section.select == "previous_ffn"
        self.router = Router(preset, section, section.share)

    def initialise(self) -> None:
        self.router.initialise()

    def initial_state(self, layer: Reader, batch_size: int) -> DepthsState:
        return DepthsState(self.router.initial_state(batch_size), initial_subsequence(layer, batch_size, self.router.threshold.device))

    def forward(self, layer: Reader, x: Tensor, state: DepthsState, context: Context) -> Mixed:
        """Read `x` (B, T, D) by `layer` where it is picked. The stats of its router are called "depths.share" and so on."""
        routed = self.router(context.shared[WRITTEN] if self.by_previous else x, state.router, context)
        index, text, read = read_picked(layer, x, routed.picked, state.text, context)
        weight = gathered(routed.weight, index)[:, None]
        y = added_at(x, index, weight.to(x.dtype) * (read.y - text))
        stats = {**read.stats, **{f"depths.{key}": value for key, value in routed.stats.items()}}
        return Mixed(y, DepthsState(routed.state, read.state), read.losses, stats=stats)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        self.router.after_step(stats)
