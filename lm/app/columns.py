"""Answers side by side: each in a column under what it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from lm.app.earlier import KINDS, moment
from lm.app.text import ACCENT, QUIET, Lines, filled, fitted, spans, wrapped
from lm.app.words import clean
from lm.training.headers import Header

SIDE_BY_SIDE_FROM, LEAST_COLUMN, GAP = 110, 36, 3
ENDLESS = 1_000_000  # lines


@dataclass
class Answer:
    """What a snapshot wrote so far."""

    kind: str
    header: Header
    text: str = ""
    note: str = ""  # in the place of a text
    stopped: bool = False  # not whole yet, or never
    trouble: str = ""  # that it was written with


def per_row(count: int, width: int) -> int:
    """How many of `count` answers stand side by side in `width` columns: in rows of about equal length, one alone in a narrow terminal."""
    most = (width + GAP) // (LEAST_COLUMN + GAP) if width >= SIDE_BY_SIDE_FROM else 1
    rows = -(-count // most)
    return -(-count // rows)


def in_columns(answers: Sequence[Answer], width: int, height: int = ENDLESS) -> Text:
    """All answers, in rows of columns; the last `height` lines of them."""
    across = per_row(len(answers), width)
    room = (width - GAP * (across - 1)) // across
    lines: Lines = []
    for start in range(0, len(answers), across):
        columns = [_column(answer, room) for answer in answers[start : start + across]]
        tallest = max(map(len, columns))
        rows = zip(*(filled(column, tallest) for column in columns), strict=True)
        lines += [Text((" " * GAP), end="").join(fitted(cell, room) for cell in row) for row in rows]
        lines.append(Text("", end=""))
    return Text("\n").join(lines[-height:])


def _column(answer: Answer, width: int) -> Lines:
    name = spans((KINDS[answer.kind][0], f"bold {ACCENT}"), (f" · {answer.header.life_tokens:,} tokens", QUIET))
    about = spans((moment(answer.header), QUIET))
    lines = [spans(part) for part in clean(answer.text).strip().split("\n")] if answer.text.strip() else [spans((answer.note, QUIET))]
    return [name, about, *(part for line in lines for part in wrapped(line, width, ENDLESS))]
