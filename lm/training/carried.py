"""States of the model that go on from one row of a lane to the next, so that a document of any length is read with all that came before.

Row i belongs to lane i mod 48 (data_sources/stream.py) and goes on where the lane's last row ended. What the model held there is kept
here, detached, by lane: gradients end where a row does, what was read does not.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lm.model import Model, ModelState

LANES_READ = "lanes"  # in a snapshot: whose states the rows of the other tensors are


class Carried:
    """The states of one rank's lanes. A step's moves count once it is known to be sound."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._states: dict[int, list[Tensor]] = {}  # leaves with one row each
        self._moved: dict[int, list[Tensor]] = {}  # in the step under way

    def of(self, lanes: Sequence[int]) -> ModelState:
        """The state before a row of each of `lanes`, all different; fresh for those that have read nothing."""
        fresh, structure = tree_flatten(self._model.initial_state(1))
        rows = [self._moved.get(lane, self._states.get(lane, fresh)) for lane in lanes]
        return tree_unflatten([torch.cat(leaves) for leaves in zip(*rows, strict=True)], structure)

    def move(self, lanes: Sequence[int], state: ModelState) -> None:
        """Note the state after a row of each of `lanes`. Copies: a slice would keep alive what it was cut from."""
        like = tree_leaves(self._model.initial_state(1))
        leaves = [leaf.detach().to(fresh.dtype) for leaf, fresh in zip(tree_leaves(state), like, strict=True)]
        for index, lane in enumerate(lanes):
            self._moved[lane] = [leaf[index : index + 1].clone() for leaf in leaves]

    def settle(self, sound: bool) -> None:
        """End a step: its moves are taken over, or after an unsound one its lanes begin afresh, since what is not a number never leaves a state."""
        if sound:
            self._states |= self._moved
        else:
            self._states = {lane: leaves for lane, leaves in self._states.items() if lane not in self._moved}
        self._moved = {}

    def take_back(self) -> None:
        """Forget the moves of the step under way: it is begun again."""
        self._moved = {}

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot: "lanes" (N,) int64, and each leaf of their states with N rows, by number. Empty before the first step."""
        if not self._states:
            return {}
        lanes = sorted(self._states)
        leaves = zip(*(self._states[lane] for lane in lanes), strict=True)
        return {LANES_READ: torch.tensor(lanes)} | {str(number): torch.cat(rows).cpu() for number, rows in enumerate(leaves)}

    def load(self, tensors: Mapping[str, Tensor], lanes: Sequence[int]) -> bool:
        """Take over the states of `lanes` out of a snapshot's, which has some. False, and all begin afresh, where they are of other shapes."""
        like = tree_leaves(self._model.initial_state(1))
        leaves = [tensors.get(str(number)) for number in range(len(like))]
        self._states = {}
        if len(tensors) != len(like) + 1 or any(leaf is None or leaf.shape[1:] != fresh.shape[1:] for leaf, fresh in zip(leaves, like, strict=True)):
            return False
        for index, lane in enumerate(tensors[LANES_READ].tolist()):
            if lane in lanes:
                self._states[lane] = [leaf[index : index + 1].to(fresh, copy=True) for leaf, fresh in zip(leaves, like, strict=True) if leaf is not None]
        return True


def together(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several ranks as those of one."""
    parts = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def detached(state: ModelState) -> ModelState:
    """The same state, through which no gradient flows back."""
    return tree_map(lambda leaf: leaf.detach(), state)
