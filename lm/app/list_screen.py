"""A full screen with a list and, beside or under it, what there is to say about the chosen entry.

head                       head, in a narrow terminal
list   | about it          list
       |                   about it
keys                       keys
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text.utils import fragment_list_width
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, DynamicContainer, FormattedTextControl, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.margins import ConditionalMargin, ScrollbarMargin
from prompt_toolkit.styles import Style

from lm.app.details import Fragments

WIDE, LEAST_WIDTH, LEAST_HEIGHT = 76, 40, 14
LIST_WIDTHS, ROOMY_FROM = (24, 30), 100  # below that many columns and from there on
GAP, DETAILS_HEIGHT = 3, 12  # the details of a preset with four sources
BACK = "back"

STYLE = Style.from_dict(
    {"accent": "ansigreen bold", "strong": "bold", "quiet": "dim", "bad": "ansired", "good": "ansigreen", "warning": "ansiyellow", "chosen": "ansigreen bold"}
)


class Entry(NamedTuple):
    """A line of the list. An empty label is a gap that the cursor passes over."""

    label: str
    about: Callable[[int], Fragments] = lambda width: []
    can_be_picked: bool = True
    mark: str = ""


GAP_ENTRY = Entry("")


class Picked(NamedTuple):
    """What was done (a name from `actions`, or BACK), and with which entry."""

    action: str
    index: int


class ListScreen:
    """Shows entries until one is picked. `actions` maps keys to names; only an entry that can be picked answers to `strict` ones."""

    def __init__(
        self,
        head: Callable[[int], Fragments],
        entries: Sequence[Entry],
        cursor: int,
        actions: Mapping[str, str],
        strict: Sequence[str],
        keys: str,
    ) -> None:
        self._head, self._entries, self._cursor = head, entries, cursor
        self._actions, self._strict, self._keys = actions, strict, keys

    def run(self) -> Picked:
        """Blocks until something is picked or the person goes back."""
        app: Application[Picked] = Application(layout=self._layout(), key_bindings=self._bindings(), style=STYLE, full_screen=True)
        app.ttimeoutlen = 0.05
        return app.run()

    # Keys

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10, "home": -len(self._entries), "end": len(self._entries)}
        for key, distance in moves.items():
            bindings.add(key)(self._moving(distance))
        for key, action in self._actions.items():
            bindings.add(key)(self._acting(action))
        for key in ("q", "escape", "c-c", "c-d"):
            bindings.add(key, eager=True)(lambda event: event.app.exit(Picked(BACK, self._cursor)))
        return bindings

    def _moving(self, distance: int) -> Callable[[KeyPressEvent], None]:
        def move(event: KeyPressEvent) -> None:
            step = 1 if distance > 0 else -1
            for _ in range(abs(distance)):
                place = self._cursor + step
                while 0 <= place < len(self._entries) and not self._entries[place].label:
                    place += step
                if not 0 <= place < len(self._entries):
                    break
                self._cursor = place

        return move

    def _acting(self, action: str) -> Callable[[KeyPressEvent], None]:
        def act(event: KeyPressEvent) -> None:
            if self._entries[self._cursor].can_be_picked or action not in self._strict:
                event.app.exit(Picked(action, self._cursor))
            else:
                event.app.output.bell()

        return act

    # Drawing

    def _layout(self) -> Layout:
        listed = FormattedTextControl(self._list, focusable=True, show_cursor=False, get_cursor_position=self._place)
        bar = ConditionalMargin(ScrollbarMargin(), Condition(self._has_bar))
        entries = Window(listed, width=self._list_width, right_margins=[bar])
        about = Window(FormattedTextControl(self._about), width=None)
        roomy = Condition(_is_roomy)
        side_by_side = VSplit([entries, Window(width=GAP), about])
        stacked = HSplit(
            [
                HSplit([entries], height=self._list_height),
                ConditionalContainer(HSplit([Window(height=1, char="─", style="class:quiet"), about]), roomy),
            ]
        )
        body = DynamicContainer(lambda: side_by_side if _is_wide() else stacked)
        head = Window(FormattedTextControl(lambda: self._head(_width() - 2)), height=lambda: self._head_height(), dont_extend_height=True)
        foot = ConditionalContainer(Window(FormattedTextControl([("class:quiet", self._keys)]), height=1), roomy)
        inside = HSplit([head, body, foot])
        return Layout(VSplit([Window(width=1), inside, Window(width=1)]), focused_element=entries)

    def _place(self) -> Point:
        return Point(0, self._cursor)

    def _list_width(self) -> int | None:
        return _beside() if _is_wide() else None

    def _list_height(self) -> int | None:
        """All entries, or what the details leave."""
        return min(len(self._entries), self._list_room()) if _is_roomy() else None

    def _list_room(self) -> int:
        """Lines that a list may have."""
        below = 0 if not _is_roomy() else 1 if _is_wide() else DETAILS_HEIGHT + 2
        return max(_height() - self._head_height() - below, 3)

    def _has_bar(self) -> bool:
        """Whether a bar beside the list shows that there is more of it."""
        return _is_roomy() and self._list_room() < len(self._entries)

    def _head_height(self) -> int:
        """Without its last line, which is blank, where the list then fits that would not."""
        lines = sum(text.count("\n") for _, text in self._head(_width() - 2)) or 1
        return lines - (lines > 2 and _is_wide() and _height() - lines == len(self._entries))

    def _list(self) -> Fragments:
        out: Fragments = []
        room = (_beside() if _is_wide() else _width() - 2) - 2 - self._has_bar()
        for number, entry in enumerate(self._entries):
            chosen = number == self._cursor
            style = "class:chosen" if chosen else "" if entry.can_be_picked else "class:quiet"
            marked = [("class:bad", f" {entry.mark}")] if entry.mark else []
            label = [(style, ("❯ " if chosen else "  ") + _cut(entry.label, room - 2 * len(marked)))]
            out += [*label, *marked, ("", "\n" if number < len(self._entries) - 1 else "")]
        return out

    def _about(self) -> Fragments:
        room = _width() - 2 - (_beside() + GAP if _is_wide() else 0)
        return self._entries[self._cursor].about(min(room, 96))


def _cut(text: str, width: int) -> str:
    """`text` in at most `width` cells."""
    if fragment_list_width([("", text)]) <= width:
        return text
    while text and fragment_list_width([("", text)]) > width - 1:
        text = text[:-1]
    return text + "…"


def _is_roomy() -> bool:
    """Whether there is room for more than the list."""
    return _width() >= LEAST_WIDTH and _height() >= LEAST_HEIGHT


def _is_wide() -> bool:
    """Whether there is room for it beside the list."""
    return _width() >= WIDE and _height() >= LEAST_HEIGHT


def _beside() -> int:
    """Columns of a list that has something beside it."""
    return LIST_WIDTHS[_width() >= ROOMY_FROM]


def _width() -> int:
    return get_app().output.get_size().columns


def _height() -> int:
    return get_app().output.get_size().rows
