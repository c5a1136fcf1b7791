"""Text that comes in pieces, broken into lines between words as it comes. Only a word that is not yet whole waits.

Writing, such as Chinese, that has no blanks may break between any two of its wide characters, so none of them waits. A word longer
than a line is broken where the line ends.
"""

from collections.abc import Callable, Iterable
from typing import TextIO

from rich.cells import cell_len, chop_cells

from lm.app.words import clean

TAB = " " * 4
ON, OFF = "\x0e", "\x0f"  # stand in words where an accent begins and ends; they take no room, and no piece has them once it is harmless


def flow(
    pieces: Iterable[str], out: TextIO, width: Callable[[], int], accents: Callable[[], bool] = lambda: False, accented: tuple[str, str] = ("", "")
) -> bool:
    """Write `pieces` to a terminal as they come, made harmless and without blanks before the first word. Whether there was any word.

    accents: whether the newest piece is to stand out; accented: what the terminal is told before and after. Ctrl-C ends it early.
    """
    lines, started = Lines(width), False

    def write(text: str) -> None:
        told = text.encode(out.encoding, "replace").decode(out.encoding).replace(ON, accented[0]).replace(OFF, accented[1])
        out.write(told)
        out.flush()

    try:
        for piece in pieces:
            shown = clean(piece) if started else clean(piece).lstrip()
            started = started or bool(shown)
            write(lines.add(_marked(shown) if accents() else shown))
    except KeyboardInterrupt:
        pass
    write(lines.rest())
    return started


def _marked(piece: str) -> str:
    """`piece` with an accent on its words. Blanks at its ends have none, so that they are left out where a line ends."""
    words = piece.strip()
    return piece.replace(words, f"{ON}{words}{OFF}") if words else piece


class Lines:
    """Takes text piece by piece and gives it back with line breaks, to be written at once. `width` is asked again for each word."""

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._last_width = width()
        self._column = 0  # cells of the line that are written
        self._blanks = ""  # since the last word; they are left out where a line ends
        self._word = ""  # not whole yet

    def add(self, piece: str) -> str:
        """What `piece` makes certain."""
        return "".join(map(self._take, piece.replace("\t", TAB)))

    def rest(self) -> str:
        """The last word, when nothing more will come."""
        return self._whole()

    def _take(self, character: str) -> str:
        if character == "\n":
            done = self._whole() + "\n"
            self._column, self._blanks = 0, ""
            return done
        if character == " ":
            done = self._whole()
            self._blanks += character
            return done
        if cell_len(character) > 1:
            done = self._whole() if cell_len(self._word) else ""
            self._word += character
            return done + self._whole()
        self._word += character
        return self._whole() if cell_len(self._word) >= self._room() else ""

    def _room(self) -> int:
        """Cells of a line. A terminal that became narrower has broken what was written by itself."""
        width = max(self._width(), 1)
        if width < self._last_width:
            self._column %= width
        self._last_width = width
        return width

    def _whole(self) -> str:
        """The word, on this line or on the next."""
        word, blanks, room = self._word, self._blanks, self._room()
        if not word:
            return ""
        self._word = self._blanks = ""
        size = cell_len(word)
        if not size or self._column + len(blanks) + size <= room:  # where an accent ends takes no room, also behind the edge
            self._column += len(blanks) + size
            return blanks + word
        parts = chop_cells(word, room)
        before = "\n" if self._column else ""
        self._column = cell_len(parts[-1])
        return before + "\n".join(parts)
