"""A snapshot of one model put into another: what fits is kept, what became larger grows, and the rest is said.

Grown parts leave what was learned as it is: tables get rows behind those they had. A layer that is new begins as the identity
(lm/units/unit.py), so that a deeper model computes what the shallower one did.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lm.model import more_places

PLACES = "model.positions.weight"
TABLES = ("model.embedding.weight", "model.output.weight", PLACES)


class Fit(NamedTuple):
    """What became of each tensor, by name."""

    kept: list[str]
    grown: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape before, shape now
    new: list[str]  # begin anew
    left: list[str]  # only in the snapshot, or of a shape that can't become ours

    @property
    def is_whole(self) -> bool:
        """Whether it is the same model."""
        return not (self.grown or self.new or self.left)

    @property
    def grown_in_words(self) -> str:
        """ "embedding from 500 x 32 to 600 x 32"."""
        names = {name: name.removeprefix("model.").removesuffix(".weight") for name in self.grown}
        return ", ".join(f"{names[name]} from {_size(before)} to {_size(now)}" for name, (before, now) in self.grown.items())

    def in_words(self) -> str:
        """One line."""
        grown = self.grown_in_words
        counts = f"{len(self.kept)} tensors kept, {len(self.grown)} grown{grown and f' ({grown})'}, {len(self.new)} new, {len(self.left)} left behind"
        return f"another model than the snapshot's: {counts}"


def fit(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Fit:
    """Compare the tensors of a model with those of a snapshot. Only shapes are looked at."""
    shared = [name for name in ours if name in theirs]
    kept = [name for name in shared if ours[name].shape == theirs[name].shape]
    grown = {name: (tuple(theirs[name].shape), tuple(ours[name].shape)) for name in shared if name in TABLES and _has_more_rows(ours[name], theirs[name])}
    taken = {*kept, *grown}
    return Fit(kept, grown, [name for name in ours if name not in taken], [name for name in theirs if name not in taken])


def fitted(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], how: Fit) -> dict[str, Tensor]:
    """The tensors of `theirs` as the model can take them."""
    return {name: theirs[name] for name in how.kept} | {name: grown_rows(name, theirs[name], ours[name]) for name in how.grown}


def fitted_moments(moments: Mapping[str, Tensor], how: Fit) -> dict[str, Tensor]:
    """The optimizer's tensors ("name/key") of what is kept or grown; new rows have no past."""
    out = {}
    for path, value in moments.items():
        name, _ = path.rsplit("/", 1)
        if name in how.grown and value.ndim:
            value = torch.cat([value, value.new_zeros(how.grown[name][1][0] - len(value), *value.shape[1:])])
        out[path] = value
    return out


def grown_rows(name: str, old: Tensor, fresh: Tensor) -> Tensor:
    """`old` (N, D) with rows behind it up to those of `fresh` (M, D): its own again for places, first weights for words."""
    if name == PLACES:
        return more_places(old, len(fresh))
    return torch.cat([old, fresh[len(old) :].to(old)])


def _has_more_rows(ours: Tensor, theirs: Tensor) -> bool:
    return ours.ndim == theirs.ndim == 2 and ours.shape[1] == theirs.shape[1] and len(ours) > len(theirs)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape)
