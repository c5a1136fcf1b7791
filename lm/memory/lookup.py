"""A memory as evaluation and chat ask it: in one state, by chunks of a text at hand.

Sizes: N chunks of C tokens, k neighbours of each, R = 2C tokens of a neighbour, B rows of T tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_sources.batch import Arrivals, within
from lm.memory.finder import Finder
from lm.memory.layout import MemoryFault, mixed, odd_constants
from lm.memory.memory import Memory, Passage

NOT_HANDED = -1.0  # in place of an overlap
AT_ONCE = 512  # questions: what is compared takes memory for each of them
LOTS = 16  # the first purpose of odd constants that is Chance's
COPIES = (4, 32, 256)  # of a text that are searched through for another: a source that is read again is remembered again


class Lookup(NamedTuple):
    """The nearest chunks of a memory as it stood at a length."""

    memory: Memory
    length: int
    chunk_size: int
    neighbours: int

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.memory.neighbours(self.nearest(tokens), self.length)

    def nearest(self, tokens: np.ndarray, times: int = 1) -> np.ndarray:
        """Numbers (N, times * k) of the chunks nearest to `tokens` (N, any number), -1 where there are no more."""
        k = times * self.neighbours
        parts = [tokens[at : at + AT_ONCE] for at in range(0, len(tokens), AT_ONCE)]
        found = [self.memory.nearest(part, np.full(len(part), part.shape[1]), k, self.length).numbers for part in parts]
        return np.concatenate(found) if found else np.zeros((0, k), np.int64)


class Heard:
    """A lookup that can be switched off, and tells afterwards what it handed in. What is damaged is asked no more, and `trouble` says why."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup, self.chunk_size, self.is_on, self.trouble = lookup, lookup.chunk_size, True, ""
        self._numbers: dict[int, None] = {}  # in order, each once

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            if self.is_on and not self.trouble:
                numbers = self.lookup.nearest(tokens)
                found = self.lookup.memory.neighbours(numbers, self.lookup.length)
                self._numbers |= dict.fromkeys(numbers[numbers >= 0].tolist())
                return found
        except MemoryFault as fault:
            self.trouble = str(fault)
        shape = (len(tokens), self.lookup.neighbours)
        return np.zeros((*shape, 2 * self.chunk_size), np.int64), np.zeros(shape, np.int64)

    def passages(self, tokens: np.ndarray) -> list[Passage]:
        """What is nearest to one text (its tokens), nearest first. Of what was read more than once one is enough."""
        if self.trouble or not len(tokens):
            return []
        try:
            return self._unlike(tokens[None])[: self.lookup.neighbours]
        except MemoryFault as fault:
            self.trouble = str(fault)
            return []

    def _unlike(self, tokens: np.ndarray) -> list[Passage]:
        """At least as many unlike passages as are wanted, where there are."""
        found: list[Passage] = []
        for times in COPIES:
            numbers = self.lookup.nearest(tokens, times)[0]
            found = unlike(self.lookup.memory.about(numbers[numbers >= 0]))
            if len(found) >= self.lookup.neighbours or numbers[-1] < 0:
                break
        return found

    def taken(self) -> list[Passage]:
        """What was handed in since the last call, each passage once."""
        numbers, self._numbers = np.array(list(self._numbers), np.int64), {}
        try:
            return unlike(self.lookup.memory.about(numbers))
        except MemoryFault as fault:
            self.trouble = str(fault)
            return []


def unlike(passages: Sequence[Passage]) -> list[Passage]:
    """The first of each text."""
    found: dict[tuple[int, ...], Passage] = {}
    for passage in passages:
        found.setdefault(tuple(passage.tokens.tolist()), passage)
    return list(found.values())


class Chance(NamedTuple):
    """Chunks drawn by lot, for each that asks, however many ask at once: what a memory is worth is what it gains over these."""

    lookup: Lookup
    seed: int = 0

    @property
    def chunk_size(self) -> int:
        return self.lookup.chunk_size

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lookup, shape = self.lookup, (len(tokens), self.lookup.neighbours)
        first = lookup.memory.first(lookup.length)
        lots = mixed((tokens.astype(np.uint64) @ odd_constants(tokens.shape[1], LOTS))[:, None] + odd_constants(shape[1], LOTS + 1 + self.seed))
        drawn = first + (lots % np.uint64(max(lookup.length - first, 1))).astype(np.int64)
        return lookup.memory.neighbours(drawn if lookup.length > first else np.full(shape, -1), lookup.length)


class Questions(NamedTuple):
    """What a memory is asked with rows, before it is: so that nobody waits for more than is read next."""

    at: Tensor  # (N,) int64, ascending: flattened place in B * T from which on the answer may be seen
    chunks: Tensor  # (N, C) int64

    def part(self, rows: slice, time: slice, shape: tuple[int, int]) -> "Questions":
        """Those within `rows` and `time` of the rows of `shape` (B, T) that these are for, as that part of them takes them."""
        inside, at = within(self.at, rows, time, shape)
        return Questions(at, self.chunks[inside])

    def answered(self, find: Finder) -> Arrivals:
        """What is handed in."""
        found, length = find(self.chunks.numpy())
        return Arrivals(self.at, torch.from_numpy(found), torch.from_numpy(length))


def questions_in(tokens: Tensor, restart: Tensor, size: int) -> Questions:
    """With rows (B, T), each of which goes on where the one before ended or begins a document, in chunks of `size` tokens: each chunk of a document
    asks when it is whole, and at the beginning of a row the last one before."""
    flat = tokens.flatten()
    steps = torch.arange(len(flat))
    place = steps - torch.where(restart.flatten(), steps, 0).cummax(0).values
    at = (((place % size == 0) & (place > 0)) | ((steps % tokens.shape[1] == 0) & (place >= size))).nonzero().flatten()
    ends = at - place[at] % size
    return Questions(at, flat[(ends - size)[:, None] + torch.arange(size)])


def overlaps_in(targets: Tensor, restart: Tensor, arrivals: Arrivals) -> Tensor:
    """(B, T) how much of the text from one arrival to the next stood in what was handed in: the longest run of its `targets` (B, T) that one of
    the neighbours has, too, over its length. NOT_HANDED before the first arrival of a document, and where none of the neighbours is there."""
    found = torch.full(targets.shape, NOT_HANDED)
    edges = restart.clone()
    edges[:, 0] = True
    edges.view(-1)[arrivals.at] = True
    starts = edges.flatten().nonzero().flatten()
    ends = dict(zip(starts.tolist(), [*starts[1:].tolist(), targets.numel()], strict=True))
    for at, tokens, length in zip(arrivals.at.tolist(), arrivals.tokens.numpy(), arrivals.length.numpy(), strict=True):
        if length.any():
            text = targets.flatten()[at : ends[at]].numpy()
            found.view(-1)[at : ends[at]] = longest_run(text, tokens, length) / len(text)
    return found


def longest_run(text: np.ndarray, others: np.ndarray, length: np.ndarray) -> int:
    """Of the tokens (N,) that stand in one piece in one of the `others` (k, R), of which the first `length` (k,) count."""
    there = np.arange(others.shape[1]) < length[:, None]
    longest, run = 0, np.zeros((len(others), others.shape[1] + 1), np.int64)
    for token in text.tolist():
        run[:, 1:] = np.where(there & (others == token), run[:, :-1] + 1, 0)
        longest = max(longest, int(run.max()))
    return longest
