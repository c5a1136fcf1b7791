"""A memory as evaluation and chat ask it: in one state, by chunks of a text at hand.

Sizes: N chunks of C tokens, k neighbours of each, R = 2C tokens of a neighbour, B rows of T tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_sources.batch import Arrivals
from lm.memory.finder import Finder
from lm.memory.layout import MemoryFault
from lm.memory.memory import Memory, Passage

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
        vectors = self.memory.vectors(tokens, np.full(len(tokens), tokens.shape[1]))
        return self.memory.nearest(vectors, times * self.neighbours, self.length).numbers


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
    """Chunks drawn by lot, whatever is asked by: what a memory is worth is what it gains over these."""

    lookup: Lookup
    seed: int = 0

    @property
    def chunk_size(self) -> int:
        return self.lookup.chunk_size

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lookup, shape = self.lookup, (len(tokens), self.lookup.neighbours)
        first = lookup.memory.first(lookup.length)
        drawn = np.random.default_rng(self.seed).integers(first, max(lookup.length, first + 1), shape)
        return lookup.memory.neighbours(drawn if lookup.length > first else np.full(shape, -1), lookup.length)


def arrivals_in(tokens: Tensor, restart: Tensor, find: Finder) -> Arrivals:
    """What is handed in with rows (B, T), each of which goes on where the one before ended or begins a document: by each chunk of a document,
    when it is whole, and at the beginning of a row by the last one before."""
    flat, size = tokens.flatten(), find.chunk_size
    steps = torch.arange(len(flat))
    place = steps - torch.where(restart.flatten(), steps, 0).cummax(0).values
    at = (((place % size == 0) & (place > 0)) | ((steps % tokens.shape[1] == 0) & (place >= size))).nonzero().flatten()
    ends = at - place[at] % size
    chunks = flat[(ends - size)[:, None] + torch.arange(size)]
    found, length = find(chunks.numpy())
    return Arrivals(at, torch.from_numpy(found), torch.from_numpy(length))
