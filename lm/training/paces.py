"""How fast each preset's model was trained on this machine when it was last measured, for the menu, which looks through no journal."""

import json
import os
from pathlib import Path
from typing import Any

from data_sources.disk import discard
from lm.preset import Preset, count_parameters, model_in_words

PACES = "paces.json"


def keep_pace(folder: Path, preset: Preset, tokens_per_second: float) -> None:
    """Note what a run's first steps measured. What can't be written is measured again."""
    aside = folder / f"{PACES}.new"
    try:
        aside.write_text(json.dumps(_paces(folder) | {preset.name: [*_what_was_measured(preset), tokens_per_second]}), encoding="utf-8")
        aside.replace(folder / PACES)
    except OSError:
        discard(aside)


def kept_pace(folder: Path, preset: Preset) -> float | None:
    """Tokens a second; None where this model was never trained on this machine."""
    match _paces(folder).get(preset.name):
        case [*known, float(pace)] if known == _what_was_measured(preset):
            return pace
    return None


def _what_was_measured(preset: Preset) -> list[Any]:
    """The machine and the model."""
    return [os.uname().nodename, model_in_words(preset), count_parameters(preset, 0).total, preset.model.seq_length]


def _paces(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads((folder / PACES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
