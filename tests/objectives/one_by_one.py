"""What lm/objectives/together.py makes of a whole batch, one example after the other and token by token: the definition, from the same draws."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from data_sources.rewriting import NOT_SCORED, Example, Rewriter, Source
from lm.objectives.draws import GOLDEN, INDEX_BITS, mixed, ranked, words
from lm.objectives.ul2 import Ul2


class Stream:
    """Numbers of one key, as many as are asked for."""

    def __init__(self, purpose: bytes, *key: int) -> None:
        self.start, self.taken = words(purpose, *key)[0], 0

    def bits(self, count: int) -> np.ndarray:
        """(count,) uint64, the next ones."""
        steps = np.arange(self.taken + 1, self.taken + count + 1, dtype=np.uint64) * GOLDEN
        self.taken += count
        return mixed(steps + np.uint64(self.start))

    def shares(self, count: int) -> list[float]:
        """From 0 up to 1."""
        return ((self.bits(count) >> np.uint64(11)) * 2.0**-53).tolist()


def chosen(bits: np.ndarray, count: int) -> list[int]:
    """`count` of the numbers below len(bits), ascending: where bits are random all such choices are equally likely."""
    lowest = np.sort(ranked(bits, np.arange(len(bits))))[:count] & np.uint64((1 << INDEX_BITS) - 1)
    return sorted(lowest.tolist())


class Gap(NamedTuple):
    """A span of the text."""

    begin: int
    end: int


def gaps_drawn(noise: int, gaps: int, length: int, draws: Stream, spared: int = 0) -> list[Gap]:
    """`noise` of `length` tokens in gaps, none among the first `spared`: lengths, and places between the tokens outside, are each equally likely."""
    keys = draws.bits(length - spared)
    cuts = [0, *(cut + 1 for cut in chosen(keys[: noise - 1], gaps - 1)), noise]
    before = chosen(keys[noise - 1 :], gaps)  # how many tokens outside, but for those that are spared, stand before each
    return [Gap(spared + outside + start, spared + outside + stop) for outside, (start, stop) in zip(before, pairwise(cuts), strict=True)]


def corrupted(text: np.ndarray, learned: np.ndarray | None, gaps: list[Gap], mode: int, names: Any, end: int) -> tuple[list[int], list[int]]:
    """Tokens and targets of `text` with `gaps`. learned: which tokens may be learned, None for all; what follows a gap is learned where its last token is."""
    read, answers, targets, at = [mode], [], [], 0
    for name, gap in zip(names, gaps, strict=False):
        read += [*text[at : gap.begin].tolist(), name]
        words = text[gap.begin : gap.end].tolist()
        may_be = [True] * len(words) if learned is None else learned[gap.begin : gap.end].tolist()
        answers += [name, *words]
        targets += [word if may else NOT_SCORED for word, may in zip(words, may_be, strict=True)]
        targets.append((names[gaps.index(gap) + 1] if gap != gaps[-1] else end) if may_be[-1] else NOT_SCORED)
        at = gap.end
    read += text[at:].tolist()
    return [*read, *answers], [NOT_SCORED] * len(read) + targets


def example_of(rewriter: Rewriter, *key: Any) -> Example:
    """An example as the stream makes it, of a batch of its own. key: as of Rewriter.planned."""
    planned = rewriter.planned(*key)
    if planned.plan is None:
        return planned
    tokens, targets = rewriter.finished(key[1], [planned.plan])
    return planned._replace(tokens=tokens, targets=targets, plan=None)


def defined(rewriter: Ul2, seed: int, row: int, position: int, source: Source, room: int) -> Example:
    """The same by the definition."""
    planned = rewriter.planned(seed, row, position, source, room)
    if planned.plan is None:
        return planned
    _, text, learned, noise, gaps, spared, mode = planned.plan
    where = gaps_drawn(noise, gaps, len(text), Stream(b"ul2", seed, row, position), spared)
    tokens, targets = corrupted(text, learned, where, mode, rewriter.gaps, rewriter.end)
    return planned._replace(tokens=np.array(tokens), targets=np.array(targets), plan=None)
