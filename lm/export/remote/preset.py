"""A preset as the model sees it: sections whose switches are attributes, and the layer plan. What they mean was decided at export."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

RoutedMechanism = SimpleNamespace  # a section, as the model sees it


class Preset(SimpleNamespace):
    """`sections`: switches by section, every default written out; `plan`: the unit names of each layer."""

    def __init__(self, sections: Mapping[str, Mapping[str, Any]], plan: Sequence[Sequence[str]]) -> None:
        super().__init__(plan=tuple(map(tuple, plan)))
        for name, switches in sections.items():
            # JSON knows no tuples, and a unit must not be able to change what it was told.
            values = {switch: tuple(value) if isinstance(value, list) else value for switch, value in switches.items()}
            setattr(self, name, SimpleNamespace(**values))


def at_layer(preset: Preset, layer: int) -> Any:
    """The preset as it is for the units of one layer: rotary positions are interpolated in those that were named at export."""
    if layer in preset.model.position_interpolation_layers:
        return preset
    return SimpleNamespace(**{**vars(preset), "model": SimpleNamespace(**{**vars(preset.model), "position_interpolation": 1.0})})


def depths_layers(preset: Preset) -> tuple[int, ...]:
    """The layers that only some tokens read."""
    return preset.mixture_of_depths.layers if preset.mixture_of_depths.enabled else ()


def layer_plan(preset: Preset) -> tuple[tuple[str, ...], ...]:
    """The unit names of each layer, first to last."""
    return preset.plan
