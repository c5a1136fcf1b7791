"""Span corruption as one causal sequence (Raffel et al. 2020; as in Tay et al. 2022, figure 3, for a decoder alone).

    the text      the quick brown fox jumps over the lazy dog
    is read as    <R> the <gap_0> fox jumps <gap_1> lazy dog  <gap_0> quick brown <gap_1> over the  END
    and learned                                                     quick brown <gap_1> over the  END

Gaps are spans of the text; in the input each is a token of its own, and behind the input they stand in order, each behind its token. What
follows the last is the end. The token of the first gap is not learned: where an input ends can't be known, and whoever fills a gap writes it.

Here: how much is taken out, in how many gaps. Where they are and what is made of it stands in lm/objectives/together.py.

Sizes: L tokens of text, N of them in S gaps.
"""

from typing import NamedTuple


class Setting(NamedTuple):
    """How much is taken out, in pieces of about which length (SpanCorrupt of Tay et al. 2022, section 3.1)."""

    mean_span: float
    rate: float


class Counts(NamedTuple):
    """How many tokens are taken out of a text, in how many gaps: rounded by lot, so that rate and mean span are those asked for on average.
    (To the nearest, 15 % of 512 tokens would be two gaps of 38 and not of 32.)"""

    mean_span: float
    rate: float
    most: int  # gaps that have a token
    noise_lot: float  # from 0 up to 1
    gaps_lot: float

    def of(self, length: int) -> tuple[int, int]:
        """N and S for L > 1 tokens, at least 1 each; with L neither ever falls."""
        mean, rate, most, noise_lot, gaps_lot = self
        noise = min(int(length * rate + noise_lot) or 1, length - 1)
        return noise, min(int(noise / mean + gaps_lot) or 1, most, noise, length - noise + 1)

    def fitting(self, room: int, longest: int, spared: int) -> tuple[int, int, int]:
        """The highest L up to `longest` whose sequence has up to `room` positions, and N and S of it, which leave out the first `spared` tokens. The
        sequence is the mode, the text, and each gap's token twice."""
        length = min(longest, room - 3, int(room / (1 + 2 * self.rate / self.mean_span)) + 4)
        while True:
            noise, gaps = self.of(length - spared)
            if length <= 2 + spared or 1 + length + 2 * gaps <= room:
                return length, noise, gaps
            length -= 1
