"""How wide what goes into each unit's output matrix is (the parameter `output`, which writes into the residual stream)."""

from collections.abc import Callable

from lm.preset.switches import Preset


def _heads(preset: Preset) -> int:
    return preset.model.num_heads * preset.model.head_size


def _hidden(preset: Preset) -> int:
    return preset.model.hidden_size


# A unit that is not here has no such matrix, and options of the plan that change it refuse the unit.
OUTPUT_WIDTHS: dict[str, Callable[[Preset], int]] = {
    "attention": _heads,
    "longformer": _heads,
    "shared_attention": _heads,
    "retro": _heads,
    "s5": _hidden,
    "hyena": _hidden,
    "rwkv": _hidden,
    "gla": _hidden,
    "mamba2": lambda preset: preset.mamba2.expand * preset.model.hidden_size,
    "deltanet": lambda preset: preset.model.num_heads * (preset.deltanet.value_size or preset.model.head_size),
    "swiglu": lambda preset: preset.model.feed_forward_size,
    "relu2": lambda preset: preset.model.feed_forward_size,
    "rwkv_channel": lambda preset: preset.model.channel_mix_size,
}
