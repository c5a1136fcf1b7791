"""The screens by name. Each is imported when it is chosen, so that the menu waits for none."""

from collections.abc import Callable

from lm.app.menu import ask
from lm.app.run_screen import Outcome
from lm.preset import Preset

__all__ = ["SCREENS", "ask", "train"]


def train(preset: Preset, is_alone: bool) -> Outcome:
    """The live screen of a run."""
    from lm.app.run_screen import train_with_screen

    return train_with_screen(preset, is_alone)


def _chat() -> str:
    from lm.app.chat_screen import chat

    return chat()


def _evaluate() -> str:
    from lm.app.evaluate_screen import evaluate

    return evaluate()


def _presets() -> str:
    from lm.app.presets_screen import presets

    return presets()


# Each gives back a line for the menu, empty when there is nothing to say.
SCREENS: dict[str, Callable[[], str]] = {"chat": _chat, "evaluate": _evaluate, "presets": _presets}
