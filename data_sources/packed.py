"""Rows as arrays, while they are being filled and on their way between processes. Knows nothing of torch.

B rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from data_sources.chunks import Chunks
from data_sources.order import LANES
from data_sources.past import Read
from data_sources.recall import Answers
from data_sources.rewriting import NOT_SCORED, OF_NO_KIND, Example, Rewriter

NO_SOURCE = -1


class Planned(NamedTuple):
    """An example that is yet to be written into its row."""

    index: int  # of the row in its batch
    position: int
    size: int
    plan: Any


class RowView(NamedTuple):
    """One row of a batch, each (T,), written in place; and its number."""

    number: int
    tokens: np.ndarray
    targets: np.ndarray
    restart: np.ndarray
    source: np.ndarray
    kind: np.ndarray | None
    index: int  # in its batch
    planned: list[Planned]

    def write(self, position: int, example: Example) -> None:
        """Put an example there, or its plan."""
        to = slice(position, position + example.size)
        if example.plan is None:
            self.tokens[to], self.targets[to] = example.tokens, example.targets
        else:
            self.planned.append(Planned(self.index, position, example.size, example.plan))
        if self.kind is not None:
            self.kind[to] = example.kind
        self.restart[position] |= example.begins

    def end(self, position: int) -> None:
        """Only padding follows: what is read from both ends must not begin with it."""
        self.restart[position : position + 1] = True


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
    kind: np.ndarray | None = None  # (B, T) int8, of the example that stands there (data_sources/rewriting.py); None where nothing is rewritten
    planned: list[Planned] = field(default_factory=list)  # examples that are yet to be written

    @classmethod
    def blank(cls, numbers: Sequence[int], seq_length: int, pad: int, has_kinds: bool = False) -> Self:
        """Padding, to be written over."""
        shape = (len(numbers), seq_length)
        tokens, targets, source = np.full(shape, pad, np.int64), np.full(shape, NOT_SCORED, np.int64), np.full(shape, NO_SOURCE, np.int64)
        kind = np.full(shape, OF_NO_KIND, np.int8) if has_kinds else None
        return cls(tokens, targets, np.zeros(shape, np.bool_), source, np.array(numbers, np.int64), kind=kind)

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
        columns = (self.tokens[index], self.targets[index], self.restart[index], self.source[index])
        return RowView(int(self.row[index]), *columns, None if self.kind is None else self.kind[index], index, self.planned)

    def finish(self, rewriter: Rewriter) -> None:
        """Write what is planned."""
        if not self.planned:
            return
        tokens, targets = rewriter.finished(int(self.row[0]), [each.plan for each in self.planned])
        start = 0
        for index, position, size, _ in self.planned:
            to, stop = slice(position, position + size), start + size
            self.tokens[index, to], self.targets[index, to] = tokens[start:stop], targets[start:stop]
            start = stop
        self.planned = []


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several readers of one global batch, in the order of their numbers."""
    order = np.argsort(np.concatenate([part.row for part in parts]))
    columns = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("tokens", "targets", "restart", "source", "row"))
    begun = [read for part in parts for read in part.begun]
    kinds = [part.kind for part in parts if part.kind is not None]
    chunks, answers = Chunks.joined([part.chunks for part in parts if part.chunks]), Answers.joined([part.answers for part in parts if part.answers])
    return Rows(
        *columns,
        last=all(part.last for part in parts),
        begun=begun,
        chunks=chunks,
        answers=answers,
        asked_seconds=sum(part.asked_seconds for part in parts),
        kind=np.concatenate(kinds)[order] if kinds else None,
    )


def bounds_of(restart: np.ndarray) -> np.ndarray:
    """cu_seqlens of rows whose documents begin where `restart` (B, T) says, and at each row's start."""
    begins = restart.copy()
    begins[:, :1] = True
    return np.append(np.flatnonzero(begins), begins.size).astype(np.int32)
