"""Reading from both ends with any causal unit (as in bidirectional recurrent networks, Schuster & Paliwal 1997).

    y = onward(x) + reversed(back(reversed(x)))

Each document is reversed by itself: where one ended, another begins. The unit that reads back has weights of its own, or is the same. Every
output depends on all of its document, so nothing can be carried on from: there is no state, no reading in pieces and no writing left to right.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lm.units.unit import Context, Mixed, State, Unit

BY_TOKEN = {"swiglu", "relu2", "moe", "colt5"}  # units that read each token by itself, whichever way they come


class Bidirectional(Unit):
    """A causal unit, and one of the same kind for the other way."""

    def __init__(self, make: Callable[[], Unit], shared: bool) -> None:
        super().__init__()
        self.onward = make()
        self.back = None if shared else make()

    def initialise(self) -> None:
        for unit in filter(None, (self.onward, self.back)):
            unit.initialise()

    def initial_state(self, batch_size: int) -> State:
        return self.onward.initial_state(batch_size)

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """Read `x` (B, T, D). ValueError where something would have to be carried on."""
        if context.carry:
            raise ValueError("this model reads texts from both ends, as a whole: nothing can be carried on from one piece to the next (model.bidirectional)")
        onward = self.onward(x, state, context)
        back = (self.back or self.onward)(x.flip(1), state, reversed_context(x, context))
        losses = {name: (loss + back.losses[name]) / 2 for name, loss in onward.losses.items()}
        if self.back is None:
            stats = {name: value + back.stats[name] for name, value in onward.stats.items()}
        else:
            stats = {f"{way}-{name}": value for way, mixed in (("onward", onward), ("back", back)) for name, value in mixed.stats.items()}
        return Mixed(onward.y + back.y.flip(1), state, losses, {}, stats)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """One unit that reads both ways hears of both together."""
        if self.back is None:
            return self.onward.after_step(stats)
        for way, unit in (("onward", self.onward), ("back", self.back)):
            unit.after_step({name.removeprefix(f"{way}-"): value for name, value in stats.items() if name.startswith(f"{way}-")})


def reversed_context(x: Tensor, context: Context) -> Context:
    """The context of `x` (B, T, D) read from its end: a document begins where one ended."""
    assert context.position is not None
    first = torch.zeros_like(context.position[:, :1], dtype=torch.bool)
    restart = None if context.restart is None else torch.cat([first, context.restart[:, 1:].flip(1)], 1)[:, : x.shape[1]]
    is_text = None if context.is_text is None else context.is_text.flip(1)
    edges = None if context.cu_seqlens is None else mirrored(context.cu_seqlens, x.shape[1])
    start = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Context(restart=restart, is_text=is_text, cu_seqlens=edges, any_restart=context.any_restart).derived(x[..., 0], start, carry=False)


def mirrored(edges: Tensor, time: int) -> Tensor:
    """Where documents and rows of `time` tokens begin, and the end (N + 1,), when each row is read from its end: known without asking the device."""
    begins = edges[:-1]
    ends = (2 * (begins // max(time, 1)) + 1) * time - begins
    return torch.cat([edges[:1], ends.sort().values])


def two_way(name: str, make: Callable[[], Unit], ways: str) -> Unit:
    """The unit `name` as model.bidirectional has it: "off", "own" weights for each way, or "shared" ones."""
    return make() if ways == "off" or name in BY_TOKEN else Bidirectional(make, ways == "shared")
