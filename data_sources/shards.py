"""Shards that are files: what each kind of file holds, and a reader over a list of them.

`KINDS` is the one table from a file's ending to what opens it. Adding a kind is adding a row.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data_sources.documents import Document, GivenUp
from data_sources.ranges import DAMAGE, DECOMPRESSORS, ByteRanges, PackedLines, PlainLines, Seekable
from data_sources.rows import Notes, RowFormat
from data_sources.text import chunks

FOOTER_BYTES = 1 << 16  # fetched at once at a parquet file's end, which is enough for most

Lines = PlainLines | PackedLines


class Shard(Protocol):
    """An open file."""

    def blocks(self) -> int | None: ...

    def texts(self, block: int) -> list[str] | None: ...

    def close(self) -> None: ...


class ParquetShard:
    """A parquet file; a block is a row group, and only the columns that are needed are fetched."""

    def __init__(self, data: ByteRanges, rows: RowFormat):
        self._data, self._rows = data, rows
        self._held = Seekable(data)
        self._hold_footer()
        # No pre-buffering and no threads: Arrow's own would call back into Python while the interpreter goes down.
        self._file = pq.ParquetFile(self._held, pre_buffer=False)
        self._columns = rows.columns(self._file.schema_arrow.names)

    def _hold_footer(self) -> None:
        """The file's description stands at its end, followed by its length in four bytes and a mark of four."""
        size = self._data.size()
        start = max(0, size - FOOTER_BYTES)
        footer = self._data.read(start, size)
        length = int.from_bytes(footer[-8:-4], "little") + 8
        missing = max(0, size - length)
        self._held.hold([(min(missing, start), self._data.read(missing, start) + footer)])

    def blocks(self) -> int | None:
        return self._file.num_row_groups

    def texts(self, block: int) -> list[str] | None:
        if block >= self._file.num_row_groups:
            return None
        columns = list(dict.fromkeys(self._columns.values()))
        self._held.hold([(start, self._data.read(start, end)) for start, end in self._ranges(block, columns)])
        try:
            table = self._file.read_row_group(block, columns=columns, use_threads=False)
        finally:
            self._held.hold([])
        return self._rows.texts(_table_rows(table), self._columns)

    def _ranges(self, block: int, columns: Sequence[str]) -> list[tuple[int, int]]:
        """The bytes of `columns` in a row group."""
        group = self._file.metadata.row_group(block)
        chunks = [group.column(number) for number in range(group.num_columns)]
        wanted = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
        starts = [min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))) for chunk in wanted]
        return [(start, start + chunk.total_compressed_size) for start, chunk in zip(starts, wanted, strict=True)]

    def close(self) -> None:
        self._file.close()
        self._data.close()


class JsonShard:
    """A file of JSON objects, one a line."""

    def __init__(self, lines: Lines, rows: RowFormat, notes: Notes):
        self._lines, self._rows, self._notes = lines, rows, notes
        self._columns: dict[tuple[str, ...], dict[str, str]] = {}

    def blocks(self) -> int | None:
        return self._lines.blocks()

    def texts(self, block: int) -> list[str] | None:
        lines = self._lines.read(block)
        if lines is None:
            return None
        lines = [line for line in lines if line.strip()]
        rows = [row for line in lines if (row := _json_object(line)) is not None]
        self._notes.count("lines were no JSON objects and were passed over", len(lines) - len(rows))
        texts = [text for row in rows if (text := self._text(row)) is not None]
        self._notes.count("rows held no text and were passed over", len(rows) - len(texts))
        return texts

    def _text(self, row: dict[str, Any]) -> str | None:
        present = tuple(row)
        if present not in self._columns:
            self._columns[present] = self._columns_of(present)
        columns = self._columns[present]
        return self._rows.text(row, columns) if columns else None

    def _columns_of(self, present: tuple[str, ...]) -> dict[str, str]:
        """Rows of one file may differ: only where the first row lacks the column is the file of another kind."""
        try:
            return self._rows.columns(present)
        except GivenUp:
            if not self._columns:
                raise
            return {}

    def close(self) -> None:
        self._lines.close()


class ProseShard:
    """A text or Markdown file, cut into chunks."""

    def __init__(self, lines: Lines):
        self._lines = lines

    def blocks(self) -> int | None:
        return self._lines.blocks()

    def texts(self, block: int) -> list[str] | None:
        lines = self._lines.read(block)
        return None if lines is None else chunks(b"\n".join(lines).decode("utf-8", "replace").replace("\r\n", "\n"))

    def close(self) -> None:
        self._lines.close()


def _parquet(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return ParquetShard(data, rows)


def _json(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return JsonShard(_lines(data, packing), rows, notes)


def _prose(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return ProseShard(_lines(data, packing))


def _lines(data: ByteRanges, packing: str) -> Lines:
    return PackedLines(data, packing) if packing else PlainLines(data)


KINDS: dict[str, Callable[[ByteRanges, str, RowFormat, Notes], Shard]] = {
    ".parquet": _parquet,
    ".jsonl": _json,
    ".json": _json,
    ".ndjson": _json,
    ".txt": _prose,
    ".md": _prose,
}


def kind_of(name: str) -> tuple[str, str] | None:
    """(ending in KINDS, ".gz", ".zst" or "") of a file's name, or None for what can't be read. Parquet is packed inside."""
    packing = next((ending for ending in DECOMPRESSORS if name.lower().endswith(ending)), "")
    kind = PurePath(name[: len(name) - len(packing)]).suffix.lower()
    return (kind, packing) if kind in KINDS and not (packing and kind == ".parquet") else None


class FileReader:
    """A Reader over files: a shard is a file. A damaged file is named once and passed over."""

    OPEN = 8  # files kept open: lanes stand in a few shards at a time

    def __init__(self, listed: Callable[[], Sequence[str]], opened: Callable[[str], ByteRanges], rows: RowFormat, notes: Notes, strict: bool):
        self._listed, self._opened, self._rows, self._notes = listed, opened, rows, notes
        self._strict = strict  # whether a file without the column speaks for the whole source
        self._names: list[str] | None = None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._passed_over: set[int] = set()

    def shards(self) -> list[str]:
        if self._names is None:
            self._names = list(self._listed())
        return self._names

    def blocks(self, shard: int) -> int | None:
        opened = self._shard(shard)
        return opened.blocks() if opened is not None else 0

    def read(self, shard: int, block: int) -> list[Document] | None:
        opened = self._shard(shard)
        texts = self._texts(opened, shard, block) if opened is not None else None
        return None if texts is None else [Document(text, self.shards()[shard]) for text in texts]

    def _texts(self, opened: Shard, shard: int, block: int) -> list[str] | None:
        try:
            return opened.texts(block)
        except DAMAGE:  # what stood before the damage is still to be had
            self._notes.say(f"{self.shards()[shard]} is damaged; what is past the damage is passed over")
            return opened.texts(block)
        except (OSError, pa.ArrowException) as error:
            self._notes.say(f"a part of {self.shards()[shard]} is damaged and passed over: {_one_line(error)}")
            return []
        except GivenUp as error:
            self._pass_over(shard, error)
            return None

    def _shard(self, shard: int) -> Shard | None:
        if shard in self._passed_over:
            return None
        if shard not in self._open:
            opened = self._open_shard(shard)
            if opened is None:
                return None
            self._open[shard] = opened
            if len(self._open) > self.OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_shard(self, shard: int) -> Shard | None:
        name = self.shards()[shard]
        kind = kind_of(name)
        assert kind is not None, name
        try:
            return KINDS[kind[0]](self._opened(name), kind[1], self._rows, self._notes)
        except (GivenUp, OSError, pa.ArrowException) as error:
            self._pass_over(shard, error)
        return None

    def _pass_over(self, shard: int, error: Exception) -> None:
        if self._strict and isinstance(error, GivenUp):
            raise error
        self._passed_over.add(shard)
        self._notes.say(f"{self.shards()[shard]} is passed over: {_one_line(error)}")

    def notices(self) -> list[str]:
        return self._notes.take()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table; text that is no UTF-8 is mended, which Arrow alone would refuse."""
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        binary = table.cast(pa.schema([pa.field(f.name, pa.binary()) if pa.types.is_string(f.type) else f for f in table.schema]))
        return [{k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in row.items()} for row in binary.to_pylist()]


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def readable_files(root: str) -> list[str]:
    """Files below `root` that KINDS can read, relative and sorted. Hidden ones are skipped, link loops end."""
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if not name.startswith(".") and kind_of(name)]
    return sorted(found)
