"""Training: the loop, the learner, the optimizer, snapshots, the processes, and what they tell of it.

Nothing is imported before it is asked for: a page that lists snapshots (headers.py) must not wait for torch.
"""

from importlib import import_module
from typing import Any

__all__ = ["Halted", "Summary", "train"]  # noqa: F822 - served by __getattr__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lm.training.loop"), name)
