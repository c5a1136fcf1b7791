"""Files as ranges of bytes, wherever they lie, and lines read from such ranges.

`ByteRanges` is all that a file must offer. A plain file of lines is cut into blocks by position, so any block is a seek; a
compressed one can only be read from its start, and keeps its place between blocks.
"""

import gzip
import io
import os
import zlib
from collections.abc import Sequence
from typing import Protocol

import zstandard

BLOCK_BYTES = 1 << 20  # text in one block of lines: some hundreds of documents
FETCH_BYTES = 1 << 20
DAMAGE = (zlib.error, zstandard.ZstdError, gzip.BadGzipFile, EOFError)


class ByteRanges(Protocol):
    """A file that can be read from any byte to any other."""

    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes:
        """Bytes from `start` up to `end`, fewer only where the file ends. May raise GivenUp or PassingFault."""
        ...

    def close(self) -> None: ...


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(max(0, end - start))

    def close(self) -> None:
        self._file.close()


class Seekable(io.RawIOBase):
    """A ByteRanges as the file object that pyarrow asks for.

    What pyarrow will read is held in memory before it is called: a thread that waits for the network inside pyarrow's own code
    would abort the whole process when the interpreter ends.
    """

    def __init__(self, data: ByteRanges):
        self._data, self._place = data, 0
        self._held: list[tuple[int, bytes]] = []

    def hold(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Serve reads from these (start, bytes), in place of those held before."""
        self._held = list(pieces)

    def _read(self, start: int, end: int) -> bytes:
        for held_start, held in self._held:
            if held_start <= start and end <= held_start + len(held):
                return held[start - held_start : end - held_start]
        return self._data.read(start, end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._data.size()}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._data.size() if size is None or size < 0 else min(self._place + size, self._data.size())
        data = self._read(self._place, end) if end > self._place else b""
        self._place += len(data)
        return data


class PlainLines:
    """Lines of a plain file. Block i holds the lines that begin in bytes [i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)."""

    def __init__(self, data: ByteRanges):
        self._data = data

    def blocks(self) -> int | None:
        return -(-self._data.size() // BLOCK_BYTES)

    def read(self, block: int) -> list[bytes] | None:
        """The lines of a block without their ends, or None past the last block."""
        size, start, end = self._data.size(), block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        if start >= size:
            return None
        # The byte before the block tells whether its first line begins there or earlier.
        held = self._data.read(max(0, start - 1), min(end, size))
        if start:
            held = held.partition(b"\n")[2]
            if not held:  # one line all through, or the next line begins where the next block does
                return []
        at = min(end, size)
        if at < size and not held.endswith(b"\n"):
            held += self._rest_of_line(at, size)
        return held.removesuffix(b"\n").split(b"\n")

    def _rest_of_line(self, at: int, size: int) -> bytes:
        pieces: list[bytes] = []
        while at < size:
            piece = self._data.read(at, min(at + FETCH_BYTES, size))
            head, newline, _ = piece.partition(b"\n")
            pieces.append(head)
            if newline:
                break
            at += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._data.close()


class _Unpacking:
    """One way through a compressed file. A fault while fetching changes nothing here, so the same call may be made again."""

    def __init__(self, data: ByteRanges, ending: str):
        self._data, self._ending = data, ending
        self._at = 0
        self._unpack = DECOMPRESSORS[ending]()
        self._packed = b""
        self._tail: list[bytes] = []
        self._lines: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self.block = 0  # the block that next_block gives

    def next_block(self) -> list[bytes] | None:
        """Lines of the next block: the least number that make BLOCK_BYTES."""
        while self._bytes < BLOCK_BYTES and not self._ended:
            self._fetch()
        if not self._lines:
            return None
        size, count = 0, 0
        while count < len(self._lines) and size < BLOCK_BYTES:
            size += len(self._lines[count]) + 1
            count += 1
        block, self._lines = self._lines[:count], self._lines[count:]
        self._bytes -= size
        self.block += 1
        return block

    def _fetch(self) -> None:
        packed = self._data.read(self._at, min(self._at + FETCH_BYTES, self._data.size()))
        self._at += len(packed)
        try:
            unpacked = self._unpacked(packed)
        except DAMAGE:
            self._ended = True
            self._end_line()
            raise
        self._split(unpacked)
        if not packed:
            self._ended = True
            self._end_line()

    def _unpacked(self, packed: bytes) -> bytes:
        pieces = []
        while packed:
            pieces.append(self._unpack.decompress(packed))
            packed = self._unpack.unused_data if self._unpack.eof else b""
            if self._unpack.eof:  # gzip and zstd files may be several, one after the other
                self._unpack = DECOMPRESSORS[self._ending]()
        return b"".join(pieces)

    def _split(self, unpacked: bytes) -> None:
        *whole, rest = unpacked.split(b"\n")
        for line in whole:
            self._tail.append(line)
            self._end_line()
        if rest:
            self._tail.append(rest)

    def _end_line(self) -> None:
        line = b"".join(self._tail)
        self._tail = []
        if line or not self._ended:
            self._lines.append(line)
            self._bytes += len(line) + 1


class PackedLines:
    """Lines of a .gz or .zst file. Going on is cheap; going back, and the first read after a resume, unpack from the start."""

    WAYS = 4  # lanes drift apart by some blocks, and each group of them keeps its own way through the file

    def __init__(self, data: ByteRanges, ending: str):
        self._data, self._ending = data, ending
        self._ways: list[_Unpacking] = []

    def blocks(self) -> int | None:
        return None

    def read(self, block: int) -> list[bytes] | None:
        """The lines of a block without their ends, or None past the last block."""
        way = self._way_to(block)
        while way.block < block:
            if way.next_block() is None:
                return None
        return way.next_block()

    def _way_to(self, block: int) -> _Unpacking:
        behind = [way for way in self._ways if way.block <= block]
        way = max(behind, key=lambda way: way.block) if behind else _Unpacking(self._data, self._ending)
        self._ways = [other for other in self._ways if other is not way][-(self.WAYS - 1) :] + [way]
        return way

    def close(self) -> None:
        self._ways = []
        self._data.close()


DECOMPRESSORS = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}
