"""The k chunks with the largest inner products, exactly: the definition of nearest neighbours that every index is held to.

Inner products are whole numbers below 2^24, so float32 holds them exactly whatever computes them. Of equal ones the older chunk is nearer.

Sizes: Q queries, k neighbours, N chunks of a block, M candidates, D vector.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.memory.embedder import Embedder
from lm.memory.store import Store

BLOCK = 2048  # chunks compared at once: as many as stay in the cache
PLACES = 38  # bits of a chunk's number in a key; those of a score take 25 more
LAST, NOTHING = (1 << PLACES) - 1, -(1 << 63)
NONE = -1  # in place of a chunk's or a document's number


class Nearest(NamedTuple):
    """The best so far, of each query the best first."""

    numbers: np.ndarray  # (Q, k) int64, NONE where there are no more
    scores: np.ndarray  # (Q, k) float32, inner products; -inf where there are no more

    @classmethod
    def none(cls, queries: int, k: int) -> "Nearest":
        return cls(np.full((queries, k), NONE), np.full((queries, k), -np.inf, np.float32))

    @property
    def least(self) -> np.ndarray:
        """(Q,) what a later chunk must be above to be among them."""
        return self.scores[:, -1]

    def cut(self, k: int) -> "Nearest":
        """The k best."""
        return Nearest(self.numbers[:, :k], self.scores[:, :k])

    def merged(self, rows: np.ndarray, numbers: np.ndarray, scores: np.ndarray) -> "Nearest":
        """With candidates (M,), each for the query in its row; rows ascend. Scores are whole numbers."""
        queries, k = self.numbers.shape
        place = k + np.arange(len(rows)) - np.searchsorted(rows, rows)  # within its row, behind those that are there
        keys = np.full((queries, place.max(initial=k - 1) + 1), NOTHING)
        keys[:, :k] = np.where(self.numbers >= 0, keys_of(self.numbers, np.maximum(self.scores, -(2.0**24))), NOTHING)
        keys[rows, place] = keys_of(numbers, scores)
        keys = np.sort(keys, axis=1)[:, : -k - 1 : -1]
        there = keys > NOTHING
        return Nearest(np.where(there, LAST - (keys & LAST), NONE), np.where(there, keys >> PLACES, -np.inf).astype(np.float32))


def keys_of(numbers: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """int64 whose order is that of the scores, and of equal ones the older chunk's is the larger."""
    return (scores.astype(np.int64) << PLACES) + (LAST - numbers)


def exact(store: Store, vectors: np.ndarray, first: int, last: int, exclude: np.ndarray, best: Nearest) -> Nearest:
    """`best` with the chunks from `first` to one before `last`, all of them later than those it holds.

    vectors (Q, D) int8; exclude (Q,): the document whose chunks are not wanted, NONE for none.
    """
    queries = vectors.astype(np.float32)
    for start, documents, block in blocks(store, first, last):
        scores = queries @ block.astype(np.float32).T
        forbid(scores, documents, exclude)
        best = best.merged(*candidates(scores, start, best))
    return best


def scored(store: Store, embedder: Embedder, questions: list[np.ndarray], best: Nearest) -> Nearest:
    """The chunks in `best`, whose scores are inner products, as the embedder scores them for questions (Q, any number of tokens)."""
    numbers, scores = np.empty_like(best.numbers), np.empty_like(best.scores)
    for row, question in enumerate(questions):
        there = best.numbers[row] >= 0
        tokens, count = (store.gathered(name, best.numbers[row, there]) for name in ("tokens", "count"))
        found = np.full(len(there), -np.inf, np.float32)
        found[there] = embedder.scores(question, best.scores[row, there], tokens, count)
        order = np.lexsort((best.numbers[row], -found))
        numbers[row], scores[row] = best.numbers[row, order], found[order]
    return Nearest(numbers, scores)


def blocks(store: Store, first: int, last: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of its first chunk, documents (N,), vectors (N, D)) of block after block."""
    for upper in range(first, last, BLOCK):
        for start, columns in store.pieces(upper, min(last, upper + BLOCK)):
            yield start, columns["document"], columns["vectors"]


def forbid(scores: np.ndarray, documents: np.ndarray, exclude: np.ndarray) -> None:
    """Put -inf into `scores` (Q, N) where the chunk is of the query's own document."""
    near = np.flatnonzero(np.isin(documents, exclude))
    if len(near):
        part = scores[:, near]
        part[documents[near] == exclude[:, None]] = -np.inf
        scores[:, near] = part


def candidates(scores: np.ndarray, start: int, best: Nearest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, numbers, scores), each (M,): what may be among the best of a block's chunks start, start + 1 ... with `scores` (Q, N)."""
    rows, columns = np.nonzero(scores > best.least[:, None])
    return rows, start + columns, scores[rows, columns]
