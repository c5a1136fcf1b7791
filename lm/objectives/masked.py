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
        learned = learned_of(source, slice(source.offset, source.offset + held.taken))
        lots = draws.shares(held.taken)
        lots[held.tokens == self.bos] = 1.0
        if learned is not None:
            lots[~learned] = 1.0
        chosen = np.flatnonzero(lots < max(self.rate, np.nextafter(lots.min(), 1)))  # one at least
        tokens, targets = held.tokens.astype(np.int64), np.full(held.taken, NOT_SCORED, np.int64)
        chosen = chosen[lots[chosen] < 1]
        targets[chosen] = tokens[chosen]
        fate, word = draws.shares(2 * len(chosen)).reshape(2, -1)
        tokens[chosen[fate < self.masked]] = self.mask
        replaced = (fate >= self.masked) & (fate < self.masked + self.random)
        tokens[chosen[replaced]] = self.words[(word[replaced] * len(self.words)).astype(np.int64)]
        return Example(held.taken, tokens, targets)
