"""Random numbers without a state: each is a function of its key, by arithmetic that no library version changes.

A hash gives the first of them. SplitMix64 gives more (Steele, Lea & Flood 2014): number i of a stream is a hash of start + i * golden ratio, so a
whole array is made at once.
"""

import hashlib
import struct

import numpy as np

KEY, WORDS = struct.Struct("<3q"), struct.Struct("<Q5I")
LOT = 2.0**-32  # times one of the five: from 0 up to 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
LAST_SHIFT = np.uint64(31)
KEY_BITS, INDEX_BITS = 28, 16  # of a random key that choices go by, and of the place that it is for


def words(purpose: bytes, seed: int, row: int, position: int) -> tuple[int, ...]:
    """A number of 64 bits, where a stream of more of them may start, and five of 32 bits."""
    return WORDS.unpack(hashlib.blake2b(purpose + KEY.pack(seed, row, position), digest_size=WORDS.size).digest())


def mixed(z: np.ndarray) -> np.ndarray:
    """`z` (uint64) hashed, in place."""
    for shift, factor in MIXERS:
        z ^= z >> shift
        z *= factor
    z ^= z >> LAST_SHIFT
    return z


def ranked(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The top of random bits, made in place, and behind it the place (int64) that they are for: to be sorted by, with no two alike."""
    bits >>= np.uint64(64 - KEY_BITS)
    bits <<= np.uint64(INDEX_BITS)
    bits |= places.view(np.uint64)
    return bits
