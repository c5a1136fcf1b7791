"""How fast each preset's model was trained or tried on this machine when it was last measured, and on which devices of it, for the menu, which looks through no
journal and can't know on what the next run will be."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from lm.preset import Preset
from lm.preset.compare import BESIDE_STEPS, in_force
from lm.training.kept import keep, read_kept

PACES = "paces.json"
# By which numbers weights change: that changes no step's time.
RATES = {"learning_rate", "base_width", "warmup_share", "decay_share", "weight_decay", "momentum", "beta1", "beta2", "grad_clip", "seed"}


class Pace(NamedTuple):
    """What was measured."""

    tokens_per_second: float  # of all processes together
    devices: str  # in words, with the precision: "2 x CPU (1 thread), float32"
    device_share: float | None  # of what they can multiply; None where that is not known
    reading_bytes: int | None = None  # that the rows which are read at once take, on each device


def keep_pace(folder: Path, preset: Preset, pace: Pace) -> None:
    """Note what a run's steps measured."""
    keep(folder / PACES, read_kept(folder / PACES) | {preset.name: [*_what_was_measured(preset), *pace]})


def kept_pace(folder: Path, preset: Preset) -> Pace | None:
    """The last that was noted; None where this model was never trained in this way on this machine."""
    match read_kept(folder / PACES).get(preset.name):
        case [*known, float(pace), str(devices), (float() | None) as share, (int() | None) as reading] if known == _what_was_measured(preset):
            return Pace(pace, devices, share, reading)
    return None


def _what_was_measured(preset: Preset) -> list[Any]:
    """The machine, and a digest of what the preset asks of a step."""
    asked = in_force(preset)
    del asked["name"], asked["about"]
    asked["data"] = preset.data.tokenizer, preset.data.vocab_size  # what of it makes the model another one
    asked["train"] = {switch: value for switch, value in asked["train"].items() if switch not in RATES | BESIDE_STEPS}
    return [os.uname().nodename, hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]]
