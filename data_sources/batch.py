"""A batch of rows, as the training loop gets it.

B rows of this rank, T positions.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from data_sources.chunks import Chunks
from data_sources.packed import Rows, bounds_of
from data_sources.past import Read
from data_sources.rewriting import NOT_SCORED


def within(at: Tensor, rows: slice, time: slice, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which of the flattened places (N,) in rows of `shape` (B, T) stand within `rows` and `time`, (N,) bool, and as that part of them counts them."""
    (top, bottom, _), (left, right, _) = (part.indices(size) for part, size in zip((rows, time), shape, strict=True))
    row, column = at // max(shape[1], 1), at % max(shape[1], 1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return inside, ((row - top) * (right - left) + column - left)[inside]


class Arrivals(NamedTuple):
    """What a memory answered, for B rows of T positions. N arrivals of k neighbours of R tokens."""

    at: Tensor  # (N,) int64, ascending: flattened place in B * T from which on it may be seen
    tokens: Tensor  # (N, k, R) int64
    length: Tensor  # (N, k) int64; 0 where there is no such neighbour

    @classmethod
    def of(cls, rows: Rows) -> Self | None:
        """Those of the filled rows, if a memory was asked."""
        if rows.answers is None:
            return None
        row, at, tokens, length = map(torch.from_numpy, rows.answers[:4])
        index = torch.searchsorted(torch.from_numpy(rows.row), row)
        return cls(index * rows.tokens.shape[1] + at, tokens.long(), length)

    def part(self, rows: slice, time: slice, shape: tuple[int, int]) -> "Arrivals":
        """Those within `rows` and `time` of the rows of `shape` (B, T) that these are for, as that part of them takes them."""
        inside, at = within(self.at, rows, time, shape)
        return Arrivals(at, self.tokens[inside], self.length[inside])


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with what is to be predicted. All tensors are on the CPU. B may be 0, and one more or less in the next batch."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the true next token also at a row's end; -100 where nothing is scored
    restart: Tensor  # (B, T) bool, a new document begins here
    source: Tensor  # (B, T) int64, index in data.sources; -1 for padding
    lane: Tensor  # (B,) int64
    row: Tensor  # (B,) int64, number of the row in the whole order of the data
    cu_seqlens: Tensor  # int32, where documents and rows begin in the flattened B * T, and B * T at the end
    valid: int  # scored positions
    restarts: int  # how often a document begins. Known here, so that no device need be asked
    last: bool  # nothing but padding, now and from here on: this rank has read its share
    chunks: Chunks | None = None  # of the documents that stand here, where the stream was asked for them
    answers: Arrivals | None = None  # of a memory, where the stream was given one
    asked_seconds: float = 0.0  # that the memory took, in all readers of this rank together
    trouble: str = ""  # why it could not be asked
    column: int = 0  # place in their rows where the positions here begin
    kind: Tensor | None = None  # (B, T) int8, of the example that stands there, -1 for none; None where nothing is rewritten
    begun: Sequence[Read] = ()  # documents that begin here and may be kept of the past, where the stream was asked to tell

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """The filled rows as tensors."""
        arrays = (rows.tokens, rows.targets, rows.restart, rows.source, rows.lane, rows.row, bounds_of(rows.restart))
        return cls(
            *map(torch.from_numpy, arrays),
            valid=rows.valid,
            restarts=int(rows.restart.sum()),
            last=rows.last,
            chunks=rows.chunks,
            answers=Arrivals.of(rows),
            asked_seconds=rows.asked_seconds,
            trouble=rows.answers.trouble if rows.answers else "",
            begun=rows.begun,
            kind=None if rows.kind is None else torch.from_numpy(rows.kind),
        )

    @property
    def is_text(self) -> Tensor:
        """(B, T) bool: what stands there is of a document, and no padding."""
        return self.source >= 0

    @property
    def any_restart(self) -> bool:
        """Whether a document begins anywhere but at a row's start."""
        return len(self.cu_seqlens) > len(self.lane) + 1

    def split(self, rows: int) -> list["Batch"]:
        """The batch in pieces of up to `rows` rows; none of a batch without rows."""
        return [self._part(slice(start, start + rows), slice(None)) for start in range(0, len(self.lane), rows)]

    def pieces(self, time: int) -> list["Batch"]:
        """The batch in pieces of up to `time` positions, one after the other."""
        return [self._part(slice(None), slice(start, start + time)) for start in range(0, self.tokens.shape[1], time)]

    def undivided(self) -> "Batch":
        """The batch as if nothing began in it but rows."""
        edges = torch.arange(len(self.lane) + 1, dtype=torch.int32) * self.tokens.shape[1]
        return replace(self, restart=torch.zeros_like(self.restart), cu_seqlens=edges, restarts=0)

    def _part(self, rows: slice, time: slice) -> "Batch":
        tokens, targets, restart, source = (part[rows, time] for part in (self.tokens, self.targets, self.restart, self.source))
        bounds, valid = torch.from_numpy(bounds_of(restart.numpy())), int((targets != NOT_SCORED).sum())
        answers = self.answers.part(rows, time, (len(self.lane), self.tokens.shape[1])) if self.answers else None
        column = self.column + (time.start or 0)
        known = (tokens, targets, restart, source, self.lane[rows], self.row[rows], bounds, valid, int(restart.sum()), self.last)
        return Batch(*known, answers=answers, column=column, kind=None if self.kind is None else self.kind[rows, time])

    def to(self, device: torch.device) -> "Batch":
        """The same batch with what the model reads on `device`. From pinned memory it goes there beside what the host does next."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch with what the model reads in memory that a GPU takes from by itself."""
        return self._with(Tensor.pin_memory)

    def _with(self, of: Callable[[Tensor], Tensor]) -> "Batch":
        read = {name: getattr(self, name) for name in ("tokens", "targets", "restart", "source", "cu_seqlens", "kind")}
        return replace(self, **{name: of(tensor) for name, tensor in read.items() if tensor is not None})

    def digests(self) -> list[tuple[int, bytes]]:
        """Number and SHA-256 (of the tokens, then the targets) of each row."""
        rows = zip(self.row.tolist(), self.tokens.numpy(), self.targets.numpy(), strict=True)
        return [(number, hashlib.sha256(tokens.tobytes() + targets.tobytes()).digest()) for number, tokens, targets in rows]
