"""A batch of rows, as the training loop gets it.

B rows of this rank, T positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from data_sources.chunks import Chunks
from data_sources.packed import NOT_SCORED, Rows, bounds_of
from data_sources.past import Read


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
    begun: Sequence[Read] = ()  # documents that begin here and may be kept of the past, where the stream was asked to tell

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """The filled rows as tensors."""
        arrays = (rows.tokens, rows.targets, rows.restart, rows.source, rows.lane, rows.row, bounds_of(rows.restart))
        return cls(*map(torch.from_numpy, arrays), valid=rows.valid, restarts=int(rows.restart.sum()), last=rows.last, chunks=rows.chunks, begun=rows.begun)

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

    def _part(self, rows: slice, time: slice) -> "Batch":
        tokens, targets, restart, source = (part[rows, time] for part in (self.tokens, self.targets, self.restart, self.source))
        bounds, valid = torch.from_numpy(bounds_of(restart.numpy())), int((targets != NOT_SCORED).sum())
        return Batch(tokens, targets, restart, source, self.lane[rows], self.row[rows], bounds, valid, int(restart.sum()), self.last)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with what the model reads on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("tokens", "targets", "restart", "source", "cu_seqlens")}
        return replace(self, **moved)

    def digests(self) -> list[tuple[int, bytes]]:
        """Number and SHA-256 (of the tokens, then the targets) of each row."""
        rows = zip(self.row.tolist(), self.tokens.numpy(), self.targets.numpy(), strict=True)
        return [(number, hashlib.sha256(tokens.tobytes() + targets.tobytes()).digest()) for number, tokens, targets in rows]
