"""A text to scroll through, coloured as JSON."""

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, VSplit, Window
from pygments import lex
from pygments.lexers.data import JsonLexer
from pygments.token import Keyword, Name, Number, String, Token

from lm.app.details import Fragments
from lm.app.list_screen import STYLE
from lm.app.words import clean

KEYS = "↑ ↓ scroll    q back"
COLOURS = ((Name.Tag, "class:good"), (String, ""), (Number, "class:warning"), (Keyword, "class:warning"), (Token, "class:quiet"))
AROUND = 4  # lines of head and keys


class Pager:
    """Shows `text` under `title` until the person goes back."""

    def __init__(self, title: str, text: str) -> None:
        self._title = title
        coloured = [(next(colour for kind, colour in COLOURS if token in kind), part) for token, part in lex(clean(text), JsonLexer())]
        self._lines = list(split_lines(coloured))
        self._top = 0

    def run(self) -> None:
        body = Window(FormattedTextControl(self._seen, focusable=True, show_cursor=False))
        head: Fragments = [("class:accent", "Perennial"), ("class:strong", f"  {self._title}\n")]
        foot = Window(FormattedTextControl([("class:quiet", KEYS)]), height=1)
        inside = HSplit([Window(FormattedTextControl(head), height=2), body, foot])
        layout = Layout(VSplit([Window(width=1), inside, Window(width=1)]))
        app: Application[None] = Application(layout=layout, key_bindings=self._bindings(), style=STYLE, full_screen=True)
        app.ttimeoutlen = 0.05
        app.run()

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -20, "pagedown": 20, " ": 20, "home": -len(self._lines), "end": len(self._lines)}
        for key, distance in moves.items():
            bindings.add(key)(lambda event, distance=distance: self._scroll(distance))
        for key in ("q", "escape", "c-c", "c-d", "enter"):
            bindings.add(key, eager=True)(lambda event: event.app.exit())
        return bindings

    def _seen(self) -> Fragments:
        return [fragment for line in self._lines[self._top :] for fragment in (*line, ("", "\n"))]

    def _scroll(self, distance: int) -> None:
        room = get_app().output.get_size().rows - AROUND
        self._top = max(min(self._top + distance, len(self._lines) - room), 0)
