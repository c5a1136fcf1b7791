"""The words of chunks, from their tokens: what a memory compares chunks by.

A token is a piece of text, of which the longest run of letters and digits counts. Runs that meet are one word: its hash is a polynomial of its
letters, without their case and without a last s, modulo 2^64 (Karp and Rabin 1987), so a word is the same one however it is cut into tokens. A piece
of a script without case, which mostly sets no spaces, is a word by itself, and so is one that is no whole letter.

A word's weight grows with the logarithm of the number of its token. BPE numbers its tokens by how often they were needed, so that is what
idf would give (Spärck Jones 1972), and no later text can change it. A word of several tokens is rarer than all of one.

Sizes: N chunks, C tokens of a chunk, V vocabulary.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.memory.layout import mixed

BASE = 0x5851F42D4C957F2D  # of the polynomial; odd
INVERSE = pow(BASE, -1, 1 << 64)
MASK = (1 << 64) - 1
RUN = re.compile(r"[^\W_]+")
UNKNOWN = "\ufffd"  # where a piece is no whole letter
COMMON, RATIO = 50, (9, 8)  # the tokens before this number count least; another unit of weight with each factor

RARER = 3  # units of weight that a word of several tokens has more than the last token


class Found(NamedTuple):
    """The words of chunks, in the order of their hashes."""

    hashes: np.ndarray  # (N, C) uint64, 0 where there is none
    weights: np.ndarray  # (N, C) float64, whole numbers: 0 where there is none, or the same one stood before


class Piece(NamedTuple):
    """What a token gives to a word."""

    hash: int  # of its run; 0 where it has none
    power: int  # BASE to the run's length: what the hash of the run before is multiplied by
    begins: bool  # whether a word begins with it, whatever is before
    ends: bool  # whether a word ends with it, whatever follows
    plural: bool  # whether a last s is left out

    @classmethod
    def of(cls, text: str, number: int) -> "Piece":
        """text: of the token of this number. It is another text at the beginning of a line and within, and the latter is wanted."""
        run = max(RUN.findall(text.casefold()), key=len, default="")
        if UNKNOWN in text or any(letter.isalpha() and letter.upper() == letter.lower() for letter in run):
            return cls.whole(number if UNKNOWN in text else hash_of(run))
        start = text.casefold().find(run)
        return cls(hash_of(run), pow(BASE, len(run), 1 << 64), start > 0 or not run, not run or not text.casefold().endswith(run), run.endswith("s"))

    @classmethod
    def whole(cls, value: int) -> "Piece":
        """A word by itself, of which nothing is known."""
        return cls(int(mixed(np.array([value], np.uint64) + np.uint64(1 << 63))[0]), 1, True, True, False)


def hash_of(run: str) -> int:
    """Of letters; never 0 for one that has any."""
    value = 0
    for letter in run:
        value = (value * BASE + ord(letter)) & MASK
    return value


def piece_texts(tokenizer: Any) -> list[str]:
    """The text of each token as it stands within a line: with the space before it, where it has one."""
    letter = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode(letter)
    return [tokenizer.decode([*letter, number]).removeprefix(before) for number in range(len(tokenizer))]


class Words:
    """Tokens -> words. `pieces`: the text of each token, as `piece_texts` has it; without, each token is a word."""

    def __init__(self, vocab_size: int, pieces: Sequence[str] | None = None):
        made = [Piece.whole(number) if pieces is None else Piece.of(pieces[number], number) for number in range(vocab_size)]
        kinds = zip(Piece._fields, (np.uint64, np.uint64, bool, bool, bool), strict=True)
        self._hash, self._power, self._begins, self._ends, self._plural = (np.array([getattr(p, name) for p in made], kind) for name, kind in kinds)
        self._known, first = np.unique(np.where(self._plural, singular(self._hash), self._hash), return_index=True)
        limits = limits_below(vocab_size)
        self._known_weight = np.searchsorted(limits, first, "right").astype(np.float64)
        self._rare = float(np.searchsorted(limits, vocab_size - 1, "right") + RARER)

    @property
    def table(self) -> np.ndarray:
        """(5, V) uint64: all that words depend on."""
        return np.stack([part.astype(np.uint64) for part in (self._hash, self._power, self._begins, self._ends, self._plural)])

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> Found:
        """tokens (N, C), of which the first `count` (N,) of each count. IndexError where one is past the vocabulary."""
        hashes = np.sort(self.hashes(tokens, count).T, axis=1)
        again = hashes[:, 1:] == hashes[:, :-1]
        weights = self._weights(hashes)
        weights[:, 1:] *= ~again
        return Found(hashes, weights)

    def hashes(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(C, N) uint64: where a word ends, its hash; 0 elsewhere. Its axes are the other way round: what is done step by step is then one
        piece of memory."""
        there = np.arange(tokens.shape[1])[:, None] < count
        tokens = np.where(there, tokens.T, 0)
        hashes = np.where(there, self._hash[tokens], 0)
        joined = np.zeros_like(there)
        joined[1:] = there[1:] & ~(self._begins[tokens[1:]] | self._ends[tokens[:-1]])
        self._join(hashes.ravel(), tokens.ravel(), joined.ravel(), len(count))
        hashes[:-1] *= ~joined[1:]
        return np.where(self._plural[tokens] & (hashes > 0), singular(hashes), hashes)

    def _join(self, hashes: np.ndarray, tokens: np.ndarray, joined: np.ndarray, step: int) -> None:
        """Each hash with that of what is before it, `step` places back, where it is joined: all second pieces of words, then all third ones."""
        place = np.flatnonzero(joined)
        place = place[~joined[place - step]]
        while len(place):
            hashes[place] += hashes[place - step] * self._power[tokens[place]]
            place = place[place + step < len(joined)] + step
            place = place[joined[place]]

    def shared(self, hashes: np.ndarray, weights: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(N,) the squared weights, added up, of those words (T,) of a question that stand in chunks (N, C), each counted once."""
        held, likely = self.hashes(tokens, count).ravel(), np.zeros(1 << 12, bool)
        likely[hashes >> np.uint64(52)] = True
        at = np.flatnonzero(likely[held >> np.uint64(52)])  # few are left to be looked for
        word = np.minimum(np.searchsorted(hashes, held[at]), len(hashes) - 1)
        same = hashes[word] == held[at]
        words = np.zeros((len(count), len(hashes)), bool)
        words[at[same] % max(len(count), 1), word[same]] = True
        return words @ weights**2

    def _weights(self, hashes: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        weights = np.where(self._known[place] == hashes, self._known_weight[place], self._rare)
        return np.where(hashes > 0, weights, 0.0)


def singular(hashes: np.ndarray) -> np.ndarray:
    """Of words with a last s: without it, and 1 for the word s."""
    return np.maximum((hashes - np.uint64(ord("s"))) * np.uint64(INVERSE), np.uint64(1))


def limits_below(vocab_size: int) -> list[int]:
    """The numbers of tokens from which on another unit of weight counts."""
    limits: list[int] = []
    while not limits or limits[-1] < vocab_size:
        power = len(limits)
        limits.append(COMMON * RATIO[0] ** power // RATIO[1] ** power - COMMON)
    return limits
