"""From a row of a table to a text: which columns, under which name, put together how, and what of it is learned."""

import string
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from data_sources.catalogue import ALIASES
from data_sources.config import TableSource
from data_sources.documents import GivenUp, Spans
from data_sources.lines import LONGEST
from data_sources.text import OPENING, heading

LONG = f"longer than {LONGEST >> 20} million characters and were passed over"
DEEPEST = 4  # lists in lists; an answer stands in one


class Passage(NamedTuple):
    """The text of a row, the characters of it that are learned, None for all, and its title, empty where it has none."""

    text: str
    scored: Spans | None = None
    title: str = ""


class Passages(NamedTuple):
    """The same of many rows, column by column, and which of a block's rows they are, from 0."""

    texts: list[str]
    scored: list[Spans | None]
    titles: list[str]
    rows: list[int]

    @classmethod
    def of(cls, passages: Sequence[Passage | None]) -> "Passages":
        """Those that are there."""
        found = [(*passage, row) for row, passage in enumerate(passages) if passage is not None]
        return cls(*(list(column) for column in zip(*found, strict=True))) if found else cls([], [], [], [])


class Notes:
    """Lines for the log, each said once, and counts of what was passed over, said when they have doubled."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._said: set[str] = set()
        self._counts: dict[str, int] = {}

    def say(self, line: str) -> None:
        """Add `line`, unless it was said before."""
        if line not in self._said:
            self._said.add(line)
            self._lines.append(printable(line))

    def count(self, what: str, number: int) -> None:
        """`number` more of `what`. A line at 1, 2, 4, 8...: a log must not grow as fast as the damage."""
        before = self._counts.get(what, 0)
        self._counts[what] = before + number
        if number and (before + number).bit_length() > before.bit_length():
            self._lines.append(f"{before + number} {what}")

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines


class RowFormat:
    """Turns rows into texts as a source's `text_field`, `fields` and `format` say."""

    def __init__(self, source: TableSource, notes: Notes, titled: bool = False):
        """titled: rows of objects tell their titles, and `title_column` where a table has them."""
        self._wanted = source.columns
        self._pieces = _pieces_of(source)
        self._is_bare = self._pieces == [("", self._wanted[0])]  # a column as it stands
        self._answer = source.answer if source.loss_on == "answer" else None
        self._title = source.title_field if titled else None
        self._notes = notes

    @cached_property
    def known(self) -> frozenset[str]:
        """Names of columns that are looked at, where a table has them."""
        return frozenset(chain(self._wanted, *(row for row in ALIASES if not set(self._wanted).isdisjoint(row))))

    def columns(self, present: Collection[str]) -> dict[str, str]:
        """The column behind each wanted name: itself or a known alias. GivenUp lists the columns there are."""
        return {name: self._column(name, present) for name in self._wanted}

    def _column(self, name: str, present: Collection[str]) -> str:
        if name in present:
            return name
        aliases = next((row for row in ALIASES if name in row), ())
        alias = next((other for other in aliases if other in present), None)
        if alias is None:
            raise GivenUp(f'no column "{name}"; there are: {", ".join(map(str, present)) or "none"}')
        self._notes.say(f'no column "{name}"; "{alias}" is read in its place')
        return alias

    def passage(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Passage | None:
        """The text of one row, or None where a column holds no text."""
        values = [as_text(row.get(column)) for column in columns.values()]
        if None in values:
            return None
        title = self.title_column(columns)
        return self._joined(values) if title is None else self._joined(values)._replace(title=title_of(row.get(title)))

    def title_column(self, columns: Mapping[str, str]) -> str | None:
        """The column of titles, which is not in every table. None where none is wanted, or where it is a part of the text, as `columns` tells."""
        return None if self._title in columns.values() else self._title

    def passages(self, cells: Mapping[str, Sequence[Any]], columns: Mapping[str, str]) -> Passages:
        """The texts of a table's rows, of which `cells` has the columns; those without are counted, and those that are too long."""
        texts = [_texts(cells[column]) for column in columns.values()]
        if self._is_bare:
            rows = [row for row, text in enumerate(texts[0]) if text is not None]
            found = Passages([texts[0][row] for row in rows], [None] * len(rows), [""] * len(rows), rows)
        else:
            found = Passages.of([None if None in values else self._joined(values) for values in zip(*texts, strict=True)])
        self._notes.count("rows held no text and were passed over", len(texts[0]) - len(found.texts))
        return self.bounded(found)

    def _joined(self, values: Sequence[str]) -> Passage:
        """What the format makes of a row's texts, one for each wanted name."""
        text, learned = "", []
        for literal, name in self._pieces:
            text += literal
            if name is not None:
                value = values[self._wanted.index(name)]
                if name == self._answer:
                    learned.append((len(text), len(text) + len(value)))
                text += value
        return Passage(text, tuple(learned) if self._answer else None)

    def bounded(self, passages: Passages) -> Passages:
        """`passages` without those that are too long, which are counted."""
        if max(map(len, passages.texts), default=0) <= LONGEST:
            return passages
        kept = [index for index, text in enumerate(passages.texts) if len(text) <= LONGEST]
        self._notes.count(f"texts were {LONG}", len(passages.texts) - len(kept))
        return Passages(*([column[index] for index in kept] for column in passages))


def _pieces_of(source: TableSource) -> list[tuple[str, str | None]]:
    """What a source's text is put together from: what stands before a column, and the column."""
    if source.format is None:
        return [("\n" if number else "", name) for number, name in enumerate(source.columns)]
    return [(literal, name) for literal, name, _, _ in string.Formatter().parse(source.format)]


def _texts(cells: Sequence[Any]) -> list[str | None]:
    """`as_text` of the cells of an Arrow column. What Arrow gives as a string was UTF-8, which no half of a pair comes out of."""
    return [cell if isinstance(cell, str) and cell and not cell.isspace() else as_text(cell) for cell in cells]


def as_text(value: Any, depth: int = DEEPEST) -> str | None:
    """What a cell says: a text, a number in a question's answer, the first of several answers. None for nothing."""
    text = value if isinstance(value, str) else _text_of(value, depth)
    return None if not text or text.isspace() else without_halves(text)


def _text_of(value: Any, depth: int) -> str | None:
    """What a cell says that is no text itself."""
    if isinstance(value, dict):  # the shape of SQuAD: {"text": [...], "answer_start": [...]}
        value = value.get("text")
    if isinstance(value, (list, tuple)):
        return next((text for item in value if (text := as_text(item, depth - 1)) is not None), None) if depth else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = "" if value != value else str(value)  # NaN is how some writers say that there is nothing
    return value if isinstance(value, str) else None


def title_of(cell: Any) -> str:
    """What is shown of the title in a cell: its beginning, on one line. Empty where there is no text, or none that can be seen."""
    line = heading(without_halves(cell[:OPENING])) if isinstance(cell, str) else ""
    return line if any(map(str.isprintable, line.replace(" ", ""))) else ""


def without_halves(text: str) -> str:
    """`text` with U+FFFD for each half of a pair of surrogates, which JSON can hold and UTF-8, hence no tokenizer, can not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def printable(line: str) -> str:
    """One line that any terminal can show: names of files may hold line ends, control characters and what is no Unicode."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
