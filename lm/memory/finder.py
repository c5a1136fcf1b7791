"""What hands in neighbours, as those see it who only ask.

Sizes: N chunks of C tokens, k neighbours of each, R = 2C tokens of a neighbour.
"""

from typing import Protocol

import numpy as np


class Finder(Protocol):
    """A memory in some state, or what stands in for one."""

    chunk_size: int

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chunks (N, C) -> neighbours (N, k, R), and how long they are (N, k)."""
        ...
