"""How long rows are, and how many a batch has: short and few ones early in a model's life, by its preset, and the same for every process and
through every resume.

Both follow from where a batch begins: stages end where so many positions have been dealt out, counted from where the counting began. What was
really read (less, where rows were padded) is not asked.
"""

from collections.abc import Sequence
from typing import NamedTuple

Curriculum = Sequence[tuple[int, int]]  # (until, value): a value until the life stands at so many tokens, stage after stage


class Stage(NamedTuple):
    """Batches of `rows` rows of `length` positions until the life stands at `until` tokens."""

    until: int
    length: int
    rows: int


class RowLengths(NamedTuple):
    """Batches as the stages have them, and of `rows` rows of `last` positions after them. The life stood at `tokens` before row `origin`."""

    stages: tuple[Stage, ...]
    last: int
    rows: int
    origin: int = 0
    tokens: int = 0

    @classmethod
    def constant(cls, length: int, rows: int = 1) -> "RowLengths":
        """Batches that are all alike."""
        return cls((), length, rows)

    @classmethod
    def of(cls, lengths: Curriculum, rows: Curriculum, last: tuple[int, int], origin: int = 0, tokens: int = 0) -> "RowLengths":
        """Two curricula, one of lengths and one of rows, with the length and the rows after them."""
        ends = sorted({until for until, _ in (*lengths, *rows)})
        stages = (Stage(end, _due(lengths, end, last[0]), _due(rows, end, last[1])) for end in ends)
        return cls(tuple(stages), *last, origin, tokens)

    def at(self, row: int) -> int:
        """The length of the rows of the batch that holds `row`."""
        return self._found(row)[0].length

    def rows_at(self, row: int) -> int:
        """How many rows the batch has that holds `row`."""
        return self._found(row)[0].rows

    def tokens_before(self, row: int) -> int:
        """Where the life stands before the batch that holds `row`, in positions that were dealt out."""
        return self._found(row)[1]

    def _found(self, row: int) -> tuple[Stage, int]:
        """The stage of the batch that holds `row`, and where the life stands before it."""
        ahead, tokens = row - self.origin, self.tokens
        for stage in self.stages:
            step = stage.rows * stage.length
            batches = max(0, -(-(stage.until - tokens) // step))  # the one that crosses `until` is the last
            if ahead < batches * stage.rows:
                return stage, tokens + ahead // stage.rows * step
            ahead, tokens = ahead - batches * stage.rows, tokens + batches * step
        last = Stage(0, self.last, self.rows)
        return last, tokens + ahead // last.rows * last.rows * last.length

    @property
    def most_rows(self) -> int:
        """Of the largest batches."""
        return max([self.rows, *(stage.rows for stage in self.stages)])


def _due(curriculum: Curriculum, end: int, last: int) -> int:
    """The value in force until a stage of either curriculum ends at `end`."""
    return next((value for until, value in curriculum if end <= until), last)
