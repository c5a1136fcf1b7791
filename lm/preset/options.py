"""Options of the plan: what is made of layers whatever units stand in them. Gates before the units' outputs (head_gating), and
feed-forwards that layers share (shared_ffn).
"""

from typing import NamedTuple

from lm.preset.plan import MECHANISMS, at_layer, layer_plan, layers_named, plan_in_words, private_width, sharing_layers, told_plan
from lm.preset.switches import Preset
from lm.preset.widths import OUTPUT_WIDTHS


class Options(NamedTuple):
    """What is made of one layer."""

    gates: tuple[int, ...]  # before the output of each of its units; 0: none
    shared_width: int  # channels of its feed-forward that other layers share; 0: none


def layer_options(preset: Preset) -> tuple[Options, ...]:
    """Of each layer, first to last."""
    gated = layers_named(preset, "head_gating") if preset.head_gating.enabled else ()
    sharing, width = sharing_layers(preset), preset.model.feed_forward_size - private_width(preset)
    return tuple(
        Options(tuple(_gates(preset, name) * (layer in gated) for name in units), width * (layer in sharing)) for layer, units in enumerate(layer_plan(preset))
    )


def _gates(preset: Preset, unit: str) -> int:
    return preset.head_gating.ffn_groups if _is_ffn(unit) else preset.model.num_heads * preset.head_gating.mixers


def _is_ffn(unit: str) -> bool:
    return unit in ("swiglu", "relu2") or (unit in MECHANISMS and MECHANISMS[unit].kind == "ffn")


def check_options(preset: Preset) -> None:
    """ValueError, one line, for options that the plan can't take."""
    sharing, plan = sharing_layers(preset), layer_plan(preset)
    if preset.shared_ffn.enabled and len(sharing) < 2:
        raise ValueError(f"shared_ffn: {len(sharing)} of the layers it names has a feed-forward that no mechanism claims; two or more can share")
    if preset.shared_ffn.enabled and private_width(preset) == preset.model.feed_forward_size:
        raise ValueError(f"shared_ffn: of {preset.model.feed_forward_size} channels private_share {preset.shared_ffn.private_share} leaves none to share")
    for layer, options in enumerate(layer_options(preset)):
        for unit, gates in zip(plan[layer], options.gates, strict=True):
            if gates:
                _check_gates(at_layer(preset, layer), layer, unit, gates)


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
    return "; ".join(words)


def _where(layers: tuple[int, ...], preset: Preset) -> str:
    return "" if len(layers) == preset.model.num_layers else f" in layers {', '.join(map(str, layers))}"
