"""Random numbers without a state: each is a function of its key, by arithmetic that no library version changes.

A hash gives the first of them. SplitMix64 gives more (Steele, Lea & Flood 2014): number i of a stream is a hash of start + i * golden ratio, so a
whole array is made at once.
"""

import hashlib
import struct

import numpy as np

from data_sources.order import Key

WORDS = struct.Struct("<6Q")
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
LAST_SHIFT = np.uint64(31)
KEY_BITS, INDEX_BITS = 28, 16  # of a random key that choices go by, and of the place that it is for


class Draws:
    """Numbers of one key: a few `lots`, and where the stream of all others starts."""

    def __init__(self, *key: Key) -> None:
        self.start, *lots = WORDS.unpack(hashlib.blake2b(repr(key).encode(), digest_size=WORDS.size).digest())
        self.lots = [(lot >> 11) * 2.0**-53 for lot in lots]  # five, from 0 up to 1


def mixed(z: np.ndarray) -> np.ndarray:
    """`z` (uint64) hashed, in place."""
    for shift, factor in MIXERS:
        z ^= z >> shift
        z *= factor
    z ^= z >> LAST_SHIFT
    return z


def ranked(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The top of random bits, and behind it the place that they are for: to be sorted by, with no two alike."""
    return (bits >> np.uint64(64 - KEY_BITS) << np.uint64(INDEX_BITS)) | places.astype(np.uint64)
