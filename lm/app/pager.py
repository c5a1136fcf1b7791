"""A page to scroll through."""

import io
import os
from collections.abc import Callable, Mapping

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text import ANSI, to_formatted_text
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, VSplit, Window
from rich.console import Console, RenderableType

from lm.app.details import Fragments
from lm.app.list_screen import STYLE

KEYS = "q back"
AROUND = 3  # lines of head and keys
MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -20, "pagedown": 20, " ": 20, "home": -1_000_000, "end": 1_000_000}


class Pager:
    """Shows under `title` what `content` draws for a width, until the person goes back, or presses one of the keys of `actions`."""

    def __init__(self, title: str, content: Callable[[int], RenderableType], actions: Mapping[str, str] | None = None) -> None:
        self._title, self._content, self._actions = title, content, actions or {}
        self._lines: list[Fragments] = []
        self._width = self._top = 0

    def run(self) -> str:
        """The key of an action, or an empty string."""
        body = Window(FormattedTextControl(self._seen, focusable=True, show_cursor=False))
        head: Fragments = [("class:accent", "Perennial"), ("class:strong", f"  {self._title}\n")]
        foot = Window(FormattedTextControl(self._foot), height=1)
        inside = HSplit([Window(FormattedTextControl(head), height=2), body, foot])
        layout = Layout(VSplit([Window(width=1), inside, Window(width=1)]))
        app: Application[str] = Application(layout=layout, key_bindings=self._bindings(), style=STYLE, full_screen=True)
        app.ttimeoutlen = 0.05
        return app.run()

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        for key, distance in MOVES.items():
            bindings.add(key)(lambda event, distance=distance: self._scroll(distance))
        for key in ("q", "escape", "c-c", "c-d", "enter"):
            bindings.add(key, eager=True)(lambda event: event.app.exit(""))
        for key in self._actions:
            bindings.add(key)(lambda event, key=key: event.app.exit(key))
        return bindings

    def _seen(self) -> Fragments:
        """The lines in view, drawn anew when the width has changed."""
        width = max(get_app().output.get_size().columns - 2, 1)
        if width != self._width:
            self._lines, self._width = drawn(self._content(width), width), width
        self._scroll(0)
        return [fragment for line in self._lines[self._top : self._top + _room()] for fragment in (*line, ("", "\n"))]

    def _foot(self) -> Fragments:
        last = min(self._top + _room(), len(self._lines))
        keys = "   ".join([KEYS, *(f"{key} {does}" for key, does in self._actions.items())])
        place = f"↑↓ scroll   {keys}   lines {self._top + 1} to {last} of {len(self._lines)}"
        return [("class:quiet", place if len(self._lines) > _room() else keys)]

    def _scroll(self, distance: int) -> None:
        self._top = max(min(self._top + distance, len(self._lines) - _room()), 0)


def drawn(content: RenderableType, width: int) -> list[Fragments]:
    """Lines as prompt_toolkit takes them."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard", no_color="NO_COLOR" in os.environ, _environ={})
    with console.capture() as capture:
        console.print(content)
    return list(split_lines(to_formatted_text(ANSI(capture.get().rstrip("\n")))))


def _room() -> int:
    """Lines between head and keys."""
    return max(get_app().output.get_size().rows - AROUND, 1)
