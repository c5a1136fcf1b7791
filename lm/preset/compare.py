"""Where two presets differ, in words."""

from collections.abc import Collection
from typing import Any

from lm.preset.switches import Preset

LONGEST_VALUE = 60


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
