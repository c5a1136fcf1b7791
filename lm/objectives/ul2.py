"""UL2, a mixture of denoisers (Tay et al. 2022, "UL2: unifying language learning paradigms"; for a model that was causal before: Tay et al.
2022, "Transcending scaling laws with 0.1 % extra compute"), as causal sequences, so that every unit can be trained on it.

    R, regular      short gaps, few                        <R> text with gaps, gaps      (lm/objectives/spans.py)
    X, extreme      long gaps, or half of the text         <X> text with gaps, gaps
    S, sequential   the text goes on to its end            text                          learned from a place drawn anywhere on

Each stretch of a document of up to `longest` tokens is an example, draws its own denoiser, and is read afresh. S has no mode token: it is how a
text without one is read, so that chat and evaluation read as S does, and a model that was causal before goes on without a seam.

Sizes: L tokens of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from data_sources.packed import NOT_SCORED
from data_sources.rewriting import Example, Source, as_it_stands
from lm.objectives.draws import Draws
from lm.objectives.spans import Counts, Setting
from lm.objectives.together import GapPlan, with_gaps

KINDS = ("R", "S", "X")
FEWEST = 4  # tokens that are worth a denoiser; fewer are read and learned as they stand, and counted for none
NOTHING = np.zeros(0, np.int64)
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
        longest = -(-left // -(-left // self.longest))  # the examples of a document are about equally long
        draws = Draws(seed, row, position, "ul2")
        lots = Lots(*draws.lots)
        kind = next(kind for kind, reached in self.ends if lots.kind < reached)
        if left < FEWEST:
            return as_it_stands(source, room)._replace(begins=True)
        if kind == "S":
            return self._sequential(source, min(longest, room), lots)
        settings = self.settings[kind]
        counts = Counts(settings[int(lots.setting * len(settings))], len(self.gaps), (lots.tokens, lots.gaps))
        length = counts.fitting(room, longest)
        part = slice(source.offset, source.offset + length)
        text = source.tokens[part]
        spared = int(text[0] == self.bos)
        noise, gaps = counts.of(length - spared)
        plan = GapPlan(draws.start, text, learned_of(source, part), noise, gaps, spared, self.modes[kind])
        return Example(length, NOTHING, NOTHING, 1 + length + 2 * gaps, KINDS.index(kind), begins=True, plan=plan)

    def finished(self, row: int, plans: Sequence[GapPlan]) -> tuple[np.ndarray, np.ndarray]:
        made = with_gaps(plans, self.names, self.end)
        return made.tokens, made.targets

    def _sequential(self, source: Source, length: int, lots: "Lots") -> Example:
        part = slice(source.offset, source.offset + length)
        targets = source.targets[part].copy()
        targets[: length - suffix_length(length, self.suffix_rate, lots.suffix)] = NOT_SCORED
        return Example(length, source.tokens[part], targets, length, KINDS.index("S"), begins=True)

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
    if before.min(initial=0) != NOT_SCORED:  # which is below all ids
        return None
    return np.concatenate([[False] * (part.start == 0), before != NOT_SCORED]).astype(np.bool_)
