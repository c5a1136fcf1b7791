"""Lines of a file, and elements of a JSON array as lines, in blocks, within bounds.

A plain file of lines is cut into blocks by position, so any block is a seek; a packed one, and an array, can only be read from
its start, and keeps its place between blocks. What is unpacked at a time, what a line may hold and what a file may unpack to
are bounded, so that no file can fill the memory.
"""

import codecs
import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import zstandard

from data_sources.ranges import ByteRanges

BLOCK_BYTES = 1 << 20  # text in one block of lines: some hundreds of documents
FETCH_BYTES = 1 << 20
LONGEST = 64 << 20  # bytes of a line; what is longer is no document, but something that would fill the memory
SIP_BYTES = 128  # unpacked at a time; zstd makes up to 4 MB of that, gzip 128 kB
MOST_UNPACKED = 250  # times the packed size, and SLACK; text is packed to a tenth, and what is past this is a bomb
SLACK = 16 << 20
HEAD_BYTES = 8000
LARGEST_WINDOW = 1 << 27  # bytes that unpacking zstd looks back to; its own tools refuse more, too
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
DAMAGE = (zlib.error, zstandard.ZstdError)


class Damage(Exception):
    """What was read so far is to be had, and the rest is not. The message ends a sentence that begins with the file's name."""


class Lines(Protocol):
    """A file as lines. `too_long` counts those that were passed over since it was last set to 0."""

    too_long: int

    def blocks(self) -> int | None: ...

    def read(self, block: int) -> list[bytes] | None:
        """The lines of a block without their ends, or None past the last block. May raise Damage, once."""
        ...

    def head(self) -> bytes:
        """Some of the first bytes."""
        ...

    def close(self) -> None: ...


class PlainLines:
    """Lines of a plain file. Block i holds the lines that begin in bytes [i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)."""

    def __init__(self, data: ByteRanges):
        self._data = data
        self.too_long = 0

    def blocks(self) -> int | None:
        return -(-self._data.size() // BLOCK_BYTES)

    def read(self, block: int) -> list[bytes] | None:
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
        if at == size or held.endswith(b"\n"):
            return held.removesuffix(b"\n").split(b"\n")
        *whole, last = held.split(b"\n")
        rest = self._rest_of_line(at, size, LONGEST - len(last))
        if rest is None:
            self.too_long += 1
            return whole
        return [*whole, last + rest]

    def _rest_of_line(self, at: int, size: int, most: int) -> bytes | None:
        """Bytes from `at` to the end of the line; None where they are more than `most`."""
        pieces: list[bytes] = []
        while at < size:
            piece = self._data.read(at, min(at + FETCH_BYTES, size))
            head, newline, _ = piece.partition(b"\n")
            pieces.append(head)
            most -= len(head)
            if most < 0:
                return None
            if newline:
                break
            at += len(piece)
        return b"".join(pieces)

    def head(self) -> bytes:
        return self._data.read(0, HEAD_BYTES)

    def close(self) -> None:
        self._data.close()


class Cutter(Protocol):
    """What makes lines of bytes."""

    def feed(self, piece: bytes) -> list[bytes]:
        """`piece` in parts: a line ends after each but the last."""
        ...


class Newlines:
    """Cuts at line ends."""

    def feed(self, piece: bytes) -> list[bytes]:
        return piece.split(b"\n")


class Elements:
    """Cuts the bytes of a JSON array between its elements; what stands around it goes."""

    IN_STRING, OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["\[\]{},]')

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, piece: bytes) -> list[bytes]:
        parts: list[bytes] = []
        start = at = 0
        if self._escaped and piece:  # the last piece ended in the middle of an escape
            self._escaped, at = False, 1
        while (found := (self.IN_STRING if self._in_string else self.OUTSIDE).search(piece, at)) is not None:
            sign, at = found[0], found.end()
            if sign == b"\\":
                self._escaped = at == len(piece)
                at += 1
            elif sign == b'"':
                self._in_string = not self._in_string
            elif sign in b"[{":
                self._depth += 1
                start = at if self._depth == 1 else start
            else:
                self._depth -= sign != b","
                if self._depth == (sign == b","):  # a comma in the array itself, or its end
                    parts.append(piece[start : at - 1])
                    start = at
        return [*parts, piece[start:]]


class Either:
    """Cuts at line ends, or between the elements where the first sign is the bracket of an array."""

    def __init__(self) -> None:
        self._cutter: Newlines | Elements | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        if self._cutter is None and piece.strip(BLANK):
            self._cutter = Elements() if is_array(piece) else Newlines()
        return self._cutter.feed(piece) if self._cutter is not None else [piece]


def is_array(start: bytes) -> bool:
    """Whether what begins so is a JSON array."""
    return start.lstrip(BLANK).startswith(b"[")


class _Unpacking:
    """One way through a file. A fault while fetching changes nothing here, so the same call may be made again."""

    def __init__(self, data: ByteRanges, ending: str, cutter: Cutter):
        self._data, self._ending, self._cutter = data, ending, cutter
        self._at = self._sipped = self._unpacked = 0
        self._packed = memoryview(b"")  # fetched, and still to be unpacked
        self._unpack, self._members, self._inside = DECOMPRESSORS[ending](), 0, False
        self._tail: list[bytes] = []  # of the line that has not ended yet
        self._tail_bytes = 0
        self._lines: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._damage: Damage | None = None
        self.block = 0  # the block that next_block gives
        self.too_long = 0

    def next_block(self) -> list[bytes] | None:
        """Lines of the next block: the least number that make BLOCK_BYTES."""
        while self._bytes < BLOCK_BYTES and not self._ended:
            self._go_on()
        if self._damage is not None:
            damage, self._damage = self._damage, None
            raise damage
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

    def head(self) -> bytes:
        """Some of the next bytes."""
        while not (self._lines or self._tail or self._ended):
            self._go_on()
        return b"\n".join([*self._lines[:HEAD_BYTES], b"".join(self._tail)])[:HEAD_BYTES]

    def _go_on(self) -> None:
        """Unpack a sip, and fetch before that where nothing is left."""
        if not self._packed:
            self._packed = memoryview(self._data.read(self._at, min(self._at + FETCH_BYTES, self._data.size())))
            self._at += len(self._packed)
            self._ended = not self._packed
        sip = SIP_BYTES if self._ending else FETCH_BYTES
        packed, self._packed = self._packed[:sip], self._packed[sip:]
        try:
            if self._ended and self._inside:
                raise Damage("ends in the middle")
            self._sip(packed)
        except Damage as damage:
            self._damage, self._ended = damage, True
        if self._ended:
            self._end_line()

    def _sip(self, packed: memoryview | bytes) -> None:
        self._sipped += len(packed)
        while packed:
            if self._members and not self._inside and self._ending == ".gz":
                packed = bytes(packed).lstrip(b"\0")  # tapes, and some tools, fill up with zeros
                if not packed:
                    return
            try:
                unpacked = self._unpack.decompress(packed)
            except DAMAGE as error:
                raise Damage(f"is damaged, and passed over past the damage ({' '.join(str(error).split())})") from None
            self._split(unpacked)
            packed, self._inside = b"", bool(self._ending)
            if self._unpack.eof:  # gzip and zstd files may be several, one after the other
                packed, self._inside = self._unpack.unused_data, False
                self._unpack = DECOMPRESSORS[self._ending]()
                self._members += 1

    def _split(self, unpacked: bytes) -> None:
        self._unpacked += len(unpacked)
        first, *others = self._cutter.feed(unpacked)
        self._extend(first)
        if others:
            *whole, last = others
            self._end_line()
            self._take(whole)
            self._extend(last)
        if self._unpacked > MOST_UNPACKED * self._sipped + SLACK:
            raise Damage(f"unpacks to more than {MOST_UNPACKED} times its size, and is passed over past that")

    def _take(self, lines: list[bytes]) -> None:
        """Lines that began and ended in one piece: there may be millions of them."""
        kept = lines if max(map(len, lines), default=0) <= LONGEST else [line for line in lines if len(line) <= LONGEST]
        self.too_long += len(lines) - len(kept)
        self._lines += kept
        self._bytes += sum(map(len, kept)) + len(kept)

    def _extend(self, part: bytes) -> None:
        self._tail_bytes += len(part)
        if self._tail_bytes > LONGEST:
            self._tail = []
        elif part:
            self._tail.append(part)

    def _end_line(self) -> None:
        line, size = b"".join(self._tail), self._tail_bytes
        self._tail, self._tail_bytes = [], 0
        if size > LONGEST:
            self.too_long += 1
        elif line or not self._ended:
            self._lines.append(line)
            self._bytes += len(line) + 1


class PackedLines:
    """Lines of a .gz or .zst file. Going on is cheap; going back, and the first read after a resume, unpack from the start."""

    WAYS = 4  # lanes drift apart by some blocks, and each group of them keeps its own way through the file

    def __init__(self, data: ByteRanges, ending: str, cutter: Callable[[], Cutter] = Newlines):
        """`ending`: ".gz", ".zst", or "" where nothing is packed."""
        self._data, self._ending, self._cutter = data, ending, cutter
        self._ways: list[_Unpacking] = []
        self.too_long = 0

    def blocks(self) -> int | None:
        return None

    def read(self, block: int) -> list[bytes] | None:
        way = self._way_to(block)
        while way.block < block:
            if way.next_block() is None:
                return None
        lines = way.next_block()
        self.too_long, way.too_long = self.too_long + way.too_long, 0
        return lines

    def _way_to(self, block: int) -> _Unpacking:
        behind = [way for way in self._ways if way.block <= block]
        way = max(behind, key=lambda way: way.block) if behind else _Unpacking(self._data, self._ending, self._cutter())
        self._ways = [other for other in self._ways if other is not way][-(self.WAYS - 1) :] + [way]
        return way

    def head(self) -> bytes:
        return self._way_to(0).head()

    def close(self) -> None:
        self._ways = []
        self._data.close()


class _AsItIs:
    """What is not packed."""

    eof, unused_data = False, b""

    def decompress(self, data: memoryview | bytes) -> bytes:
        return bytes(data)


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj(),
    "": _AsItIs,
}
PACKINGS = tuple(filter(None, DECOMPRESSORS))
