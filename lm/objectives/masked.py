"""Masked tokens (Devlin et al. 2019), chosen anew each time a text is read (Liu et al. 2019): for models that read from both ends.

Of the tokens that are chosen, most become the mask, some another word, and the rest stay, so that every place may have to be predicted. What is
learned stands at its own place, and not one before it.
"""

from dataclasses import dataclass

import numpy as np

from data_sources.packed import NOT_SCORED
from data_sources.rewriting import Example, Source, as_it_stands
from lm.objectives.draws import Draws
from lm.objectives.ul2 import learned_of


@dataclass(frozen=True)
class Masked:
    """A Rewriter (data_sources/rewriting.py)."""

    rate: float  # share of the tokens that is predicted
    masked: float  # of these, the share that becomes the mask
    random: float  # and the share that becomes another word
    mask: int
    bos: int
    words: np.ndarray  # (W,) ids of the tokens that stand for text

    def least_room(self, row: int) -> int:
        return 1

    def __call__(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        """As much of the document as there is room for."""
        held = as_it_stands(source, room)
        draws = Draws(seed, row, position, "masked")
        may_be = held.tokens != self.bos
        learned = learned_of(source, slice(source.offset, source.offset + held.taken))
        may_be &= True if learned is None else learned
        lots = np.where(may_be, draws.shares(held.taken), 1.0)
        chosen = (lots < self.rate) | ((lots == lots.min()) & may_be)  # one at least
        fate, word = draws.shares(held.taken), draws.shares(held.taken)
        tokens = np.where(chosen & (fate < self.masked), self.mask, held.tokens).astype(np.int64)
        replaced = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        tokens[replaced] = self.words[(word[replaced] * len(self.words)).astype(np.int64)]
        return Example(held.taken, tokens, np.where(chosen, held.tokens, NOT_SCORED))
