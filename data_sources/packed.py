"""Rows as arrays, while they are being filled and on their way between processes. Knows nothing of torch.

B rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from data_sources.chunks import Chunks
from data_sources.order import LANES
from data_sources.past import Read
from data_sources.recall import Answers

NOT_SCORED = -100
NO_SOURCE = -1


class RowView(NamedTuple):
    """One row of a batch, each (T,), written in place; and its number."""

    number: int
    tokens: np.ndarray
    targets: np.ndarray
    restart: np.ndarray
    source: np.ndarray


@dataclass
class Rows:
    """Some rows of a global batch, in the order of their numbers. What the columns hold stands at `Batch`."""

    tokens: np.ndarray
    targets: np.ndarray
    restart: np.ndarray
    source: np.ndarray
    row: np.ndarray  # (B,) int64
    last: bool = False  # nothing but padding, now and from here on
    begun: Sequence[Read] = ()  # documents that begin here and may be kept of the past
    chunks: Chunks | None = None  # of the documents that stand here, where they are wanted
    answers: Answers | None = None  # of a memory, where it was asked
    asked_seconds: float = 0.0  # that it took to answer

    @classmethod
    def blank(cls, numbers: Sequence[int], seq_length: int, pad: int) -> Self:
        """Padding, to be written over."""
        shape = (len(numbers), seq_length)
        tokens, targets, source = np.full(shape, pad, np.int64), np.full(shape, NOT_SCORED, np.int64), np.full(shape, NO_SOURCE, np.int64)
        return cls(tokens, targets, np.zeros(shape, np.bool_), source, np.array(numbers, np.int64))

    @property
    def lane(self) -> np.ndarray:
        """(B,) int64."""
        return self.row % LANES

    @property
    def valid(self) -> int:
        """Scored positions."""
        return int((self.targets != NOT_SCORED).sum())

    @property
    def empty(self) -> bool:
        """Whether all of it is padding."""
        return bool((self.source == NO_SOURCE).all())

    def view(self, index: int) -> RowView:
        """Row `index`, to be written in place."""
        return RowView(int(self.row[index]), self.tokens[index], self.targets[index], self.restart[index], self.source[index])


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several readers of one global batch, in the order of their numbers."""
    order = np.argsort(np.concatenate([part.row for part in parts]))
    columns = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("tokens", "targets", "restart", "source", "row"))
    begun = [read for part in parts for read in part.begun]
    chunks, answers = Chunks.joined([part.chunks for part in parts if part.chunks]), Answers.joined([part.answers for part in parts if part.answers])
    return Rows(
        *columns, last=all(part.last for part in parts), begun=begun, chunks=chunks, answers=answers, asked_seconds=sum(part.asked_seconds for part in parts)
    )


def bounds_of(restart: np.ndarray) -> np.ndarray:
    """cu_seqlens of rows whose documents begin where `restart` (B, T) says, and at each row's start."""
    begins = restart.copy()
    begins[:, :1] = True
    return np.append(np.flatnonzero(begins), begins.size).astype(np.int32)
