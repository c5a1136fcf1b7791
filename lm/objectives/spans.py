"""Span corruption as one causal sequence (Raffel et al. 2020; as in Tay et al. 2022, figure 3, for a decoder alone).

    the text      the quick brown fox jumps over the lazy dog
    is read as    <R> the <gap_0> fox jumps <gap_1> lazy dog  <gap_0> quick brown <gap_1> over the  END
    and learned                                                     quick brown <gap_1> over the  END

Gaps are spans of the text; in the input each is a token of its own, and behind the input they stand in order, each behind its token. What
follows the last is the end. The token of the first gap is not learned: where an input ends can't be known, and whoever fills a gap writes it.

Sizes: L tokens of text, N of them in S gaps, M = L - N outside.
"""

from typing import NamedTuple

import numpy as np

from data_sources.packed import NOT_SCORED
from lm.objectives.draws import Draws, chosen


class Setting(NamedTuple):
    """How much is taken out, in pieces of about which length (SpanCorrupt of Tay et al. 2022, section 3.1)."""

    mean_span: float
    rate: float


class Counts(NamedTuple):
    """How many tokens are taken out of a text, in how many gaps: rounded by lot, so that rate and mean span are those asked for on average.
    (To the nearest, 15 % of 512 tokens would be two gaps of 38 and not of 32.)"""

    setting: Setting
    most: int  # gaps that have a token
    lots: tuple[float, float]  # from 0 up to 1, for the tokens and for the gaps

    def of(self, length: int) -> tuple[int, int]:
        """N and S for L > 1 tokens, at least 1 each; with L neither ever falls."""
        noise = min(max(1, int(length * self.setting.rate + self.lots[0])), length - 1)
        gaps = max(1, int(noise / self.setting.mean_span + self.lots[1]))
        return noise, min(gaps, self.most, noise, length - noise + 1)

    def positions(self, length: int) -> int:
        """How long the sequence of L tokens is: the mode, the text, and each gap's token twice."""
        return 1 + length + 2 * self.of(length)[1]

    def fitting(self, room: int, longest: int) -> int:
        """The highest L up to `longest` whose sequence has up to `room` positions."""
        mean, rate = self.setting
        length = min(longest, room - 3, int(room / (1 + 2 * rate / mean)) + 4)
        while length > 2 and self.positions(length) > room:
            length -= 1
        return length


class Gaps(NamedTuple):
    """Where the gaps of a text are."""

    before: np.ndarray  # (S,) ascending and all different: how many tokens outside stand before each, so that something stands between two of them
    first: np.ndarray  # (S,) how many tokens of other gaps come before its own
    length: np.ndarray  # (S,)

    @classmethod
    def drawn(cls, noise: int, gaps: int, length: int, draws: Draws, spared: int = 0) -> "Gaps":
        """N of L tokens in S gaps, none among the first `spared`: lengths, and places between the tokens outside, are each equally likely."""
        keys = draws.bits(length - spared)
        ends = np.empty(gaps + 1, np.int64)
        ends[0], ends[-1] = 0, noise
        ends[1:-1] = chosen(keys[: noise - 1], gaps - 1) + 1
        return cls(chosen(keys[noise - 1 :], gaps) + spared, ends[:-1], ends[1:] - ends[:-1])

    @property
    def begin(self) -> np.ndarray:
        """(S,) places in the text."""
        return self.before + self.first

    def inside(self, length: int) -> np.ndarray:
        """(L,) bool: which tokens are in gaps."""
        edges = np.zeros(length + 1, np.int8)
        begin = self.begin
        edges[begin] = 1
        edges[begin + self.length] -= 1
        return edges[:-1].cumsum(dtype=np.int8).view(np.bool_)


class Sequence(NamedTuple):
    """What is read and what is learned, each (1 + L + 2 S,)."""

    tokens: np.ndarray
    targets: np.ndarray


def corrupted(text: np.ndarray, learned: np.ndarray | None, gaps: Gaps, mode: int, names: np.ndarray, end: int) -> Sequence:
    """The sequence of `text` (L,) with `gaps`; mode, names (S or more,) and end are ids.

    learned: (L,) bool, which tokens of the text may be learned; None for all. What follows a gap is learned where its last token is.
    """
    count, inside = len(gaps.length), gaps.inside(len(text))
    taken = text[inside]
    outside = len(text) - len(taken)
    at = np.concatenate((gaps.before, gaps.first + outside))  # where names stand in the text, its gaps put behind it
    at += np.arange(1, 2 * count + 1)
    is_word = np.ones(1 + len(text) + 2 * count, np.bool_)
    is_word[0] = is_word[at] = False
    tokens = np.empty(len(is_word), np.int64)
    tokens[0], tokens[at[:count]], tokens[at[count:]] = mode, names[:count], names[:count]
    tokens[is_word] = np.concatenate((text[~inside], taken))
    start = 1 + outside + count  # the first gap's name, behind the input
    targets = np.full(len(tokens), NOT_SCORED, np.int64)
    targets[start:-1] = tokens[start + 1 :]
    targets[-1] = end
    if learned is not None:
        _leave_out(targets[start:], is_word[start:], learned[inside])
    return Sequence(tokens, targets)


def _leave_out(targets: np.ndarray, is_word: np.ndarray, learned: np.ndarray) -> None:
    """Of what stands behind the input, score no targets but those that are `learned` words, and those that end a gap whose last word is."""
    is_learned = np.zeros(len(targets), np.bool_)
    is_learned[is_word] = learned
    follows = np.append(is_word[1:], False)
    targets[~np.where(follows, np.append(is_learned[1:], False), is_learned)] = NOT_SCORED
