"""Titles of the rows of parquet files, read beside their texts and never in their place.

Trouble with titles costs no text: where they are damaged, too many or can't be fetched, the file is read on without them. Each different
title of a row group is held once, as the file has it: written out row by row, one long value could fill the memory.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_sources.documents import SourceError, Unreadable
from data_sources.ranges import ByteRanges, Seekable, column_chunks, ranges_of
from data_sources.rows import title_of
from data_sources.text import OPENING

TEXT = {"string", "large_string", "string_view"}
MOST_BYTES = 64 << 20  # of a row group's titles, packed or not; a million of them have some 30 MB
ROWS = 1 << 16  # at a time: each time brings all titles up to there with it
TROUBLE = (SourceError, Unreadable, OSError, pa.ArrowException, LookupError, ValueError)


class ParquetTitles:
    """The titles of one file. After the first trouble there are none: another try at the network may take seconds."""

    def __init__(self, data: ByteRanges, held: Seekable, file: pq.ParquetFile, column: str):
        """held: what `file` reads from, while it holds the file's description."""
        self._data, self._held, self._column = data, held, column
        self._file = pq.ParquetFile(held, metadata=file.metadata, read_dictionary=[column], pre_buffer=False)
        self._are_read = True

    @classmethod
    def of(cls, data: ByteRanges, held: Seekable, file: pq.ParquetFile, column: str | None) -> Self | None:
        """None where `column` is, or no column has that name, or it holds no text."""
        schema = file.schema_arrow
        if column is None or schema.names.count(column) != 1 or not _is_text(schema.field(column).type):
            return None
        try:
            return cls(data, held, file, column)
        except TROUBLE:
            return None

    def read(self, block: int, rows: Sequence[int]) -> list[str]:
        """Of these rows, ascending, of a row group; empty where there is none."""
        if self._are_read and rows:
            try:
                return self._read(block, rows)
            except TROUBLE:
                self._are_read = False
        return [""] * len(rows)

    def _read(self, block: int, rows: Sequence[int]) -> list[str]:
        chunks = column_chunks(self._file, self._held, block, [self._column])
        unpacked, ranges = sum(chunk.total_uncompressed_size for chunk in chunks), ranges_of(chunks)
        if max(unpacked, sum(end - start for start, end in ranges)) > MOST_BYTES:
            raise Unreadable(f"its titles have more than {MOST_BYTES >> 20} MB")
        self._held.hold([(start, self._data.read(start, end)) for start, end in ranges])
        try:
            return self._decoded(block, rows)
        finally:
            self._held.hold([])

    def _decoded(self, block: int, rows: Sequence[int]) -> list[str]:
        titles: list[str] = []
        begun = 0
        for batch in self._file.iter_batches(ROWS, row_groups=[block], columns=[self._column], use_threads=False):
            here = rows[len(titles) : bisect_left(rows, begun + len(batch), len(titles))]
            titles += _of_rows(batch.column(self._column), [row - begun for row in here])
            begun += len(batch)
        return [*titles, *[""] * (len(rows) - len(titles))]


def _of_rows(column: pa.DictionaryArray, rows: Sequence[int]) -> list[str]:
    """The titles in these rows of a column. Text that is no UTF-8 is mended."""
    places = column.indices.take(pa.array(rows, pa.int64()))
    used = places.unique().drop_null()
    openings = pc.binary_slice(column.dictionary.cast(pa.binary()).take(used), 0, 4 * OPENING)  # a character has up to four bytes
    known = {place: title_of(opening.decode("utf-8", "replace")) for place, opening in zip(used.to_pylist(), openings.to_pylist(), strict=True)}
    return [known.get(place, "") for place in places.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind) in TEXT
