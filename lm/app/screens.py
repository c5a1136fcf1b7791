"""The screens by name. Each is imported when it is chosen, so that the menu waits for none."""

from collections.abc import Callable

from lm.app.menu import ask
from lm.app.run_screen import Outcome
from lm.app.terminal import in_a_line, log_traceback
from lm.preset import Preset

__all__ = ["ask", "show", "train"]


def train(preset: Preset, is_alone: bool) -> Outcome:
    """The live screen of a run."""
    from lm.app.run_screen import train_with_screen

    return train_with_screen(preset, is_alone)


def show(name: str) -> str:
    """One of the other screens. A line for the menu, empty when there is nothing to say; never an error."""
    try:
        return SCREENS[name]()
    except Exception as error:
        log_traceback(error)
        return f"That screen failed. {in_a_line(error)}"


def _chat() -> str:
    from lm.app.chat_screen import chat

    return chat()


def _evaluate() -> str:
    from lm.app.evaluate_screen import evaluate

    return evaluate()


def _presets() -> str:
    from lm.app.presets_screen import presets

    return presets()


def _reading() -> str:
    from lm.app.reading_screen import reading

    return reading()


SCREENS: dict[str, Callable[[], str]] = {"chat": _chat, "evaluate": _evaluate, "reading": _reading, "presets": _presets}
