"""Presets: every switch there is, how a file of them is read, and what model it describes. Imports no torch."""

from lm.preset.counting import ParameterCount, count_parameters
from lm.preset.decode import PresetError, load_preset, preset_from_json
from lm.preset.options import Options, layer_options, model_in_words
from lm.preset.plan import MECHANISMS, at_layer, depths_layers, layer_plan, plan_in_words
from lm.preset.switches import RUN_TOKENS, Preset

__all__ = [
    "MECHANISMS",
    "RUN_TOKENS",
    "Options",
    "ParameterCount",
    "Preset",
    "PresetError",
    "at_layer",
    "count_parameters",
    "depths_layers",
    "layer_options",
    "layer_plan",
    "load_preset",
    "model_in_words",
    "plan_in_words",
    "preset_from_json",
]
