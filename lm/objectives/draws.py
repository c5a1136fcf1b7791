"""Random numbers without a state: each is a function of its key, by arithmetic that no library version changes.

SplitMix64 (Steele, Lea & Flood 2014): number i of a stream is a hash of seed + i * golden ratio, so a whole array is made at once.
"""

import numpy as np

from data_sources.order import Key, draw

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
LAST_SHIFT = np.uint64(31)
COUNT = np.arange(1, 4097, dtype=np.uint64) * GOLDEN  # of the first numbers of any stream


class Draws:
    """Numbers of one key, in order."""

    def __init__(self, *key: Key) -> None:
        self._at = np.uint64(draw(*key))

    def bits(self, count: int) -> np.ndarray:
        """(count,) uint64, the next ones."""
        steps = COUNT[:count] if count <= len(COUNT) else np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        z = steps + self._at
        self._at = z[-1] if count else self._at
        for shift, factor in MIXERS:
            z ^= z >> shift
            z *= factor
        z ^= z >> LAST_SHIFT
        return z

    def shares(self, count: int) -> np.ndarray:
        """(count,) float64 from 0 up to 1."""
        return (self.bits(count) >> np.uint64(11)) * 2.0**-53

    def share(self) -> float:
        """One of them."""
        return float(self.shares(1)[0])

    def below(self, end: int) -> int:
        """A whole number from 0 up to `end`."""
        return int(self.bits(1)[0]) * end >> 64

    def chosen(self, size: int, count: int) -> np.ndarray:
        """`count` of the numbers below `size`, ascending; all such choices are equally likely."""
        if not count:
            return np.zeros(0, np.int64)
        places = np.argpartition(self.bits(size), count - 1)[:count]
        places.sort()
        return places

    def parted(self, total: int, parts: int) -> np.ndarray:
        """(parts,) lengths of at least 1 that add up to `total`; all such are equally likely."""
        ends = np.empty(parts, np.int64)
        ends[:-1] = self.chosen(total - 1, parts - 1)
        ends[:-1] += 1
        ends[-1] = total
        ends[1:] -= ends[:-1].copy()
        return ends
