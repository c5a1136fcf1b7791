"""How long rows are: short ones early in a model's life, by its preset, and the same for every process and through every resume.

The length of a batch's rows is a function of its number alone: stages end where so many positions have been dealt out, counted from
where the counting began. What was really read (less, where rows were padded) is not asked.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Stage(NamedTuple):
    """Rows of `length` positions until the life stands at `until` tokens."""

    until: int
    length: int


class RowLengths(NamedTuple):
    """Rows of the stages' lengths, and of `last` after them, for batches of `rows` rows each. It stood at `tokens` before row `origin`."""

    stages: tuple[Stage, ...]
    last: int
    rows: int
    origin: int = 0
    tokens: int = 0

    @classmethod
    def constant(cls, length: int) -> "RowLengths":
        """Rows of one length."""
        return cls((), length, 1)

    def at(self, row: int) -> int:
        """The length of the rows of the batch that begins with `row`."""
        return self._found(row)[0]

    def tokens_before(self, row: int) -> int:
        """Where the life stands before the batch that holds `row`, in positions that were dealt out."""
        return self._found(row)[1]

    def _found(self, row: int) -> tuple[int, int]:
        batch, tokens = (row - self.origin) // self.rows, self.tokens
        for stage in self.stages:
            step = self.rows * stage.length
            batches = max(0, -(-(stage.until - tokens) // step))  # the one that crosses `until` is the last
            if batch < batches:
                return stage.length, tokens + batch * step
            batch, tokens = batch - batches, tokens + batches * step
        return self.last, tokens + batch * self.rows * self.last

    @property
    def all(self) -> Sequence[int]:
        """Every length there may be."""
        return [*(stage.length for stage in self.stages), self.last]
