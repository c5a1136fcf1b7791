"""Random numbers without a state: each is a function of its key, by arithmetic that no library version changes.

A hash gives the first of them. SplitMix64 gives more (Steele, Lea & Flood 2014): number i of a stream is a hash of seed + i * golden ratio, so a
whole array is made at once.
"""

import hashlib
import struct

import numpy as np

from data_sources.order import Key

WORDS = struct.Struct("<8Q")

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
LAST_SHIFT = np.uint64(31)
COUNT = np.arange(1, 4097, dtype=np.uint64) * GOLDEN  # of the first numbers of any stream


class Draws:
    """Numbers of one key: a few `lots` that come with it, and as many more as are asked for."""

    def __init__(self, *key: Key) -> None:
        start, *lots = WORDS.unpack(hashlib.blake2b(repr(key).encode(), digest_size=WORDS.size).digest())
        self.lots = [(lot >> 11) * 2.0**-53 for lot in lots]  # seven, from 0 up to 1
        self._at = np.uint64(start)

    def bits(self, count: int) -> np.ndarray:
        """(count,) uint64, the next ones."""
        z = (COUNT[:count] if count <= len(COUNT) else np.arange(1, count + 1, dtype=np.uint64) * GOLDEN) + self._at
        self._at = z[-1] if count else self._at
        for shift, factor in MIXERS:
            z ^= z >> shift
            z *= factor
        z ^= z >> LAST_SHIFT
        return z

    def shares(self, count: int) -> np.ndarray:
        """(count,) float64 from 0 up to 1."""
        return (self.bits(count) >> np.uint64(11)) * 2.0**-53


def chosen(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` of the numbers below len(keys), those with the lowest keys, ascending: where keys are random all such choices are equally likely."""
    if not count:
        return np.zeros(0, np.int64)
    places = keys.argpartition(count - 1)[:count] if count < len(keys) else np.arange(count)
    places.sort()
    return places
