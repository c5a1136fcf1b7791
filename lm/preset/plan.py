"""The layer plan: which units stand in which layer, resolved from what the sections of a preset claim.

A layer holds the mixers that claim it, in the order of MECHANISMS (attention where none does), then what attends to neighbours where
that is claimed, then the feed-forwards that claim it (where none does SwiGLU, or what model.activation says).
"""

from itertools import groupby
from typing import Literal

from lm.preset.fields import Layers
from lm.preset.mechanisms import LayerMechanism
from lm.preset.switches import Preset

Kind = Literal["mixer", "cross", "ffn"]  # "cross" stands between the others and takes the place of none

# In the order in which they stand in a layer.
MECHANISMS: dict[str, Kind] = {
    "longformer": "mixer",
    "s5": "mixer",
    "hyena": "mixer",
    "rwkv": "mixer",
    "mamba2": "mixer",
    "gla": "mixer",
    "deltanet": "mixer",
    "shared_attention": "mixer",
    "colt5_attention": "mixer",
    "retro": "cross",
    "rwkv_channel": "ffn",
    "moe": "ffn",
    "colt5": "ffn",
}

GROWING = {"attention", "shared_attention", "colt5_attention"}  # units whose state holds every token of the document, or a share of them
BY_TOKEN = {"swiglu", "relu2", "moe", "colt5"}  # units that read each token by itself
OF_ALL_TOKENS = {"shared_attention", "retro"}  # units that share with other layers, or are given, something for every token


def claimed_layers(layers: Layers, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers that `layers` names among `num_layers`. ValueError for one that is not there."""
    every = range(num_layers)
    if not isinstance(layers, str):
        beyond = [index for index in layers if index >= num_layers]
        if beyond:
            raise ValueError(f"layer {beyond[0]} is not there: the model has layers 0 to {num_layers - 1}")
        return tuple(sorted(set(layers)))
    word, _, step = layers.partition(":")
    pick = {
        "all": lambda i: True,
        "ffn": lambda i: True,
        "even": lambda i: i % 2 == 0,
        "odd": lambda i: i % 2 == 1,
        "first_half": lambda i: i < (num_layers + 1) // 2,
        "last_half": lambda i: i >= (num_layers + 1) // 2,
        "every": lambda i: (i + 1) % int(step) == 0,
    }[word]
    return tuple(filter(pick, every))


def layer_plan(preset: Preset) -> tuple[tuple[str, ...], ...]:
    """The unit names of each layer, first to last."""
    claims = {name: layers_named(preset, name) for name in MECHANISMS if has_units(preset, name)}

    def units(layer: int, kind: Kind) -> tuple[str, ...]:
        return tuple(name for name, layers in claims.items() if MECHANISMS[name] == kind and layer in layers)

    plain = (preset.model.activation,)
    return tuple((units(i, "mixer") or ("attention",)) + units(i, "cross") + (units(i, "ffn") or plain) for i in range(preset.model.num_layers))


def has_units(preset: Preset, name: str) -> bool:
    """Whether the mechanism `name` stands in layers: it is on, and is not a memory that is kept for other uses."""
    return getattr(preset, name).enabled and (name != "retro" or preset.retro.add_cross_attention)


def depths_layers(preset: Preset) -> tuple[int, ...]:
    """The layers that only some tokens read."""
    return layers_named(preset, "mixture_of_depths") if preset.mixture_of_depths.enabled else ()


def told_plan(preset: Preset) -> tuple[tuple[str, ...], ...]:
    """The layer plan as a person is told of it: "swiglu at 50 %" ends a layer that half of the tokens read, "attention both ways" reads from both ends."""
    some, share = depths_layers(preset), f"{100 * preset.mixture_of_depths.share:g} %"
    both = preset.model.bidirectional != "off"
    plan = (tuple(f"{unit} both ways" if both and reads_both_ways(unit) else unit for unit in units) for units in layer_plan(preset))
    return tuple((*units[:-1], f"{units[-1]} at {share}") if i in some else units for i, units in enumerate(plan))


def reads_both_ways(unit: str) -> bool:
    """Whether it matters to a unit from which end a text is read: not to one that reads each token by itself."""
    return unit not in BY_TOKEN


def state_grows(unit: str) -> bool:
    """Whether a unit's state grows with the document, so that a text without end can't be read."""
    return unit in GROWING


def check_plan(preset: Preset) -> None:
    """ValueError, one line, for a plan that can't be built or not be trained as the preset asks."""
    plan = layer_plan(preset)
    for name, section in preset:
        if isinstance(section, LayerMechanism) and has_units(preset, name) and not layers_named(preset, name):
            raise ValueError(f"{name}.layers: {section.layers!r} names none of {preset.model.num_layers} layers")
    for layer in range(preset.model.num_layers):
        at_layer(preset, layer)
    if preset.shared_attention.enabled:
        readers = layers_named(preset, "shared_attention")
        if len({at_layer(preset, layer).model.position_interpolation for layer in readers}) > 1:
            raise ValueError("model.position_interpolation_layers: the layers of shared_attention share their keys; name all of them or none")
    _check_depths(preset, plan)
    if not preset.train.long_context.enabled:
        return
    for layer, units in enumerate(plan):
        for unit in filter(state_grows, units):
            others = ", ".join(name for name, kind in MECHANISMS.items() if kind == "mixer" and not state_grows(name))
            raise ValueError(f"train.long_context: {unit} in layer {layer} keeps every token of a text without end; let another claim the layer: {others}")


def _check_depths(preset: Preset, plan: tuple[tuple[str, ...], ...]) -> None:
    some = depths_layers(preset)
    for layer in some:
        for unit in filter(OF_ALL_TOKENS.__contains__, plan[layer]):
            raise ValueError(f"mixture_of_depths: layer {layer} holds {unit}, which needs every token; leave the layer out of mixture_of_depths.layers")
        if preset.mixture_of_depths.select == "previous_ffn" and (layer == 0 or layer - 1 in some):
            before = "none before it" if layer == 0 else f"only layer {layer - 1} before it, which not every token reads"
            raise ValueError(f'mixture_of_depths: select "previous_ffn" needs a layer that every token reads, but layer {layer} has {before}; use layers "odd"')


def at_layer(preset: Preset, layer: int) -> Preset:
    """The preset as it is for the units of one layer: rotary positions are interpolated in some layers only, one layer of shared_attention
    makes the keys and values of all, and of a feed-forward that layers share a part is the layer's own."""
    model, sections = preset.model, {}
    chosen = _named(model.position_interpolation_layers, "model.position_interpolation_layers", preset)
    sizes = {} if model.position_interpolation == 1 or layer in chosen else {"position_interpolation": 1.0}
    sizes |= {"ffn_size": private_width(preset)} if layer in sharing_layers(preset) else {}
    sections |= {"model": model.model_copy(update=sizes)} if sizes else {}
    if preset.shared_attention.enabled and layer > layers_named(preset, "shared_attention")[0]:
        sections["shared_attention"] = preset.shared_attention.reading()
    return preset.model_copy(update=sections) if sections else preset


def private_width(preset: Preset) -> int:
    """Channels of a shared feed-forward that each layer has for itself. `preset`: as it is for the whole model."""
    return round(preset.shared_ffn.private_share * preset.model.feed_forward_size)


def sharing_layers(preset: Preset) -> tuple[int, ...]:
    """Layers that share their feed-forward: those that shared_ffn names and no mechanism claims."""
    if not preset.shared_ffn.enabled:
        return ()
    claims = [name for name, kind in MECHANISMS.items() if kind == "ffn" and getattr(preset, name).enabled]
    others = {layer for name in claims for layer in layers_named(preset, name)}
    return tuple(layer for layer in layers_named(preset, "shared_ffn") if layer not in others)


def layers_named(preset: Preset, name: str) -> tuple[int, ...]:
    """Indices of the layers that the section `name` names."""
    return _named(getattr(preset, name).layers, f"{name}.layers", preset)


def _named(layers: Layers, path: str, preset: Preset) -> tuple[int, ...]:
    try:
        return claimed_layers(layers, preset.model.num_layers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def plan_in_words(plan: tuple[tuple[str, ...], ...]) -> str:
    """The plan in a line: runs of equal layers, or of a repeated pattern, are counted: "4 x (s5, swiglu | attention, swiglu)"."""
    for period in range(1, len(plan) // 2 + 1):
        if period > 1 and all(plan[i] == plan[i % period] for i in range(len(plan))):
            pattern = " | ".join(", ".join(layer) for layer in plan[:period])
            rest = len(plan) % period
            return f"{len(plan) // period} x ({pattern})" + (f", then {plan_in_words(plan[-rest:])}" if rest else "")
        if period == 1 and len(set(plan)) == 1:
            break
    runs = [(layer, len(list(group))) for layer, group in groupby(plan)]
    return ", then ".join(f"{count} x ({', '.join(layer)})" for layer, count in runs)
