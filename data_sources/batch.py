"""A batch of rows, as the training loop gets it.

B rows of this rank, T positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_sources.lane import RowView

NOT_SCORED = -100
NO_SOURCE = -1


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with what is to be predicted. All tensors are on the CPU."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the true next token also at a row's end; -100 where nothing is scored
    restart: Tensor  # (B, T) bool, a new document begins here
    source: Tensor  # (B, T) int64, index in data.sources; -1 for padding
    lane: Tensor  # (B,) int64
    row: Tensor  # (B,) int64, number of the row in the whole order of the data
    cu_seqlens: Tensor  # int32, where documents and rows begin in the flattened B * T, and B * T at the end
    valid: int  # scored positions
    last: bool  # nothing but padding, now and from here on: this rank has read its share

    @property
    def any_restart(self) -> bool:
        """Whether a document begins anywhere but at a row's start. Known here, so that no device need be asked."""
        return len(self.cu_seqlens) > len(self.lane) + 1

    def split(self, rows: int) -> list["Batch"]:
        """The batch in pieces of up to `rows` rows."""
        return [self._rows(slice(start, start + rows)) for start in range(0, len(self.lane), rows)]

    def _rows(self, part: slice) -> "Batch":
        tokens, targets, restart = self.tokens[part], self.targets[part], self.restart[part]
        bounds = bounds_of(restart.numpy())
        valid = int((targets != NOT_SCORED).sum())
        return Batch(tokens, targets, restart, self.source[part], self.lane[part], self.row[part], torch.from_numpy(bounds), valid, self.last)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with what the model reads on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("tokens", "targets", "restart", "source", "cu_seqlens")}
        return replace(self, **moved)

    def digests(self) -> list[tuple[int, bytes]]:
        """Number and SHA-256 (of the tokens, then the targets) of each row."""
        rows = zip(self.row.tolist(), self.tokens.numpy(), self.targets.numpy(), strict=True)
        return [(number, hashlib.sha256(tokens.tobytes() + targets.tobytes()).digest()) for number, tokens, targets in rows]


def bounds_of(restart: np.ndarray) -> np.ndarray:
    """cu_seqlens of rows whose documents begin where `restart` (B, T) says, and at each row's start."""
    begins = restart.copy()
    begins[:, :1] = True
    return np.append(np.flatnonzero(begins), begins.size).astype(np.int32)


class Rows:
    """Rows while they are being filled."""

    def __init__(self, batch_size: int, seq_length: int, pad: int):
        shape = (batch_size, seq_length)
        self.tokens = np.full(shape, pad, np.int64)
        self.targets = np.full(shape, NOT_SCORED, np.int64)
        self.restart = np.zeros(shape, np.bool_)
        self.source = np.full(shape, NO_SOURCE, np.int64)

    def view(self, index: int) -> RowView:
        """Row `index`, to be written in place."""
        return RowView(self.tokens[index], self.targets[index], self.restart[index], self.source[index])

    def batch(self, lanes: Sequence[int], numbers: Sequence[int], valid: int, last: bool) -> Batch:
        """The filled rows as tensors."""
        arrays = (self.tokens, self.targets, self.restart, self.source, np.array(lanes, np.int64), np.array(numbers, np.int64), bounds_of(self.restart))
        return Batch(*map(torch.from_numpy, arrays), valid=valid, last=last)
