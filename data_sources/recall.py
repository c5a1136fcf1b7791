"""What a memory of earlier text answers to the chunks of a batch, on the way from the lanes to the model.

    chunks of a batch -> the memory as it stood a number of rows before -> what was found by each, beside the rows

The fixed lag keeps reading ahead exact: which state of the memory answers depends on the batch's first row alone, and who is too early waits
until that state is announced. The memory itself is the model's affair; here it is what answers.

Sizes: N chunks that something was asked by, k neighbours of each, R tokens of a neighbour.
"""

import threading
from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self

import numpy as np

from data_sources.chunks import Chunks
from data_sources.feed import Closed

GLANCE = 0.1  # seconds

State = tuple[int, ...]  # a memory as it stood at some time, in integers


class Answers(NamedTuple):
    """What was found, in the order of the rows and of the places in them."""

    row: np.ndarray  # (N,) int64, number of the row
    at: np.ndarray  # (N,) int64, place in the row from which on it may be seen
    tokens: np.ndarray  # (N, k, R) int32, padded at the right
    length: np.ndarray  # (N, k) int64; 0 where there is no such neighbour
    trouble: str = ""  # why the memory could not be asked, in a line: then nothing was found

    @classmethod
    def joined(cls, parts: list[Self]) -> Self | None:
        """Those of several readers of one batch. None where nobody asked."""
        if not parts:
            return None
        *columns, troubles = zip(*parts, strict=True)
        order = np.argsort(np.concatenate([part.row for part in parts]), kind="stable")
        return cls(*(np.concatenate(column)[order] for column in columns), next(filter(None, troubles), ""))


class Recall(Protocol):
    """A memory as a process that reads asks it. Travels to loader processes, and opens its files there."""

    def ask(self, chunks: Chunks, state: State | None) -> Answers:
        """What the memory in `state` (None while nothing is in it) finds by those of `chunks` that are asked by."""
        ...

    def close(self) -> None:
        """Let go of files. Safe to call twice."""
        ...


class MemoryStates:
    """States of a memory by rows: announced by the one who writes it, asked for by those who read, from any threads.

    known: of a run that goes on, what it needs of before. A state counts from its row on, until the next.
    """

    def __init__(self, lag: int, known: Mapping[int, State] | None = None):
        """lag: how many rows before its first row a batch sees the memory."""
        if lag < 1:
            raise ValueError(f"lag {lag} must be at least 1: a batch can't see what it is written to itself")
        self.lag = lag
        self._known: dict[int, State] = dict(sorted((known or {}).items()))
        self._news = threading.Condition()

    def announce(self, row: int, state: State) -> None:
        """The memory has taken in all rows before `row`. ValueError where later rows, or these as another state, were announced."""
        with self._news:
            latest = max(self._known, default=-1)
            if row < latest or self._known.get(row, state) != state:
                raise ValueError(f"the memory's state at row {row} is settled already")
            self._known[row] = state
            self._news.notify_all()

    def of(self, first_row: int, closing: threading.Event | None = None) -> State | None:
        """What a batch that begins with `first_row` sees, waited for until it is announced; None where nothing was read by then."""
        row = first_row - self.lag
        with self._news:
            while row > max(self._known, default=0):
                if closing is not None and closing.is_set():
                    raise Closed
                self._news.wait(GLANCE)
            return next((state for known, state in reversed(self._known.items()) if known <= row), None)

    @property
    def newest(self) -> State | None:
        """The last that was announced."""
        with self._news:
            return self._known[max(self._known)] if self._known else None

    def announced(self, row: int = 0) -> dict[int, State]:
        """All that is settled from `row` on."""
        with self._news:
            return {known: state for known, state in self._known.items() if known >= row}

    def needed(self, next_row: int) -> dict[int, State]:
        """What batches from `next_row` on still see of what was announced. The rest is forgotten."""
        with self._news:
            oldest = max((row for row in self._known if row <= next_row - self.lag), default=0)
            self._known = {row: state for row, state in self._known.items() if row >= oldest}
            return dict(self._known)
