"""The screens by name. Each is imported when it is chosen, so that the menu waits for none."""

from collections.abc import Callable

from lm.app.menu import ask
from lm.app.run_screen import Outcome
from lm.app.terminal import in_a_line, log_traceback
from lm.preset import Preset

__all__ = ["ask", "settled", "show", "train"]


def train(preset: Preset, is_alone: bool) -> Outcome:
    """The live screen of a run."""
    from lm.app.run_screen import train_with_screen

    return train_with_screen(preset, is_alone)


def settled(preset: Preset) -> str | None:
    """None where a run can begin; a line for the menu where a person was asked, and does not want it."""
    from lm.app.change_screen import settled

    return settled(preset)


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


def _compare() -> str:
    from lm.app.compare_screen import compare

    return compare()


def _back() -> str:
    from lm.app.back_screen import back

    return back()


def _export() -> str:
    from lm.app.export_screen import export

    return export()


SCREENS: dict[str, Callable[[], str]] = {
    "chat": _chat,
    "evaluate": _evaluate,
    "reading": _reading,
    "presets": _presets,
    "compare": _compare,
    "back": _back,
    "export": _export,
}
