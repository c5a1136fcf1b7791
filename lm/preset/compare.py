"""Where two presets differ, in words, and what of one counts."""

from collections.abc import Collection
from typing import Any

from lm.preset.switches import Preset

LONGEST_VALUE = 60
# Switches of `train` about what is done between steps and beside them: neither what a step learns nor how long it takes.
BESIDE_STEPS = {"train_tokens", "eval_tokens", "evaluate_every_tokens", "sample_every_tokens", "snapshot_every_tokens", "snapshot_every_minutes"}
BESIDE_STEPS |= {"tensorboard", "replay_share", "replay_megabytes"}


def in_force(preset: Preset) -> dict[str, Any]:
    """What of `preset` training may depend on, as JSON: neither mechanisms that are off nor how chat writes, so that a switch which is new there
    makes no other preset of it."""
    said = preset.model_dump(mode="json", exclude={"generation"})
    return {name: section for name, section in said.items() if not (isinstance(section, dict) and section.get("enabled") is False)}


def changed_switches(before: Preset, now: Preset, without: Collection[str] = ()) -> list[str]:
    """ "model.rope_theta was 10000.0 and is 500000.0" for each switch whose JSON path, and no section of it, is in `without`."""
    return [f"{path} {_in_words(old, new)}" for path, old, new in _changed(before.model_dump(), now.model_dump(), without)]


def _in_words(old: Any, new: Any) -> str:
    """ "was 0.1 and is 0.2"; what is long, as a list of sources is, is not shown."""
    had, has = repr(old), repr(new)
    if len(has) > LONGEST_VALUE:
        return "is another"
    return f"was {had} and is {has}" if len(had) <= LONGEST_VALUE else f"was another and is {has}"


def _changed(old: Any, new: Any, without: Collection[str], path: str = "") -> list[tuple[str, Any, Any]]:
    """JSON paths at which two presets differ, with both values."""
    if path in without:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [found for key in old | new for found in _changed(old.get(key), new.get(key), without, f"{path}.{key}" if path else key)]
    return [] if old == new else [(path, old, new)]
