"""Options of the plan: what is made of layers whatever units stand in them. Gates before the units' outputs (head_gating), feed-forwards
that layers share (shared_ffn), and values of the first attention that others mix into theirs (model.value_residual).
"""

from typing import Literal, NamedTuple

from lm.preset.plan import MECHANISMS, at_layer, depths_layers, layer_plan, layers_named, plan_in_words, private_width, sharing_layers, told_plan
from lm.preset.switches import Preset
from lm.preset.widths import OUTPUT_WIDTHS

VALUED = ("attention", "longformer")  # units that make a value of every token, each for itself
Values = Literal["own", "first", "mixed"]


class Options(NamedTuple):
    """What is made of one layer."""

    gates: tuple[int, ...]  # before the output of each of its units; 0: none
    shared_width: int  # channels of its feed-forward that other layers share; 0: none
    values: tuple[Values, ...]  # of each of its units: "first" are mixed into those that are "mixed", "own" have no part in it


def layer_options(preset: Preset) -> tuple[Options, ...]:
    """Of each layer, first to last."""
    gated = layers_named(preset, "head_gating") if preset.head_gating.enabled else ()
    sharing, width = sharing_layers(preset), preset.model.feed_forward_size - private_width(preset)
    layers = enumerate(zip(layer_plan(preset), _values(preset), strict=True))
    return tuple(
        Options(tuple(_gates(preset, name) * (layer in gated) for name in units), width * (layer in sharing), values) for layer, (units, values) in layers
    )


def _values(preset: Preset) -> tuple[tuple[Values, ...], ...]:
    valued = _valued(preset)

    def of_unit(place: tuple[int, int]) -> Values:
        return "own" if place not in valued else "first" if place == valued[0] else "mixed"

    return tuple(tuple(of_unit((layer, place)) for place in range(len(units))) for layer, units in enumerate(layer_plan(preset)))


def _valued(preset: Preset) -> list[tuple[int, int]]:
    """Layer and place in it of the units that take part in model.value_residual, first to last."""
    plan = layer_plan(preset) if preset.model.value_residual else ()
    return [(layer, place) for layer, units in enumerate(plan) for place, name in enumerate(units) if name in VALUED]


def _gates(preset: Preset, unit: str) -> int:
    return preset.head_gating.ffn_groups if _is_ffn(unit) else preset.model.num_heads * preset.head_gating.mixers


def _is_ffn(unit: str) -> bool:
    return unit in ("swiglu", "relu2") or (unit in MECHANISMS and MECHANISMS[unit] == "ffn")


def check_options(preset: Preset) -> None:
    """ValueError, one line, for options that the plan can't take."""
    sharing, plan = sharing_layers(preset), layer_plan(preset)
    if preset.shared_ffn.enabled and len(sharing) < 2:
        raise ValueError(f"shared_ffn: {len(sharing)} of the layers it names has a feed-forward that no mechanism claims; two or more can share")
    if preset.shared_ffn.enabled and private_width(preset) == preset.model.feed_forward_size:
        raise ValueError(f"shared_ffn: of {preset.model.feed_forward_size} channels private_share {preset.shared_ffn.private_share} leaves none to share")
    _check_values(preset)
    for layer, options in enumerate(layer_options(preset)):
        for unit, gates in zip(plan[layer], options.gates, strict=True):
            if gates:
                _check_gates(at_layer(preset, layer), layer, unit, gates)


def _check_values(preset: Preset) -> None:
    if not preset.model.value_residual:
        return
    if preset.model.bidirectional != "off":
        raise ValueError('model.value_residual: a text that is read from both ends has other values each way; set model.bidirectional to "off"')
    valued, some = _valued(preset), depths_layers(preset)
    if len(valued) < 2:
        raise ValueError(f"model.value_residual: {len(valued)} of the layers' mixers is {' or '.join(VALUED)}; two or more can mix their values")
    for layer, place in valued:
        if layer in some:
            unit = layer_plan(preset)[layer][place]
            raise ValueError(f"model.value_residual: {unit} in layer {layer} needs the values of every token; leave the layer out of mixture_of_depths.layers")


def _check_gates(preset: Preset, layer: int, unit: str, gates: int) -> None:
    if unit not in OUTPUT_WIDTHS:
        off = "head_gating.ffn_groups to 0" if _is_ffn(unit) else "head_gating.mixers to false"
        raise ValueError(f"head_gating: {unit} in layer {layer} has no single output matrix to gate; leave the layer out of head_gating.layers, or set {off}")
    width = OUTPUT_WIDTHS[unit](preset)
    if not width:
        raise ValueError(f"head_gating: all of the feed-forward in layer {layer} is shared; set head_gating.ffn_groups to 0")
    if width % gates:
        switch = "head_gating.ffn_groups" if _is_ffn(unit) else "model.num_heads"
        raise ValueError(f"head_gating: the {width} channels of {unit} in layer {layer} can't be divided into {gates} groups ({switch})")


def model_in_words(preset: Preset) -> str:
    """The plan in a line, and what options make of it."""
    gating, words = preset.head_gating, [plan_in_words(told_plan(preset))]
    if gating.enabled and (gating.mixers or gating.ffn_groups):
        what = ["each head"] * gating.mixers + [f"{gating.ffn_groups} groups of each feed-forward"] * bool(gating.ffn_groups)
        words.append(f"gates on {' and '.join(what)}{_where(layers_named(preset, 'head_gating'), preset)}")
    if preset.shared_ffn.enabled:
        width, layers = preset.model.feed_forward_size, sharing_layers(preset)
        words.append(f"{width - private_width(preset):,} of {width:,} feed-forward channels shared{_where(layers, preset)}")
    if preset.model.value_residual:
        first, *others = (layer for layer, _ in _valued(preset))
        words.append(f"values of layer {first} mixed into those of {len(others)} others")
    return "; ".join(words)


def _where(layers: tuple[int, ...], preset: Preset) -> str:
    return "" if len(layers) == preset.model.num_layers else f" in layers {', '.join(map(str, layers))}"
