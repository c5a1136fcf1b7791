"""Lines of a screen: side by side, under a title, wrapped. Every line is a rich Text, in which nothing is taken for markup."""

from collections.abc import Sequence

from rich.cells import cell_len, chop_cells
from rich.text import Text

Lines = list[Text]

ACCENT, QUIET, LABEL = "green", "dim", "dim"
ACCENTED = ("\x1b[32m", "\x1b[39m")  # what begins and ends ACCENT in words that are not rich's
TONES = {"quiet": QUIET, "good": "green", "warning": "yellow", "bad": "red"}


def spans(*parts: tuple[str, str] | str) -> Text:
    """A line of words, each plain or with its style."""
    return Text.assemble(*parts, no_wrap=True, end="")


def fitted(line: Text, width: int) -> Text:
    """A copy of `line` of exactly `width` cells, cut with an ellipsis or filled with blanks."""
    copy = line.copy()
    copy.truncate(width, overflow="ellipsis", pad=True)
    return copy


def apart(left: Text, right: Text, width: int) -> Text:
    """`left` and `right` at the two ends of a line. What does not fit is cut from the left one."""
    room = max(width - right.cell_len - 1, 0)
    return fitted(spans(), width) if width <= 0 else fitted(Text.assemble(fitted(left, room), " ", right, no_wrap=True, end=""), width)


def beside(left: Lines, right: Lines, left_width: int, right_width: int, gap: int = 3) -> Lines:
    """Two blocks side by side, as high as the higher one."""
    height = max(len(left), len(right))
    pairs = zip(filled(left, height), filled(right, height), strict=True)
    return [Text.assemble(fitted(a, left_width), " " * gap, fitted(b, right_width), no_wrap=True, end="") for a, b in pairs]


def filled(lines: Sequence[Text], height: int) -> Lines:
    """Exactly `height` lines: empty ones are added below, or the last are cut."""
    return [*lines[:height], *(Text("", end="") for _ in range(height - len(lines)))]


def title(words: str, width: int, after: str = "") -> Text:
    """A heading with a thin line to the right edge."""
    line = spans((words, f"bold {ACCENT}"), (f" {after}" if after else "", ""), " ")
    line.append("─" * max(width - line.cell_len, 0), style=QUIET)
    return line


def packed(cells: Sequence[Text], width: int, gap: int = 2) -> Lines:
    """`cells` in few lines of at most `width`, none of them broken: each in the first line that has room for it."""
    lines: Lines = []
    for cell in cells:
        room = (number for number, line in enumerate(lines) if line.cell_len + gap + cell.cell_len <= width)
        if (number := next(room, None)) is None:
            lines.append(cell)
        else:
            lines[number] = Text.assemble(lines[number], " " * gap, cell, no_wrap=True, end="")
    return lines


def wrapped(line: Text, width: int, height: int) -> Lines:
    """`line` broken between words into at most `height` lines; the last ends with an ellipsis when there was more."""
    starts = _breaks(line.plain, max(width, 1))
    pieces = list(line.divide(starts)) if starts else [line]
    for piece in pieces:
        piece.rstrip()
    if len(pieces) > height:
        last = pieces[height - 1]
        last.truncate(max(width - 1, 0))
        last.append("…")
    return pieces[:height]


def _breaks(text: str, width: int) -> list[int]:
    """Places where a new line begins."""
    starts: list[int] = []
    used = place = 0
    for word in _words(text):
        cells = cell_len(word.rstrip())
        if used and used + cells > width:
            starts.append(place)
            used = 0
        for part in chop_cells(word, width)[:-1] if cells > width else []:
            place += len(part)
            starts.append(place)
            word = word[len(part) :]
        used += cell_len(word)
        place += len(word)
    return starts


def _words(text: str) -> list[str]:
    """Words with the blanks that follow them."""
    words: list[str] = []
    for part in text.split(" "):
        words.append(part + " ")
    if words:
        words[-1] = words[-1][:-1]
    return words
