"""From a row of a table to a text: which columns, under which name, put together how."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_sources.catalogue import ALIASES
from data_sources.config import TableSource
from data_sources.documents import GivenUp


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
            self._lines.append(line)

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

    def __init__(self, source: TableSource, notes: Notes):
        self._wanted = source.columns
        self._format = source.format
        self._notes = notes

    def columns(self, present: Sequence[str]) -> dict[str, str]:
        """The column behind each wanted name: itself or a known alias. GivenUp lists the columns there are."""
        return {name: self._column(name, present) for name in self._wanted}

    def _column(self, name: str, present: Sequence[str]) -> str:
        if name in present:
            return name
        aliases = next((row for row in ALIASES if name in row), ())
        alias = next((other for other in aliases if other in present), None)
        if alias is None:
            raise GivenUp(f'no column "{name}"; there are: {", ".join(map(str, present)) or "none"}')
        self._notes.say(f'no column "{name}"; "{alias}" is read in its place')
        return alias

    def text(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
        """The text of one row, or None where a column holds no text."""
        values = {name: as_text(row.get(column)) for name, column in columns.items()}
        if any(value is None for value in values.values()):
            return None
        if self._format is not None:
            return self._format.format_map(values)
        return "\n".join(str(value) for value in values.values())

    def texts(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
        """The texts of `rows`; those without are counted."""
        texts = [text for row in rows if (text := self.text(row, columns)) is not None]
        self._notes.count("rows held no text and were passed over", len(rows) - len(texts))
        return texts


def as_text(value: Any) -> str | None:
    """What a cell says: a text, a number in a question's answer, the first of several answers. None for nothing."""
    if isinstance(value, dict):  # the shape of SQuAD: {"text": [...], "answer_start": [...]}
        value = value.get("text")
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if as_text(item) is not None), None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and value.strip() else None
