"""From bytes to token sequences: sources, their order, held-out text, packing, cursors. Knows nothing of the model.

Nothing is imported before it is asked for: the menu reads `data_sources.config` long before torch is needed.
"""

from importlib import import_module
from typing import Any

PLACES = {
    "Batch": "data_sources.batch",
    "open_stream": "data_sources.stream",
    "Options": "data_sources.stream",
    "WeightSchedule": "data_sources.weights",
    "merge_cursors": "data_sources.cursor",
    "reopened": "data_sources.cursor",
    "SourcesFailed": "data_sources.documents",
    "Prefetch": "data_sources.prefetch",
    "HeldOutStore": "data_sources.held_out",
}

__all__ = ["Batch", "HeldOutStore", "Options", "Prefetch", "SourcesFailed", "WeightSchedule", "merge_cursors", "open_stream", "reopened"]  # noqa: F822 - served by __getattr__


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
