"""Chunks of the documents that stand in rows: what a memory of the text takes in, and what it is asked by (Borgeaud et al. 2022).

A document is cut every C tokens. Once the last token of a chunk stands in a row the chunk is new to the memory, and from the next token
on what is found by it may be seen. A row that goes on in a document begins with what was found by the chunk before. A document's last
piece is taken in, too, unless it is very short; nothing is asked by it, since nothing follows.

Sizes: N chunks of C tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from data_sources.text import OPENING, heading

NOWHERE = -1
SHORTEST = 4  # a last piece of C / SHORTEST tokens is taken in


class Stretch(NamedTuple):
    """A part of a document that stands in a row: `size` of its positions from `offset` on, at `position` of row number `row`."""

    row: int
    position: int
    source: int
    document: Any  # data_sources.lane.Document
    offset: int
    size: int


class About(NamedTuple):
    """A document, in words."""

    source: str
    place: str  # where it stands, and its title; how it begins where there is none, since most documents begin with one

    @classmethod
    def of(cls, source: str, document: Any) -> Self:
        """document: data_sources.lane.Document."""
        title = document.title or heading(next(filter(str.strip, document.text[:OPENING].splitlines()), ""))
        return cls(source, f"{document.where}: {title}" if title else document.where)


class Chunks(NamedTuple):
    """Chunks of a batch, in the order of its rows and of the places in them."""

    tokens: np.ndarray  # (N, C) int32, padded with 0 at the right
    length: np.ndarray  # (N,) int64
    document: np.ndarray  # (N,) int64, drawn from the text: texts that are alike are one document
    number: np.ndarray  # (N,) int64, within its document
    row: np.ndarray  # (N,) int64, number of the row
    at: np.ndarray  # (N,) int64, place in the row from which on what was found may be seen; NOWHERE where nothing is asked
    is_new: np.ndarray  # (N,) bool: its last token stands in this row
    about: dict[int, About]  # by document

    @classmethod
    def of(cls, stretches: Iterable[Stretch], names: Sequence[str], size: int, context_length: int | None) -> Self:
        """names: of the sources. size: C. context_length: documents begin anew after so many positions."""
        pieces = [piece for stretch in stretches for piece in _pieces(stretch, size, context_length)]
        tokens = np.zeros((len(pieces), size), np.int32)
        for index, piece in enumerate(pieces):
            tokens[index, : piece.end - piece.begin] = piece.stretch.document.tokens[piece.begin : piece.end]
        keys = {id(piece.stretch.document): key_of(piece.stretch.document.text) for piece in pieces}
        about = {keys[id(stretch.document)]: About.of(names[stretch.source], stretch.document) for stretch, *_ in pieces}
        columns = [(piece.end - piece.begin, keys[id(piece.stretch.document)], piece.number, piece.stretch.row, piece.at, piece.is_new) for piece in pieces]
        length, document, number, row, at, is_new = np.array(columns, np.int64).reshape(-1, 6).T
        return cls(tokens, length, document, number, row, at, is_new.astype(np.bool_), about)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self | None:
        """Those of several readers of one batch, in the order of its rows. None where nobody wanted any."""
        if not parts:
            return None
        *columns, about = zip(*parts, strict=True)
        order = np.argsort(np.concatenate([part.row for part in parts]), kind="stable")
        return cls(*(np.concatenate(column)[order] for column in columns), {key: each for known in about for key, each in known.items()})


class _Piece(NamedTuple):
    stretch: Stretch
    begin: int
    end: int
    number: int
    at: int
    is_new: bool


def key_of(text: str) -> int:
    """A number of 63 bits for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1


def _pieces(stretch: Stretch, size: int, context_length: int | None) -> Iterator[_Piece]:
    """The chunks that a stretch of a row ends, or goes on after."""
    whole = len(stretch.document.tokens)
    span = context_length or whole
    first, last = stretch.offset, stretch.offset + stretch.size
    for start in range(first // span * span, last, span):
        stop, parts = min(start + span, whole), -(-span // size)
        begun, read = max(first, start), min(last, stop)
        for number in range(max((begun - start) // size - 1, 0), (read - start) // size):
            end = start + (number + 1) * size
            seen = max(end, begun)  # place in the document
            at = stretch.position + seen - first if seen < read else NOWHERE
            if end > begun or at != NOWHERE:
                yield _Piece(stretch, end - size, end, start // span * parts + number, at, end > begun)
        rest = (stop - start) % size
        if read == stop and SHORTEST * rest >= size:
            yield _Piece(stretch, stop - rest, stop, start // span * parts + (stop - start) // size, NOWHERE, True)
