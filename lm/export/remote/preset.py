"""A preset as the model sees it: sections whose switches are attributes, and the layer plan. What they mean was decided at export."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

RoutedMechanism = SimpleNamespace  # a section, as the model sees it


class Options(NamedTuple):
    """What is made of one layer."""

    gates: tuple[int, ...]  # before the output of each of its units; 0: none
    shared_width: int  # channels of its feed-forward that other layers share; 0: none
    values: tuple[str, ...]  # of each of its units: "first" are mixed into those that are "mixed", "own" have no part in it


class Preset(SimpleNamespace):
    """`sections`: switches by section, every default written out; `at_layers`: those that are others, `plan`: the unit names, and `options`
    of each layer."""

    def __init__(
        self,
        sections: Mapping[str, Mapping[str, Any]],
        plan: Sequence[Sequence[str]],
        options: Sequence[Sequence[Any]],
        at_layers: Sequence[Mapping[str, Mapping[str, Any]]],
    ) -> None:
        super().__init__(plan=tuple(map(tuple, plan)), options=tuple(Options(*option) for option in options), at_layers=at_layers)
        for name, switches in sections.items():
            # JSON knows no tuples, and a unit must not be able to change what it was told.
            values = {switch: tuple(value) if isinstance(value, list) else value for switch, value in switches.items()}
            setattr(self, name, SimpleNamespace(**values))


def at_layer(preset: Preset, layer: int) -> Any:
    """The preset as it is for the units of one layer."""
    changed = {name: SimpleNamespace(**{**vars(getattr(preset, name)), **values}) for name, values in preset.at_layers[layer].items()}
    return SimpleNamespace(**{**vars(preset), **changed})


def layer_options(preset: Preset) -> tuple[Options, ...]:
    """Of each layer, first to last."""
    return preset.options


def depths_layers(preset: Preset) -> tuple[int, ...]:
    """The layers that only some tokens read."""
    return preset.mixture_of_depths.layers if preset.mixture_of_depths.enabled else ()


def layer_plan(preset: Preset) -> tuple[tuple[str, ...], ...]:
    """The unit names of each layer, first to last."""
    return preset.plan
