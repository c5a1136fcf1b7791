"""Shards that are files: what each kind of file holds, and a reader over a list of them.

`KINDS` is the one table from a file's ending to what opens it. Adding a kind is adding a row.
"""

import codecs
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data_sources.documents import Documents, GivenUp, PassingFault, Stopped, Unreadable, one_line
from data_sources.lines import PACKINGS, Damage, Either, Elements, Lines, PackedLines, PlainLines, is_array
from data_sources.ranges import ByteRanges, Changed, Seekable, column_chunks, ranges_of
from data_sources.rows import LONG, Notes, Passage, Passages, RowFormat
from data_sources.text import chunks
from data_sources.titles import ParquetTitles

FOOTER_BYTES = 1 << 16  # fetched at once at a parquet file's end, which is enough for most
LARGEST_FOOTER = 256 << 20  # bytes
MARKS = (b"PAR1", b"PARE")  # the last bytes of a parquet file; the second of an encrypted one
LARGEST_GROUP = 2 << 30  # characters of a row group, and bytes that are fetched for it: it is read in one piece
TEXT_TYPES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}
OTHERS = (PassingFault, Stopped, MemoryError)  # what is no fault of a file's
NO_ROWS = "it holds no rows, but one object; write one object a line, or a list of objects"
BATCH_ROWS = 1024  # turned from Arrow's form to texts at a time


class Shard(Protocol):
    """An open file."""

    def blocks(self) -> int | None: ...

    def passages(self, block: int) -> Passages | None: ...

    def first_row(self, block: int) -> int | None:
        """Number of a block's first row in the file, None where only reading through would tell."""
        ...

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
        self._require_text(self._file.schema_arrow)
        self._titles = ParquetTitles.of(data, self._held, self._file, rows.title_column(self._columns))

    def _require_text(self, schema: pa.Schema) -> None:
        for column in self._columns.values():
            if not _may_hold_text(schema.field(column).type):
                raise GivenUp(f'column "{column}" is no text ({str(schema.field(column).type)[:60]}); there are: {", ".join(schema.names)}')

    def _hold_footer(self) -> None:
        """The file's description stands at its end, followed by its length in four bytes and a mark of four."""
        size = self._data.size()
        start = max(0, size - FOOTER_BYTES)
        footer = self._data.read(start, size)
        if footer[-4:] not in MARKS:
            raise Unreadable("it is no parquet file, or its end is missing")
        length = int.from_bytes(footer[-8:-4], "little") + 8
        if length > LARGEST_FOOTER:
            raise Unreadable(f"its description has more than {LARGEST_FOOTER >> 20} MB")
        missing = max(0, size - length)
        self._held.hold([(min(missing, start), self._data.read(missing, start) + footer)])

    def blocks(self) -> int | None:
        return self._file.num_row_groups

    def passages(self, block: int) -> Passages | None:
        if block >= self._file.num_row_groups:
            return None
        columns = list(dict.fromkeys(self._columns.values()))
        ranges = ranges_of(column_chunks(self._file, self._held, block, columns))
        if sum(end - start for start, end in ranges) > LARGEST_GROUP:
            raise Unreadable(f"its row group {block} has more than {LARGEST_GROUP >> 30} GB")
        self._held.hold([(start, self._data.read(start, end)) for start, end in ranges])
        try:
            found = self._decoded(block, columns)
        finally:
            self._held.hold([])
        return found._replace(titles=self._titles.read(block, found.rows)) if self._titles else found

    def _decoded(self, block: int, columns: list[str]) -> Passages:
        """A row group's texts, some rows at a time: one value may stand for a million rows, and is as many texts."""
        found = Passages([], [], [], [])
        characters = begun = 0
        for batch in self._file.iter_batches(BATCH_ROWS, row_groups=[block], columns=columns, use_threads=False):
            passages = self._rows.passages(_cells(batch), self._columns)
            found.rows.extend(begun + row for row in passages.rows)
            begun += len(batch)
            characters += sum(map(len, passages.texts))
            if characters > LARGEST_GROUP:
                raise Unreadable(f"its row group {block} unpacks to more than {LARGEST_GROUP >> 30} GB")
            found.texts.extend(passages.texts)
            found.scored.extend(passages.scored)
            found.titles.extend(passages.titles)
        return found

    def first_row(self, block: int) -> int:
        return sum(self._file.metadata.row_group(before).num_rows for before in range(block))

    def close(self) -> None:
        self._file.close()
        self._data.close()


class JsonShard:
    """A file of JSON objects, one a line, or of one array of them."""

    def __init__(self, lines: Lines, rows: RowFormat, notes: Notes):
        self._lines, self._rows, self._notes = lines, rows, notes
        self._columns: dict[frozenset[str], dict[str, str] | None] = {}  # by the names among a row's that matter

    def blocks(self) -> int | None:
        return self._lines.blocks()

    def passages(self, block: int) -> Passages | None:
        lines = _counted(self._lines, block, self._notes)
        if lines is None:
            return None
        lines = [line for line in lines if line.strip()]
        rows = [row for line in lines if (row := _json_object(line)) is not None]
        if block == 0 and lines and not rows and lines[0].lstrip().startswith(b"{"):
            raise Unreadable(NO_ROWS)
        self._notes.count("lines were no JSON objects and were passed over", len(lines) - len(rows))
        found = Passages.of([self._passage(row) for row in rows])
        self._require_columns(rows)
        self._notes.count("rows held no text and were passed over", len(rows) - len(found.texts))
        return self._rows.bounded(found)

    def first_row(self, block: int) -> int | None:
        return None if block else 0

    def _passage(self, row: dict[str, Any]) -> Passage | None:
        present = self._rows.known.intersection(row)
        if present not in self._columns:
            try:
                self._columns[present] = self._rows.columns(present)
            except GivenUp:  # rows of one file may differ
                self._columns[present] = None
        columns = self._columns[present]
        return self._rows.passage(row, columns) if columns is not None else None

    def _require_columns(self, rows: list[dict[str, Any]]) -> None:
        """GivenUp where no row so far has the columns: the file is of another kind."""
        if rows and not any(self._columns.values()):
            if len(rows) == 1 and all(isinstance(value, dict) for value in rows[0].values()):
                raise Unreadable(NO_ROWS)
            self._rows.columns(tuple(rows[0]))

    def close(self) -> None:
        self._lines.close()


class ProseShard:
    """A text or Markdown file, cut into chunks."""

    def __init__(self, lines: Lines, notes: Notes):
        self._lines, self._notes = lines, notes
        head = lines.head()
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise Unreadable("it is UTF-16 text; save it as UTF-8")
        if b"\0" in head:
            raise Unreadable("it is no text, since it holds zero bytes")

    def blocks(self) -> int | None:
        return self._lines.blocks()

    def passages(self, block: int) -> Passages | None:
        lines = _counted(self._lines, block, self._notes)
        return None if lines is None else Passages.of([Passage(text) for text in chunks(_decoded(b"\n".join(lines)).replace("\r\n", "\n"))])

    def first_row(self, block: int) -> int | None:
        return None if block else 0

    def close(self) -> None:
        self._lines.close()


def _counted(lines: Lines, block: int, notes: Notes) -> list[bytes] | None:
    """The lines of a block, those that were too long told of."""
    try:
        return lines.read(block)
    finally:
        notes.count(f"lines were {LONG}", lines.too_long)
        lines.too_long = 0


def _parquet(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return ParquetShard(data, rows)


def _json_lines(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return JsonShard(_lines(data, packing), rows, notes)


def _json(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    """Lines, or an array, which can be read from its start only."""
    if packing:
        return JsonShard(PackedLines(data, packing, Either), rows, notes)
    lines = PlainLines(data)
    return JsonShard(PackedLines(data, "", Elements) if is_array(lines.head()) else lines, rows, notes)


def _prose(data: ByteRanges, packing: str, rows: RowFormat, notes: Notes) -> Shard:
    return ProseShard(_lines(data, packing), notes)


def _lines(data: ByteRanges, packing: str) -> Lines:
    return PackedLines(data, packing) if packing else PlainLines(data)


KINDS: dict[str, Callable[[ByteRanges, str, RowFormat, Notes], Shard]] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".json": _json,
    ".ndjson": _json_lines,
    ".txt": _prose,
    ".md": _prose,
}


def kind_of(name: str) -> tuple[str, str] | None:
    """(ending in KINDS, ".gz", ".zst" or "") of a file's name, or None for what can't be read. Parquet is packed inside."""
    packing = next((ending for ending in PACKINGS if name.lower().endswith(ending)), "")
    kind = PurePath(name[: len(name) - len(packing)]).suffix.lower()
    return (kind, packing) if kind in KINDS and not (packing and kind == ".parquet") else None


@dataclass(frozen=True)
class RowPlaces(Sequence[str]):
    """Where the rows of a block stand, in words: made when asked for, since few are."""

    name: str
    block: int
    first_row: int | None
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        if self.first_row is None:
            return f"{self.name}, block {self.block + 1}, row {self.rows[index] + 1}"
        return f"{self.name}, row {self.first_row + self.rows[index] + 1}"


class FileReader:
    """A Reader over files: a shard is a file. A damaged file is named once and passed over."""

    OPEN = 8  # files kept open: lanes stand in a few shards at a time

    def __init__(
        self,
        listed: Callable[[], Sequence[str]],
        opened: Callable[[str], ByteRanges],
        marked: Callable[[Sequence[str]], str],
        rows: RowFormat,
        notes: Notes,
        strict: bool,
    ):
        self._listed, self._opened, self._marked, self._rows, self._notes = listed, opened, marked, rows, notes
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

    def read(self, shard: int, block: int) -> Documents | None:
        opened = self._shard(shard)
        passages = self._passages(opened, shard, block) if opened is not None else None
        if opened is None or passages is None:
            return None
        places = RowPlaces(self.shards()[shard], block, opened.first_row(block), passages.rows)
        return Documents(passages.texts, places, passages.scored, passages.titles)

    def _passages(self, opened: Shard, shard: int, block: int) -> Passages | None:
        name = self.shards()[shard]
        try:
            return opened.passages(block)
        except Damage as damage:  # what stood before it is still to be had
            self._notes.say(f"{name} {damage}")
            return self._passages(opened, shard, block)
        except Changed:
            self._open.pop(shard).close()
            self._notes.say(f"{name} was changed while it was read: some of its documents may come twice or not at all")
            raise
        except OTHERS:
            raise
        except (GivenUp, Unreadable) as error:
            self._pass_over(shard, error)
            return None
        except Exception as error:  # what is damaged or odd fails in many ways
            self._notes.say(f"a part of {name} is damaged and passed over: {one_line(error)}")
            return Passages([], [], [], [])

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
        except OTHERS:
            raise
        except Exception as error:  # what is damaged or odd fails in many ways
            self._pass_over(shard, error)
        return None

    def _pass_over(self, shard: int, error: Exception) -> None:
        if self._strict and isinstance(error, GivenUp):
            raise error
        self._passed_over.add(shard)
        self._notes.say(f"{self.shards()[shard]} is passed over: {one_line(error)}")

    def content(self) -> str:
        return self._marked(self.shards())

    def notices(self) -> list[str]:
        return self._notes.take()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _cells(batch: pa.RecordBatch) -> dict[str, list[Any]]:
    """The cells of each column."""
    return {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _values(column: pa.Array) -> list[Any]:
    """Text that is no UTF-8 is given as bytes, to be mended; Arrow alone would refuse it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def _may_hold_text(kind: pa.DataType) -> bool:
    """Whether `as_text` could find something in a column of this type."""
    if pa.types.is_dictionary(kind):
        return _may_hold_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "text" and _may_hold_text(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _may_hold_text(kind.value_type)
    return str(kind) in TEXT_TYPES or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(_decoded(line))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _decoded(text: bytes) -> str:
    return text.decode("utf-8-sig", "replace")
