"""Neighbours from a memory while the model reads and writes: asked for by each chunk of the document when it is whole.

The document is all that the state holds, so that an answer finds by what was asked, and the next turn by what was answered. These are the
neighbours that training hands in. A question is often shorter than a chunk, and nothing would be found by it: so in a conversation the end of
a prompt asks, too, by the prompt's last tokens, and what was found is seen from its last token on. (Borgeaud et al. 2022, who answer questions,
fill them up at the left to the end of a chunk, to the same effect.)

Sizes: C tokens of a chunk, N chunks that ask.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lm.memory.finder import Finder
from lm.units.neighbours import Neighbours


class Recall(NamedTuple):
    """A memory, where there is one, and the tokens of the document before those at hand."""

    find: Finder | None = None
    document: tuple[int, ...] = ()
    asks: bool = False  # whether the end of a prompt does

    def neighbours(self, tokens: Sequence[int], start: int) -> Neighbours | None:
        """What is handed in with `tokens` from `start` on, read as one row; None where nothing is."""
        if self.find is None:
            return None
        size, before = self.find.chunk_size, len(self.document)
        ends = range(max(size, -(-(before + start) // size) * size), before + len(tokens), size)
        if not ends:
            return None
        document = (*self.document, *tokens)
        return self._found([document[end - size : end] for end in ends], torch.tensor(ends) - before - start)

    def asks_within(self, place: int, count: int) -> bool:
        """Whether a chunk is whole before any of `count` tokens from this place on, counted from behind `document` on."""
        if self.find is None:
            return False
        place += len(self.document)
        return -(-max(place, 1) // self.find.chunk_size) * self.find.chunk_size < place + count

    def before_next(self, length: int) -> int:
        """How many tokens may be read on trial behind `length` of them, so that no chunk asks that holds one of those."""
        return sys.maxsize if self.find is None else self.find.chunk_size - (len(self.document) + length) % self.find.chunk_size

    def asked(self, prompt: Sequence[int]) -> Neighbours | None:
        """What is handed in with the last token of `prompt`, read by itself."""
        if self.find is None or not self.asks or len(prompt) < 2:
            return self.neighbours(prompt, len(prompt) - 1)
        return self._found([prompt[:-1][-self.find.chunk_size :]], torch.tensor([0]))

    def _found(self, chunks: Sequence[Sequence[int]], at: Tensor) -> Neighbours:
        """By chunks of one length, seen from the places `at` (N,) on."""
        assert self.find is not None
        found, length = self.find(np.array(chunks, np.int64))
        return Neighbours(at, torch.from_numpy(found), torch.from_numpy(length))
