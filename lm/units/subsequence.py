"""Reading the picked tokens of each row as a text of their own, by any unit, so that the cost follows their number.

What the unit is given is simply a text: places are counted among the picked tokens of the document, and a document whose first tokens are
not picked begins with the first that is, be it in a later piece. So the law that holds for the unit holds for the reading, too.

Where no state is carried, all rows are read as one, their borders being restarts. With states each row goes on from its own.

Sizes: B batch, T time, D hidden, N picked tokens, M of one row.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lm.ops.picking import beginnings, gathered, index_of
from lm.units.unit import Context, Mixed, State


class Reader(Protocol):
    """A unit, or some of them in turn: what can read a text."""

    def __call__(self, x: Tensor, state: State, context: Context) -> Mixed: ...

    def initial_state(self, batch_size: int) -> State: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...


class SubsequenceState(NamedTuple):
    position: Tensor  # (B,) int64: picked tokens of the document so far
    waits: Tensor  # (B,) bool: a document has begun, and none of its tokens was picked yet
    inner: State


class Picked(NamedTuple):
    """What became of the picked tokens."""

    index: Tensor  # (N,) where they stand in the flattened B * T
    text: Tensor  # (N, D) what they were
    mixed: Mixed  # y is (N, D)


def initial_subsequence(reader: Reader, batch_size: int, device: torch.device) -> SubsequenceState:
    """Before the first token."""
    position = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return SubsequenceState(position, torch.zeros_like(position, dtype=torch.bool), reader.initial_state(batch_size))


def read_picked(reader: Reader, x: Tensor, picked: Tensor, state: SubsequenceState, context: Context) -> Picked:
    """The tokens of `x` (B, T, D) that `picked` (B, T) names, read by `reader` after what `state` holds.

    The reader's losses count as the tokens that it was given do among all: they stay means over the text in `x`.
    """
    index = index_of(picked)
    text = gathered(x, index)
    together = not context.carry  # then every row began afresh
    begins, waits = beginnings(picked, context.restart, torch.ones_like(state.waits) if together else state.waits)
    if not len(index):
        return Picked(index, text, Mixed(_unread(text, reader), state._replace(waits=waits)))
    counts = [len(index)] if together else picked.sum(1).tolist()
    counted = torch.ones_like(picked) if context.is_text is None else context.is_text
    columns = (text.split(counts), gathered(begins, index).split(counts), gathered(counted, index).split(counts), _rows(reader, state))
    read = [_read_row(reader, *row, carry=context.carry) for row in zip(*columns, strict=not together)]
    total = context.total(torch.ones_like(x[..., 0])).clamp(min=1)
    losses = {name: sum(row.losses[name] for row in read if row.losses) / total for name in {name for row in read for name in row.losses}}
    stats = {name: sum(row.stats[name] for row in read if row.stats) for name in {name for row in read for name in row.stats}}
    after = state if together else _joined([row.state for row in read])._replace(waits=waits)
    return Picked(index, text, Mixed(torch.cat([row.y for row in read]), after, losses, stats=stats))


def _read_row(reader: Reader, text: Tensor, begins: Tensor, counted: Tensor, state: SubsequenceState, carry: bool) -> Mixed:
    """One text (M, D), and where its documents begin (M,). Losses are sums over its tokens that are `counted` (M,)."""
    if not len(text):
        return Mixed(text, state)
    context = Context(restart=begins[None], is_text=counted[None]).derived(text[None, :, 0], state.position, carry)
    mixed = reader(text[None], state.inner, context)
    count = context.total(torch.ones_like(text[None, :, 0]))
    after = state._replace(position=context.position[:, -1] + 1, inner=mixed.state)
    return mixed._replace(y=mixed.y[0], state=after, losses={name: loss * count for name, loss in mixed.losses.items()})


def _unread(text: Tensor, reader: Reader) -> Tensor:
    """`text` (0, D), as if the reader had read it: each of its own parameters gets a gradient, which is zero. Who waits for the gradients of
    all parameters, as other processes do, waits for these, too. What it reads of other parts of the model is left to them."""
    return text + sum(parameter.sum() for parameter in reader.parameters()) if torch.is_grad_enabled() else text


def _rows(reader: Reader, state: SubsequenceState) -> list[SubsequenceState]:
    """The state of each row by itself. What has grown holds the picked tokens of the document, right-aligned, and is cut to them."""
    fresh = reader.initial_state(1)

    def row(number: int, length: int) -> SubsequenceState:
        def own(leaf: Tensor, first: Tensor) -> Tensor:
            leaf = leaf[number : number + 1]
            for dim in range(1, leaf.ndim):
                if leaf.shape[dim] > max(first.shape[dim], length):
                    leaf = leaf.narrow(dim, leaf.shape[dim] - length, length)
            return leaf

        here = slice(number, number + 1)
        return SubsequenceState(state.position[here], state.waits[here], tree_map(own, state.inner, fresh))

    return [row(number, length) for number, length in enumerate(state.position.tolist())]


def _joined(rows: list[SubsequenceState]) -> SubsequenceState:
    """States of one row each as those of a batch; what has grown in some is filled up at the left in the others."""

    def together(*leaves: Tensor) -> Tensor:
        widest = torch.tensor([leaf.shape[1:] for leaf in leaves]).amax(0).tolist()
        return torch.cat([_filled(leaf, widest) for leaf in leaves])

    return tree_map(together, *rows)


def _filled(leaf: Tensor, sizes: list[int]) -> Tensor:
    missing = [wanted - size for size, wanted in zip(leaf.shape[1:], sizes, strict=True)]
    return F.pad(leaf, [side for amount in reversed(missing) for side in (amount, 0)]) if any(missing) else leaf
