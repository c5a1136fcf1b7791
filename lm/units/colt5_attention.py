"""CoLT5's attention (Ainslie et al. 2023), the decoder's form: a light branch for every token, a heavy one among those that a router picks.

    y_t = light_t(x) + [logit_t > 0] sigmoid(logit_t) heavy_t(picked x)

The light branch has few heads and sees a window. The heavy one is attention over all earlier tokens of the document that were picked, which
are a text of their own for it: its places are counted among them. So its work falls with the square of the share that is picked.

The state: the router's, the window of the light branch, and the keys and values of the picked tokens.

Sizes: B batch, T time, D hidden, N picked tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lm.ops.picking import added_at, gathered
from lm.preset.switches import Preset
from lm.units.attention import Attention
from lm.units.longformer import Longformer, LongformerState
from lm.units.router import Router
from lm.units.subsequence import SubsequenceState, initial_subsequence, read_picked
from lm.units.unit import Context, Mixed, State, Unit


class Colt5AttentionState(NamedTuple):
    router: State
    light: LongformerState
    heavy: SubsequenceState


class Colt5Attention(Unit):
    """Attention within a window, attention among picked tokens, and a router."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        section = preset.colt5_attention
        self.light = Longformer(preset, section.window, section.light_heads or -(-preset.model.num_heads // 4))
        self.heavy = Attention(preset)
        self.router = Router(preset, section, section.budget)

    def initialise(self) -> None:
        self.light.initialise()
        self.heavy.initialise()
        self.router.initialise()

    def initial_state(self, batch_size: int) -> Colt5AttentionState:
        heavy = initial_subsequence(self.heavy, batch_size, self.router.threshold.device)
        return Colt5AttentionState(self.router.initial_state(batch_size), self.light.initial_state(batch_size), heavy)

    def forward(self, x: Tensor, state: Colt5AttentionState, context: Context) -> Mixed:
        routed = self.router(x, state.router, context)
        light = self.light(x, state.light, context)
        index, _, heavy = read_picked(self.heavy, x, routed.picked, state.heavy, context)
        weight = gathered(routed.weight, index)[:, None]
        y = added_at(light.y, index, weight.to(heavy.y.dtype) * heavy.y)
        after = Colt5AttentionState(routed.state, light.state, heavy.state)
        return Mixed(y, after, stats=routed.stats)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        self.router.after_step(stats)
