"""CoLT5's feed-forward (Ainslie et al. 2023), the decoder's form: a light branch for every token, a heavy one for those that a router picks.

    y_t = light(x_t) + [logit_t > 0] sigmoid(logit_t) heavy(x_t)

Both branches are SwiGLU. Unless it is said otherwise the light one is half as wide as the model's feed-forward, the heavy one twice, and a
quarter of the tokens are heavy: a token then costs what it costs in the plain feed-forward on average, in a layer of 2.5 times its parameters.

The heavy branch is given the picked tokens only. The state is the router's.

Sizes: B batch, T time, D hidden, N picked tokens.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lm.ops.picking import added_at, gathered, index_of
from lm.preset.switches import Preset
from lm.units.router import Router
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context, Mixed, State, Unit

Branch = Callable[[Tensor], Tensor]


def colt5_step(x: Tensor, logit: Tensor, light: Branch, heavy: Branch) -> Tensor:
    """The definition, for one token: x (B, D), logit (B,) -> (B, D)."""
    weight = torch.where(logit > 0, logit.sigmoid(), 0)
    return light(x) + weight[:, None] * heavy(x)


def colt5_parallel(x: Tensor, picked: Tensor, weight: Tensor, light: Branch, heavy: Branch) -> Tensor:
    """All tokens at once: x (B, T, D), picked (B, T), weight (B, T) -> (B, T, D). `heavy` is given (N, D)."""
    index = index_of(picked)
    change = heavy(gathered(x, index))
    return added_at(light(x), index, gathered(weight, index)[:, None].to(change.dtype) * change)


class Colt5(Unit):
    """A light feed-forward, a heavy one, and a router."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        section, width = preset.colt5, preset.model.swiglu_size
        self.light = SwiGLU(preset, section.light_size or -(-width // 2))
        self.heavy = SwiGLU(preset, section.heavy_size or 2 * width)
        self.router = Router(preset, section, section.budget)

    def initialise(self) -> None:
        self.light.initialise()
        self.heavy.initialise()
        self.router.initialise()

    def initial_state(self, batch_size: int) -> State:
        return self.router.initial_state(batch_size)

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        routed = self.router(x, state, context)
        y = colt5_parallel(x, routed.picked, routed.weight, self.light.mapped, self.heavy.mapped)
        return Mixed(y, routed.state, stats=routed.stats)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        self.router.after_step(stats)
