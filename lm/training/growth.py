"""A snapshot of one model put into another: what fits is kept, what became larger grows, and the rest is said.

Grown parts leave what was learned as it is: tables get rows behind those they had. A unit that is new begins as the identity
(lm/units/unit.py), so that a deeper model computes what the shallower one did. So a unit is kept as a whole or not at all: an output
matrix that another mechanism learned would fill the residual stream with noise, and so would one that learned to read what another part of
the model shares, when that part is new. An output table of its own begins as a copy of the embedding that was the output until then.

Heads (lm/auxiliary) are beside the model: one that comes or goes leaves all else as it is.

Gates are beside a unit: it is kept without those it had, and with new ones, which are open at first. So is the share of the first attention's
values in its own, which is 0 at first, and again where those values are another unit's. A layer that only some tokens read
from now on (mixture of depths), or all of them again, keeps its units, and the model computes otherwise.

A unit that reads both ways from now on (model.bidirectional) reads onward as it did. The one that reads back beside it is new, and begins as the
identity, so that the model computes what it did; or as a copy, where one unit has read both ways until now.

A model whose tensors are all alike may still be another: attention that becomes Longformer, or other rotary angles. What its modules
compute by is compared, too.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lm.model import Model, more_places
from lm.preset import Preset
from lm.training.headers import OF_HEADS, plain

EMBEDDING, OUTPUT, PLACES = "model.embedding.weight", "model.output.weight", "model.positions.weight"
PLAIN = (int, float, str, tuple, type(None))
TABLES = (EMBEDDING, OUTPUT, PLACES)
IN_UNIT = re.compile(r"(model\.layers\.\d+)\.(\d+)\.(.+)")  # layer, place in the layer, the rest
IN_WHOLE = re.compile(r"(?:heads\.\w+|model\.shared_ffn)\.")  # what is kept as a whole or not at all
BESIDE = re.compile(r"unit\.(output\.gate\..+|first_share)")
ONWARD, BACK = "unit.onward.", "unit.back."  # of a unit that reads both ways
VALUES, FIRST_SHARE = ".unit.query_key_value.weight", ".unit.first_share"
SHARED_FFN, SCALE = re.compile(r"model\.shared_ffn\..+"), "shared_scale"
# A unit that has a tensor of the first name reads what tensors of the second make.
READS = {
    "unit.shared_query.weight": re.compile(r".+\.unit\.shared_keys\..+"),
    "unit.cross_query.weight": re.compile(r"model\.neighbour_encoder\..+"),
    SCALE: SHARED_FFN,
}


class Fit(NamedTuple):
    """What became of each tensor, by name."""

    kept: dict[str, str]  # our name: theirs, which is another where its unit stood at another place of the layer
    grown: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape before, shape now
    new: list[str]  # begin anew
    left: list[str]  # only in the snapshot, or of a shape that can't become ours
    otherwise: bool  # whether something is computed in another way, whatever became of the tensors

    @property
    def is_whole(self) -> bool:
        """Whether it is the same model."""
        return not (self.grown or self.new or self.left or self.otherwise)

    @property
    def is_same_model(self) -> bool:
        """Whether at most the heads beside it are others."""
        names = [*self.grown, *self.new, *self.left]
        return not self.otherwise and all(name.startswith(OF_HEADS) for name in names)

    @property
    def grown_in_words(self) -> str:
        """ "embedding from 500 x 32 to 600 x 32"."""
        return ", ".join(f"{plain(name)} from {_size(before)} to {_size(now)}" for name, (before, now) in self.grown.items())

    def in_words(self) -> str:
        """One line."""
        if not (self.grown or self.new or self.left):
            return "another model than the snapshot's: the tensors are all kept, and computed with in another way"
        what = "other heads on the same model" if self.is_same_model else "another model"
        grown = self.grown_in_words
        counts = f"{len(self.kept)} tensors kept, {len(self.grown)} grown{grown and f' ({grown})'}, {len(self.new)} new, {len(self.left)} left behind"
        return f"{what} than the snapshot's: {counts}"


def fit(model: Model, ours: Mapping[str, Tensor], before: Preset, theirs: Mapping[str, Tensor]) -> Fit:
    """Compare `model` and the tensors it is trained with to the preset and the tensors of a snapshot."""
    alike = [name for name in ours if name in theirs and not IN_UNIT.fullmatch(name)]
    kept = {name: name for name in alike if ours[name].shape == theirs[name].shape} | _kept_units(ours, theirs)
    kept = _without_strange_values(_without_broken(_without_orphans(kept, ours), ours, theirs), ours, theirs)
    grown = {name: (tuple(theirs[name].shape), tuple(ours[name].shape)) for name in alike if name in TABLES and _has_more_rows(ours[name], theirs[name])}
    taken = {*kept.values(), *grown}
    new, left = [name for name in ours if name not in kept and name not in grown], [name for name in theirs if name not in taken]
    with torch.device("meta"):
        otherwise = _workings(Model(before, len(theirs[EMBEDDING]))) != _workings(model)
    return Fit(kept, grown, new, left, otherwise)


def _workings(model: Model) -> dict[str, Any]:
    """What each module computes by besides its tensors: its class and its plain attributes. What only first weights are drawn by, or
    only training goes by, is called with an underscore."""
    return {
        path: (type(module), {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training" and isinstance(value, PLAIN)})
        for path, module in model.named_modules()
    }


def _kept_units(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names and theirs of the tensors of units that are there on both sides, in the same layer and alike in all their tensors."""
    kept: dict[str, str] = {}
    their_layers = _units(theirs)
    for layer, units in _units(ours).items():
        left = their_layers.get(layer, {})
        for place, shapes in units.items():
            alike = [there for there in left if _ungated(left[there]) == _ungated(shapes)]
            if alike:
                there = place if place in alike else alike[0]
                theirs_there = left.pop(there)
                called = {(_onward(rest), shape): rest for rest, shape in theirs_there.items()}
                same = {rest: called[found] for rest, shape in shapes.items() if (found := (_onward(rest), shape)) in called}
                kept |= {f"{layer}.{place}.{rest}": f"{layer}.{there}.{rest_there}" for rest, rest_there in same.items()}
    return kept


def _ungated(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Of what must be alike: neither what stands beside a unit, nor the one that reads back."""
    return {_onward(rest): shape for rest, shape in shapes.items() if not (BESIDE.fullmatch(rest) or rest.startswith(BACK))}


def _onward(rest: str) -> str:
    """The name in a unit that reads one way."""
    return rest.replace(ONWARD, "unit.", 1)


def _without_orphans(kept: dict[str, str], ours: Mapping[str, Tensor]) -> dict[str, str]:
    """`kept` without the units that read what is shared by a part that is not kept."""
    for reader, source in READS.items():
        made = [name for name in ours if source.fullmatch(name)]
        if all(name in kept for name in made):
            continue
        orphans = {IN_UNIT.fullmatch(name).group(1, 2) for name in kept if IN_UNIT.fullmatch(name) and name.endswith(reader)}
        kept = {name: there for name, there in kept.items() if not (found := IN_UNIT.fullmatch(name)) or found.group(1, 2) not in orphans}
    return kept


def _without_broken(kept: dict[str, str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """`kept` without the heads, and the feed-forward of many layers, of which something is not."""
    broken = {found[0] for name in (*ours, *theirs) if (found := IN_WHOLE.match(name)) and name not in kept}
    return {name: there for name, there in kept.items() if not (found := IN_WHOLE.match(name)) or found[0] not in broken}


def _without_strange_values(kept: dict[str, str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """`kept` without the shares of the first attention's values, where it is not the one that it was."""
    first, was = (min((name for name in tensors if name.endswith(VALUES)), key=_place, default="") for tensors in (ours, theirs))
    return kept if kept.get(first, "") == was else {name: there for name, there in kept.items() if not name.endswith(FIRST_SHARE)}


def _place(name: str) -> tuple[int, int]:
    """Layer, and place in it."""
    layer, place, _ = IN_UNIT.fullmatch(name).groups()
    return int(layer.rsplit(".", 1)[1]), int(place)


def _units(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, torch.Size]]]:
    """Shapes by layer, place in the layer, and name in the unit."""
    layers: dict[str, dict[str, dict[str, torch.Size]]] = {}
    for name, tensor in tensors.items():
        if found := IN_UNIT.fullmatch(name):
            layer, place, rest = found.groups()
            layers.setdefault(layer, {}).setdefault(place, {})[rest] = tensor.shape
    return layers


def fitted(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], how: Fit) -> dict[str, Tensor]:
    """The tensors of `theirs` as the model can take them."""
    taken = {name: theirs[there] for name, there in how.kept.items()} | {name: grown_rows(name, theirs[name], ours[name]) for name in how.grown}
    if OUTPUT in how.new and EMBEDDING in taken:
        taken[OUTPUT] = taken[EMBEDDING]
    turned = {name: name.replace(BACK, ONWARD) for name in how.new if BACK in name}
    taken |= {name: taken[onward] for name, onward in turned.items() if ONWARD in how.kept.get(onward, "")}
    if any(SHARED_FFN.fullmatch(name) for name in how.kept):  # a layer that comes to it begins without
        taken |= {name: torch.zeros_like(ours[name]) for name in how.new if name.endswith(SCALE)}
    return taken


def fitted_moments(moments: Mapping[str, Tensor], how: Fit) -> dict[str, Tensor]:
    """The optimizer's tensors ("name/key") of what is kept or grown, by our names; new rows have no past."""
    names = {there: name for name, there in how.kept.items()} | {name: name for name in how.grown}
    out = {}
    for path, value in moments.items():
        name, key = path.rsplit("/", 1)
        if name not in names:
            continue
        if name in how.grown and value.ndim:
            value = torch.cat([value, value.new_zeros(how.grown[name][1][0] - len(value), *value.shape[1:])])
        out[f"{names[name]}/{key}"] = value
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
