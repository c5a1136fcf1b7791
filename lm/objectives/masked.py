"""Masked tokens (Devlin et al. 2019), chosen anew each time a text is read (Liu et al. 2019): for models that read from both ends.

Of the tokens that are chosen, most become the mask, some another word, and the rest stay, so that every place may have to be predicted. What is
learned stands at its own place, and not one before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_sources.rewriting import NOTHING, Example, Source
from lm.objectives.draws import words
from lm.objectives.together import MaskPlan, with_masks


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

    def planned(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        part = slice(source.offset, source.offset + room)
        text = source.tokens[part]
        start, *_ = words(b"masked", seed, row, position)
        return Example(len(text), NOTHING, NOTHING, len(text), plan=MaskPlan(start, text, source.learned(part)))

    def finished(self, row: int, plans: Sequence[MaskPlan]) -> tuple[np.ndarray, np.ndarray]:
        made = with_masks(plans, self.rate, self.masked, self.random, self.mask, self.bos, self.words)
        return made.tokens, made.targets
