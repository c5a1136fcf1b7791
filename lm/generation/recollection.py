"""Neighbours from a memory while the model reads and writes: asked for by each chunk of the document when it is whole.

The document is all that the state holds, so that an answer finds by what was asked, and the next turn by what was answered.

Sizes: C tokens of a chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lm.memory.finder import Finder
from lm.units.neighbours import Neighbours


class Recall(NamedTuple):
    """A memory, where there is one, and the tokens of the document before those at hand."""

    find: Finder | None = None
    document: tuple[int, ...] = ()

    def neighbours(self, tokens: Sequence[int], start: int) -> Neighbours | None:
        """What is handed in with `tokens` from `start` on, read as one row; None where nothing is."""
        if self.find is None:
            return None
        size, before = self.find.chunk_size, len(self.document)
        ends = range(max(size, -(-(before + start) // size) * size), before + len(tokens), size)
        if not ends:
            return None
        document = (*self.document, *tokens)
        found, length = self.find(np.array([document[end - size : end] for end in ends], np.int64))
        return Neighbours(torch.tensor(ends) - before - start, torch.from_numpy(found), torch.from_numpy(length))
