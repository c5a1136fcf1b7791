"""Rows of documents, taken apart and read together with others of about their length: for what reads a document from its first token on.

Sizes: B batch, C channels, T time, N documents, P longest of a group.
"""

from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Document(NamedTuple):
    """A piece of one row."""

    number: int
    row: int
    length: int
    goes_on: bool  # it began before this row did
    is_last: bool  # of its row


class Group(NamedTuple):
    """Documents that are read together. Those that go on end in padding; those that begin here begin with it, so that all end at once."""

    members: list[Document]
    goes_on: bool

    def together(self, pieces: list[Tensor]) -> Tensor:
        """The members among `pieces`, each (C, its length), as (len(members), C, P)."""
        longest = max(document.length for document in self.members)
        return torch.stack([F.pad(pieces[document.number], self._padding(longest - document.length)) for document in self.members])

    def apart(self, x: Tensor) -> list[Tensor]:
        """The members of `x` (len(members), C, P) without padding."""
        lengths = [document.length for document in self.members]
        return [piece[:, :length] if self.goes_on else piece[:, -length:] for piece, length in zip(x.unbind(0), lengths, strict=True)]

    def _padding(self, missing: int) -> tuple[int, int]:
        return (0, missing) if self.goes_on else (missing, 0)


def documents_of(cu_seqlens: Tensor, restart: Tensor) -> list[Document]:
    """The documents of rows that begin or restart at `cu_seqlens` (N + 1,), flattened; restart (B, T)."""
    time, edges, fresh = restart.shape[1], cu_seqlens.tolist(), restart[:, 0].tolist()
    spans = enumerate(zip(edges[:-1], edges[1:], strict=True))
    return [Document(number, a // time, b - a, a % time == 0 and not fresh[a // time], b % time == 0) for number, (a, b) in spans]


def groups_of(documents: list[Document]) -> list[Group]:
    """Those that go on in one group; the others by length, to the power of two above."""

    def kind(document: Document) -> tuple[bool, int]:
        return document.goes_on, 0 if document.goes_on else (document.length - 1).bit_length()

    return [Group(list(members), goes_on) for (goes_on, _), members in groupby(sorted(documents, key=kind), kind)]


def split_rows(x: Tensor, documents: list[Document]) -> list[Tensor]:
    """`x` (B, C, T) as a piece (C, length) for each document."""
    lengths = [[document.length for document in row] for _, row in groupby(documents, lambda document: document.row)]
    return [piece for row, sizes in zip(x.unbind(0), lengths, strict=True) for piece in row.split(sizes, -1)]


def joined_rows(pieces: list[Tensor], documents: list[Document]) -> Tensor:
    """Pieces (C, length), one a document, as (B, C, T)."""
    rows = groupby(documents, lambda document: document.row)
    return torch.stack([torch.cat([pieces[document.number] for document in row], -1) for _, row in rows])
