"""UL2, a mixture of denoisers (Tay et al. 2022, "UL2: unifying language learning paradigms"; for a model that was causal before: Tay et al.
2022, "Transcending scaling laws with 0.1 % extra compute"), as causal sequences, so that every unit can be trained on it.

    R, regular      short gaps, few                        <R> text with gaps, gaps      (lm/objectives/spans.py)
    X, extreme      long gaps, or half of the text         <X> text with gaps, gaps
    S, sequential   the text goes on to its end            text                          learned from a place drawn anywhere on

Each stretch of a document of up to `longest` tokens is an example, draws its own denoiser, and is read afresh. S has no mode token: it is how a
text without one is read, so that chat and evaluation read as S does, and a model that was causal before goes on without a seam.

Sizes: L tokens of text.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from data_sources.rewriting import NOT_SCORED, NOTHING, Example, Source, as_it_stands
from lm.objectives.draws import LOT, words
from lm.objectives.spans import Counts, Setting
from lm.objectives.together import GapPlan, with_gaps

KINDS = ("R", "S", "X")
SEQUENTIAL = KINDS.index("S")
FEWEST = 4  # tokens that are worth a denoiser; fewer are read and learned as they stand, and counted for none
LEAST_ROOM = 8  # positions at the end of a row that are worth an example


@dataclass(frozen=True)
class Ul2:
    """A Rewriter (data_sources/rewriting.py)."""

    shares: tuple[float, float, float]  # of R, S and X; they add up to one
    settings: dict[str, tuple[Setting, ...]]  # of R and X, each as likely as the others
    suffix_rate: float  # mean share of an S example that is learned
    longest: int  # tokens of an example
    modes: dict[str, int]  # ids, of R and X
    gaps: tuple[int, ...]  # ids
    bos: int
    end: int

    def least_room(self, row: int) -> int:
        return LEAST_ROOM

    def planned(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        left = len(source.tokens) - source.offset
        if left < FEWEST:
            return as_it_stands(source, room)._replace(begins=True)
        longest = -(-left // -(-left // self.longest))  # the examples of a document are about equally long
        start, kind_word, setting_word, noise_word, gaps_word, suffix_word = words(b"ul2", seed, row, position)
        kind = bisect_right(self.reached, LOT * kind_word)
        if kind == SEQUENTIAL:
            return self._sequential(source, min(longest, room), LOT * suffix_word)
        mode, settings = self.ways[kind]
        counts = Counts(*settings[setting_word * len(settings) >> 32], len(self.gaps), LOT * noise_word, LOT * gaps_word)
        spared = int(source.tokens[source.offset] == self.bos)
        length, noise, gaps = counts.fitting(room, longest, spared)
        part = slice(source.offset, source.offset + length)
        plan = GapPlan(start, source.tokens[part], source.learned(part), noise, gaps, spared, mode)
        return Example(length, NOTHING, NOTHING, 1 + length + 2 * gaps, kind, True, plan)

    def finished(self, row: int, plans: Sequence[GapPlan]) -> tuple[np.ndarray, np.ndarray]:
        made = with_gaps(plans, self.names, self.end)
        return made.tokens, made.targets

    def _sequential(self, source: Source, length: int, lot: float) -> Example:
        part = slice(source.offset, source.offset + length)
        targets = source.targets[part].copy()
        targets[: length - suffix_length(length, self.suffix_rate, lot)] = NOT_SCORED
        return Example(length, source.tokens[part], targets, length, SEQUENTIAL, True)

    @cached_property
    def reached(self) -> list[float]:
        """Up to where lots are those of R, and of S; the rest are X's."""
        return [reached if any(self.shares[after:]) else 1.0 for after, reached in enumerate(accumulate(self.shares[:-1]), 1)]

    @cached_property
    def ways(self) -> dict[int, tuple[int, tuple[Setting, ...]]]:
        """Of R and X: the token that tells of it, and its settings."""
        return {KINDS.index(kind): (self.modes[kind], settings) for kind, settings in self.settings.items()}

    @cached_property
    def names(self) -> np.ndarray:
        """Ids of the gaps."""
        return np.array(self.gaps, np.int64)


def suffix_length(length: int, rate: float, lot: float) -> int:
    """How much of L tokens is learned at the end: each length is as likely as the others, and `rate` of L is their mean. Something always
    stands before."""
    twice = round(2 * rate * length)
    highest = min(length, twice) - 1
    lowest = max(1, twice - highest)
    return lowest + int(lot * (highest - lowest + 1))
