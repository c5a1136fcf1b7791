"""How fast each preset's model was trained or tried on this machine when it was last measured, and on which devices of it, for the menu, which looks through no
journal and can't know on what the next run will be."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from lm.preset import Preset, count_parameters, model_in_words
from lm.training.kept import keep, read_kept

PACES = "paces.json"


class Pace(NamedTuple):
    """What was measured."""

    tokens_per_second: float  # of all processes together
    devices: str  # in words, with the precision: "2 x CPU (1 thread), float32"
    device_share: float | None  # of what they can multiply; None where that is not known


def keep_pace(folder: Path, preset: Preset, pace: Pace) -> None:
    """Note what a run's steps measured."""
    keep(folder / PACES, read_kept(folder / PACES) | {preset.name: [*_what_was_measured(preset), *pace]})


def kept_pace(folder: Path, preset: Preset) -> Pace | None:
    """The last that was noted; None where this model was never trained in this way on this machine."""
    match read_kept(folder / PACES).get(preset.name):
        case [*known, float(tokens_per_second), str(devices), (float() | None) as share] if known == _what_was_measured(preset):
            return Pace(tokens_per_second, devices, share)
    return None


def _what_was_measured(preset: Preset) -> list[Any]:
    """The machine, the model, and what the preset asks of its steps."""
    model = [model_in_words(preset), count_parameters(preset, 0).total, preset.model.seq_length]
    return [os.uname().nodename, *model, preset.train.optimizer, preset.train.precision, preset.train.compile, preset.train.per_gpu_batch_size]
