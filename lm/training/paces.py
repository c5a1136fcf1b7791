"""How fast each preset's model was trained on this machine when it was last measured, for the menu, which looks through no journal."""

import os
from pathlib import Path
from typing import Any

from lm.preset import Preset, count_parameters, model_in_words
from lm.training.kept import keep, read_kept

PACES = "paces.json"


def keep_pace(folder: Path, preset: Preset, tokens_per_second: float) -> None:
    """Note what a run's first steps measured."""
    keep(folder / PACES, read_kept(folder / PACES) | {preset.name: [*_what_was_measured(preset), tokens_per_second]})


def kept_pace(folder: Path, preset: Preset) -> float | None:
    """Tokens a second; None where this model was never trained on this machine."""
    match read_kept(folder / PACES).get(preset.name):
        case [*known, float(pace)] if known == _what_was_measured(preset):
            return pace
    return None


def _what_was_measured(preset: Preset) -> list[Any]:
    """The machine and the model."""
    return [os.uname().nodename, model_in_words(preset), count_parameters(preset, 0).total, preset.model.seq_length]
