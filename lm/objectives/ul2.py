"""UL2, a mixture of denoisers (Tay et al. 2022, "UL2: unifying language learning paradigms"; for a model that was causal before: Tay et al.
2022, "Transcending scaling laws with 0.1 % extra compute"), as causal sequences, so that every unit can be trained on it.

    R, regular      short gaps, few                        <R> text with gaps, gaps      (lm/objectives/spans.py)
    X, extreme      long gaps, or half of the text         <X> text with gaps, gaps
    S, sequential   the text goes on to its end            text                          learned from a place drawn anywhere on

Each stretch of a document of up to `longest` tokens is an example, draws its own denoiser, and is read afresh. S has no mode token: it is how a
text without one is read, so that chat and evaluation read as S does, and a model that was causal before goes on without a seam.

Sizes: L tokens of text.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from data_sources.packed import NOT_SCORED
from data_sources.rewriting import Example, Source
from lm.objectives.draws import Draws
from lm.objectives.spans import Counts, Gaps, Setting, corrupted

KINDS = ("R", "S", "X")
FEWEST = 4  # tokens that are worth a denoiser; fewer are read and learned as they stand
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

    def __call__(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        """The next example of a document."""
        left = len(source.tokens) - source.offset
        longest = -(-left // -(-left // self.longest))  # the examples of a document are about equally long
        draws = Draws(seed, row, position, "ul2")
        lots = Lots(*draws.lots[:5])
        kind = next(kind for kind, reached in self.ends if lots.kind < reached)
        if kind == "S" or left < FEWEST:
            return self._sequential(source, min(longest, room), lots)
        return self._with_gaps(kind, source, longest, room, lots, draws)

    def _sequential(self, source: Source, length: int, lots: "Lots") -> Example:
        part = slice(source.offset, source.offset + length)
        targets = source.targets[part].astype(np.int64)
        if length >= FEWEST:
            targets[: length - suffix_length(length, self.suffix_rate, lots.suffix)] = NOT_SCORED
        return Example(length, source.tokens[part], targets, KINDS.index("S"), begins=True)

    def _with_gaps(self, kind: str, source: Source, longest: int, room: int, lots: "Lots", draws: Draws) -> Example:
        settings = self.settings[kind]
        counts = Counts(settings[int(lots.setting * len(settings))], len(self.gaps), (lots.tokens, lots.gaps))
        length = counts.fitting(room, longest)
        part = slice(source.offset, source.offset + length)
        text = source.tokens[part]
        gaps = Gaps.drawn(counts, length, draws, spared=int(text[0] == self.bos))
        made = corrupted(text, learned_of(source, part), gaps, self.modes[kind], self.names, self.end)
        return Example(length, made.tokens, made.targets, KINDS.index(kind), begins=True)

    @cached_property
    def ends(self) -> list[tuple[str, float]]:
        """The denoisers that have a share, and up to where lots are theirs."""
        known = [(kind, reached) for kind, share, reached in zip(KINDS, self.shares, accumulate(self.shares), strict=True) if share]
        return [*known[:-1], (known[-1][0], 1.0)]

    @cached_property
    def names(self) -> np.ndarray:
        """Ids of the gaps."""
        return np.array(self.gaps, np.int64)


class Lots(NamedTuple):
    """From 0 up to 1 each: what an example is decided by, beside the places of its gaps."""

    kind: float
    setting: float
    tokens: float
    gaps: float
    suffix: float


def suffix_length(length: int, rate: float, lot: float) -> int:
    """How much of L tokens is learned at the end: each length is as likely as the others, and `rate` of L is their mean. Something always
    stands before."""
    highest = min(length - 1, round(2 * rate * length) - 1)
    lowest = max(1, round(2 * rate * length) - highest)
    return lowest + int(lot * (highest - lowest + 1))


def learned_of(source: Source, part: slice) -> np.ndarray | None:
    """Which tokens of a part of a document may be learned: what precedes each says so. None for all."""
    before = source.targets[max(part.start - 1, 0) : part.stop - 1]
    if (before != NOT_SCORED).all():
        return None
    return np.concatenate([[False] * (part.start == 0), before != NOT_SCORED]).astype(np.bool_)
