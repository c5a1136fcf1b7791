"""The interface of a unit, and the one law that every unit keeps.

A unit maps (B, T, D) to (B, T, D) and carries a state. Cutting time anywhere changes nothing: a sequence read at once, in
pieces or token by token gives the same outputs and the same gradients, and a later token changes nothing before it. A restart
makes a unit forget, so that documents packed into a row equal the documents read one by one.

Sizes: B batch, T time, D hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = Any  # a pytree of tensors: NamedTuples, tuples, dicts


class Mixed(NamedTuple):
    """What a unit gives back."""

    y: Tensor  # (B, T, D)
    state: State  # the structure that came in; fresh tensors, never written in place
    losses: Mapping[str, Tensor] = {}  # named scalars, unweighted means over the text (Context.mean)
    shared: Mapping[str, Tensor] = {}  # what later layers may read as context.shared
    stats: Mapping[str, Tensor] = {}  # detached sums over the text, added up over micro-batches and ranks


@dataclass(frozen=True)
class Context:
    """All that a unit may know beyond its input and its state.

    Callers give `restart` and `memory`, and where they know them on the host `cu_seqlens` and `any_restart`; the model derives the rest.
    """

    restart: Tensor | None = None  # (B, T) bool: a new document begins here
    memory: Any = None  # neighbours that come with this piece (lm/units/neighbours.py), fetched outside the model
    cu_seqlens: Tensor | None = None  # (N + 1,) int32: where documents and rows begin in the flattened B * T, and its end
    any_restart: bool | None = None  # whether any document begins after state was carried to it
    is_text: Tensor | None = None  # (B, T) bool: tokens that count in the units' losses and stats, scored or not; all of them when None
    position: Tensor | None = None  # (B, T) int64: place within the document
    carry: bool = True  # whether the state that comes out will be read
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def derived(self, tokens: Tensor, start: Tensor, carry: bool) -> "Context":
        """The context in full for `tokens` (B, T) whose rows stand at place `start` (B,) of their documents."""
        batch, time = tokens.shape
        steps = torch.arange(time, device=tokens.device)
        if self.restart is None:
            edges = torch.arange(batch + 1, device=tokens.device, dtype=torch.int32) * time
            return replace(self, position=start[:, None] + steps, cu_seqlens=edges, any_restart=False, carry=carry)
        latest = torch.where(self.restart, steps, -1).cummax(1).values if time else steps.expand(batch, 0)
        position = torch.where(latest >= 0, steps - latest, start[:, None] + steps)
        matters = self.restart if carry else self.restart[:, 1:]
        return replace(
            self,
            position=position,
            cu_seqlens=_starts(self.restart) if self.cu_seqlens is None else self.cu_seqlens,
            any_restart=bool(matters.any()) if self.any_restart is None else self.any_restart,
            carry=carry,
        )

    def total(self, values: Tensor) -> Tensor:
        """`values` (B, T, ...) of tokens, added up over those that are text."""
        if self.is_text is None:
            return values.sum((0, 1))
        return torch.where(self.is_text.view(*self.is_text.shape, *[1] * (values.ndim - 2)), values, 0).sum((0, 1))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` (B, T) over the tokens that are text; 0 when none is."""
        return self.total(values) / self.total(torch.ones_like(values)).clamp(min=1)


def _starts(restart: Tensor) -> Tensor:
    """Where documents and rows of `restart` (B, T) begin in the flattened B * T, and its end: (N + 1,)."""
    edges = restart.clone()
    edges[:, :1] = True
    edges = edges.flatten()
    return torch.cat([edges.nonzero().flatten(), torch.tensor([len(edges)], device=edges.device)]).int()


class Unit(nn.Module):
    """(B, T, D) -> (B, T, D), causal, under the law."""

    # Beginnings of the names of matrices whose fan-in is the same in a model of any width (lm/training/optimizer.py): of time, of places, of a low rank.
    steady: tuple[str, ...] = ()

    def initialise(self) -> None:
        """First weights: matrices normal with deviation 0.02, and zero where the unit writes into the residual stream (`output`),
        so that a new layer is the identity (as in ReZero, Bachlechner et al. 2021)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02 * (not name.startswith("output.")))

    def initial_state(self, batch_size: int) -> State:
        """What the unit knows before the first token, for `batch_size` rows; of the parameters' dtype and device."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """Read `x` (B, T, D), any T >= 0, after what `state` holds."""
        raise NotImplementedError

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Change buffers by what the unit's stats came to over all tokens of an optimizer step, of all ranks. Most units have none."""
