"""Files as ranges of bytes, wherever they lie: `ByteRanges` is all that a file must offer."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from data_sources.documents import PassingFault, Unreadable


class Changed(PassingFault):
    """A file is another than it was when it was opened: open it again."""


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
        """OSError, or Unreadable for what is no file: opening a pipe would wait for somebody to write into it."""
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unreadable("it is no file")
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(max(0, end - start))

    def close(self) -> None:
        self._file.close()


class NotHeld(OSError):
    """A read of what is not to be had now."""


class Seekable(io.RawIOBase):
    """A ByteRanges as the file object that pyarrow asks for.

    What pyarrow will read is held in memory before it is called: a thread that waits for the network inside pyarrow's own code
    would abort the whole process when the interpreter ends.
    """

    def __init__(self, data: ByteRanges):
        self._data, self._place = data, 0
        self._held: list[tuple[int, bytes]] = []
        self._is_closed = False

    def hold(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Serve reads from these (start, bytes), in place of those held before."""
        self._held = list(pieces)

    @contextlib.contextmanager
    def nothing(self) -> Iterator[None]:
        """In here every read fails with NotHeld."""
        self._is_closed = True
        try:
            yield
        finally:
            self._is_closed = False

    def _read(self, start: int, end: int) -> bytes:
        if self._is_closed:
            raise NotHeld
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


def column_chunks(file: Any, through: Seekable, block: int, columns: Sequence[str]) -> list[Any]:
    """What a row group of a parquet file (pyarrow.parquet.ParquetFile), read `through` its file object, says of `columns`: ColumnChunkMetaData.

    OSError where that is damaged. To look at damaged statistics ends the process: pyarrow lets C++ exceptions out of RowGroupMetaData.column. Its
    readers do not, so each column is given to one of them first, which comes as far as the bytes.
    """
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    wanted = [number for number, path in enumerate(paths) if any(f"{path}.".startswith(f"{column}.") for column in columns)]
    for number in wanted:
        with through.nothing(), contextlib.suppress(NotHeld):
            next(file.iter_batches(1, row_groups=[block], columns=[paths[number]], use_threads=False), None)
    group = file.metadata.row_group(block)
    return [group.column(number) for number in wanted]


def ranges_of(chunks: Sequence[Any]) -> list[tuple[int, int]]:
    """The bytes of columns of a row group (ColumnChunkMetaData)."""
    starts = [min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))) for chunk in chunks]
    return [(start, start + chunk.total_compressed_size) for start, chunk in zip(starts, chunks, strict=True)]
