"""How a memory lies on disk: the columns of a segment, and checksums that notice every changed bit.

    folder/writer-5f00c1d2a37b.json      a manifest: what a writer's chunks have in common, the files that it goes on from, and its own
    folder/00000003-5f00c1d2a37b.chunks  a segment: room for `segment` chunks, column by column, of a fixed size
    folder/00000003-5f00c1d2a37b.about   a line for each document that a segment's chunks are of, behind its checksum

Sizes: N chunks, C chunk_size tokens, D vector_size, S chunks of a segment.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_sources.disk import discard, sync_folder

FORMAT = 1
SEGMENT = 16_384  # chunks
LONGEST = 1000  # characters of a source's name and of a place
SEED = 0x9E3779B97F4A7C15


class MemoryFault(Exception):
    """A memory can't be used: damaged, another's, or held. The message is one line."""


class Shape(NamedTuple):
    """What all chunks of a memory have in common. A memory of another shape is another memory."""

    chunk_size: int
    vocab_size: int
    vector_size: int
    embedder: str  # its name, with all that its vectors depend on
    segment: int = SEGMENT

    @property
    def columns(self) -> dict[str, tuple[str, int]]:
        """By name: the numpy type, and how many of it a chunk has (0: one, without an axis of its own). The widest types come first, so all are aligned."""
        token = "<u2" if self.vocab_size <= 1 << 16 else "<u4"
        numbers = {"document": "<i8", "checksum": "<u8", "place": "<u4", "about": "<u4", "count": "<u4"}
        return {name: (kind, 0) for name, kind in numbers.items()} | {"tokens": (token, self.chunk_size), "vectors": ("<i1", self.vector_size)}

    @property
    def offsets(self) -> dict[str, int]:
        """By name: bytes from the start of a segment to the column. "end": the size of a segment."""
        found, at = {}, 0
        for name, (kind, width) in self.columns.items():
            found[name] = at
            at += self.segment * np.dtype(kind).itemsize * max(1, width)
        return found | {"end": at}

    def require(self, wanted: "Shape", folder: Path) -> None:
        """MemoryFault where this is another shape than the one that is wanted. A memory keeps the segments that it began with."""
        pairs = zip(self._fields[:-1], self[:-1], wanted[:-1], strict=True)
        differ = [f"{name} {ours} in place of {theirs}" for name, ours, theirs in pairs if ours != theirs]
        if differ:
            raise MemoryFault(f"{folder}: what is there has {', '.join(differ)}; another memory has to begin")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """As a whole or not at all, and on disk when this returns."""
    aside, text = path.with_suffix(".tmp"), json.dumps(value).encode()
    try:
        with open(aside, "wb") as file:
            file.write(line_of(text))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        discard(aside)
        raise
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """What write_json wrote. FileNotFoundError where it is not there, MemoryFault where it is not what was written."""
    try:
        return json.loads(text_of(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise MemoryFault(f"{path} can't be read: {in_short(error)}") from None


def line_of(text: bytes) -> bytes:
    """A text without line ends, behind its checksum."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def text_of(line: bytes) -> bytes:
    """The text in such a line. ValueError where a bit of it changed."""
    if line[8:9] + line[-1:] != b" \n" or line[:8] != b"%08x" % zlib.crc32(line[9:-1]):
        raise ValueError("damaged")
    return line[9:-1]


def checksums(columns: Mapping[str, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """(N,) uint64 of these chunks (N,): the sum of their words, each times an odd constant of its place, modulo 2^64.

    A word that changes alone always shows, since an odd number has an inverse; several go unseen once in about 2^64 times.
    """
    words = np.stack([column.astype(np.uint64) for column in (numbers, *(columns[name] for name in ("document", "place", "about", "count")))], 1)
    return _weighed(words, 1) + _weighed(columns["tokens"], 2) + _weighed(columns["vectors"].view(np.uint8), 3) + np.uint64(SEED)


def _weighed(words: np.ndarray, purpose: int) -> np.ndarray:
    return words.astype(np.uint64) @ odd_constants(words.shape[1], purpose)


def mixed(values: np.ndarray) -> np.ndarray:
    """64 bits of each uint64 that look drawn by lot: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def odd_constants(count: int, purpose: int) -> np.ndarray:
    """(count,) uint64, the same for ever."""
    counter = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(purpose) << np.uint64(32))
    return mixed(counter * np.uint64(SEED)) | np.uint64(1)


def in_short(error: Exception) -> str:
    """What an error says, for the reason of a MemoryFault."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300].lower() or type(error).__name__
