"""Objectives that follow one another over a model's life, as when a causal model learns to fill gaps in its last few percent of text.

Which of them a batch has is a function of its number, counted as the lengths of rows are (data_sources/lengths.py): the same on every process, and
through every resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from data_sources.lengths import RowLengths
from data_sources.rewriting import Example, Rewriter, Source, as_it_stands


class Stage(NamedTuple):
    """A rewriter, None for the text as it stands, until the life stands at `until` tokens."""

    until: int
    rewriter: Rewriter | None


@dataclass(frozen=True)
class Scheduled:
    """A Rewriter (data_sources/rewriting.py) that is another in each stage, and `last` after them."""

    stages: tuple[Stage, ...]
    last: Rewriter | None
    lengths: RowLengths

    def least_room(self, row: int) -> int:
        rewriter = self.at(row)
        return rewriter.least_room(row) if rewriter else 1

    def planned(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        rewriter = self.at(row)
        return rewriter.planned(seed, row, position, source, room) if rewriter else as_it_stands(source, room)

    def finished(self, row: int, plans: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        rewriter = self.at(row)
        assert rewriter is not None, "what stands as it is has no plan"
        return rewriter.finished(row, plans)

    def at(self, row: int) -> Rewriter | None:
        """The one that is due."""
        tokens = tokens_before(self.lengths, row)
        return next((stage.rewriter for stage in self.stages if tokens < stage.until), self.last)


@lru_cache(maxsize=64)
def tokens_before(lengths: RowLengths, row: int) -> int:
    """Tokens of the life before the batch that holds `row`."""
    return lengths.tokens_before(row)
