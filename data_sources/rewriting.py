"""What is made of a document on its way into a row: by default nothing, else what an injected callable makes of it.

    document under way, place in the row -> example -> row

A denoising objective writes other tokens, and more of them, than the document has. So whoever fills rows asks for one example at a time, which
says how much of the document it holds, and rows are full whatever is made of the text. An example depends on the document, the seed and its place
in the order of the data alone: rows are the same for any number of processes and through every resume.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

NOT_SCORED = -100  # as a target
OF_NO_KIND = -1
NOTHING = np.zeros(0, np.int64)  # the tokens and targets of what is planned


class Example(NamedTuple):
    """What stands in a row of n or more positions for `taken` positions of a document."""

    taken: int
    tokens: np.ndarray  # (n,); none while it is planned
    targets: np.ndarray  # (n,); NOT_SCORED where nothing is predicted
    size: int  # n
    kind: int = OF_NO_KIND  # one of the ways in which it may have been made, for whoever tells their losses apart
    begins: bool = False  # whether it is read afresh, wherever in its document it stands
    plan: Any = None  # what the batch's examples are finished by, where that is done for all of them at once


class Source(NamedTuple):
    """What examples are made from: a document from `offset` on."""

    tokens: np.ndarray  # (n,): what is read at each position
    targets: np.ndarray  # (n,): what follows it; NOT_SCORED where that is not learned
    offset: int = 0
    scored: np.ndarray | None = None  # (n,) bool, or longer: which of `tokens` may be learned; None for all but the first

    @classmethod
    def of(cls, ids: np.ndarray, scored: np.ndarray | None) -> Self:
        """A whole document: ids (n + 1,), and which of them are scored; None for all but the first."""
        targets = ids[1:] if scored is None else np.where(scored[1:], ids[1:], NOT_SCORED)
        return cls(ids[:-1], targets, scored=scored)

    def learned(self, part: slice) -> np.ndarray | None:
        """Which tokens of a part may be learned; None for all but the document's first."""
        return None if self.scored is None else self.scored[part]


class Rewriter(Protocol):
    """Travels to loader processes."""

    def least_room(self, row: int) -> int:
        """Positions that row number `row` must still have for another example. No row is shorter."""
        ...

    def planned(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        """The example at `position` of row number `row`, of up to `room` positions; it may have a plan in the place of its tokens and targets."""
        ...

    def finished(self, row: int, plans: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of the plans of a batch, one behind the other; each is the same in any batch. row: any of the batch."""
        ...


def as_it_stands(source: Source, room: int) -> Example:
    """As much of the document as there is room for."""
    part = slice(source.offset, source.offset + room)
    tokens = source.tokens[part]
    return Example(len(tokens), tokens, source.targets[part], len(tokens))


class Rewriting(NamedTuple):
    """A rewriter, or none, for whoever fills rows."""

    rewriter: Rewriter | None = None
    seed: int = 0

    def least_room(self, row: int) -> int:
        """Positions that a row must still have for something to be written into it."""
        return self.rewriter.least_room(row) if self.rewriter else 1

    def example(self, row: int, position: int, source: Source, room: int) -> Example:
        """What is written into `row` from `position` on."""
        return self.rewriter.planned(self.seed, row, position, source, room) if self.rewriter else as_it_stands(source, room)
