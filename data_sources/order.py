"""Order without a machine: every draw is a function of (seed, position, purpose), by a hash that no library version changes."""

import hashlib
import struct
from functools import lru_cache

LANES = 48

Key = str | int


def draw(*key: Key) -> int:
    """A number of 64 bits from `key`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def permutation(size: int, *key: Key) -> tuple[int, ...]:
    """The numbers below `size`, sorted by 64 random bits each. 10,000 take three milliseconds."""
    if size < 2:
        return tuple(range(size))
    bits = struct.unpack(f"<{size}Q", hashlib.shake_256(repr(key).encode()).digest(8 * size))
    return tuple(sorted(range(size), key=bits.__getitem__))


@lru_cache(maxsize=256)
def kept_permutation(size: int, *key: Key) -> tuple[int, ...]:
    """The same, made once for many that ask for it: of shards and blocks."""
    return permutation(size, *key)


def content_hash(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
