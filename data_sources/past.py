"""Text that was read: a sample of it is kept, so that a later run can read some of it again and not forget.

Every document has a priority, a number drawn from its text, its source and the seed, and those with the least are kept, up to a number of bytes
(bottom-k sampling: Cohen and Kaplan 2007). So the sample is as good as drawn by lot among all documents ever read, each once, and it
depends on nothing but which documents those are: not on their order, on the number of processes, or on where a run was stopped.
"""

import hashlib
import heapq
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from data_sources.config import PastSource
from data_sources.disk import discard, sync_folder
from data_sources.documents import Documents, GivenUp, Spans
from data_sources.order import content_hash, draw

ANY = 2**64  # every priority is less
LONGEST = 20_000  # characters: of a longer document its beginning is kept
LARGEST = 4 * LONGEST  # bytes
BLOCK = 200  # documents
OVERHEAD = 200  # bytes that a document takes beside its text
SCHEMA = pyarrow.schema([("priority", pyarrow.uint64()), ("source", pyarrow.string()), ("text", pyarrow.binary()), ("scored", pyarrow.string())])


class Read(NamedTuple):
    """A document that was read."""

    priority: int
    source: str
    text: str
    scored: Spans | None = None  # the characters that were learned; None for all

    @property
    def size(self) -> int:
        """Bytes: of its text in UTF-8, and of what stands beside it."""
        return OVERHEAD + (len(self.text) if self.text.isascii() else len(self.text.encode("utf-8", "surrogatepass")))

    @classmethod
    def of(cls, seed: int, source: str, text: str, scored: Spans | None) -> "Read":
        """The document with its priority, which is the same however often it is read."""
        if len(text) > LONGEST and scored is not None:
            scored = tuple((first, min(last, LONGEST)) for first, last in scored if first < LONGEST)
        return cls(draw(seed, source, content_hash(text), "past"), source, text[:LONGEST], scored)


class Sieve:
    """Which documents are among those of least priority whose sizes come to `limit` bytes, of all that were offered until now.

    `until`: no document of this priority or a higher one is. What is passed over by a sieve that saw a part of the documents would
    be passed over by one that saw all: so each process sifts what it reads, and the trainer what is left.
    """

    def __init__(self, limit: int, until: int = ANY):
        self.limit, self.until = limit, until
        self._sizes: dict[int, int] = {}
        self._highest: list[int] = []  # a heap of negated priorities
        self._total = 0

    def offer(self, priority: int, size: int) -> tuple[bool, list[int]]:
        """Whether it is new and stays, and the priorities of those that leave for it."""
        if priority >= self.until or priority in self._sizes:
            return False, []
        self._sizes[priority] = size
        heapq.heappush(self._highest, -priority)
        self._total += size
        left = []
        while self._total > self.limit:
            self.until = -heapq.heappop(self._highest)
            self._total -= self._sizes.pop(self.until)
            left.append(self.until)
        return priority in self._sizes, left


class Past:
    """The sample itself."""

    def __init__(self, limit: int, documents: Iterable[Read] = (), until: int = ANY):
        """`limit`: bytes, with OVERHEAD for each document. `until`: that of the sample these documents are."""
        self._sieve = Sieve(limit, until)
        self._documents: dict[int, Read] = {}
        self.add(documents)

    def add(self, documents: Iterable[Read]) -> None:
        """Documents that were read, in any order."""
        for document in documents:
            stays, left = self._sieve.offer(document.priority, document.size)
            if stays:
                self._documents[document.priority] = document
            for priority in left:
                self._documents.pop(priority, None)

    @property
    def until(self) -> int:
        """No document of this priority or a higher one will be kept."""
        return self._sieve.until

    def documents(self) -> list[Read]:
        """Those that are kept, by priority."""
        return [self._documents[priority] for priority in sorted(self._documents)]

    def name(self) -> str:
        """A file name that stands for this sample and no other."""
        found = hashlib.sha256(json.dumps([self.until, sorted(self._documents)]).encode())
        return f"{found.hexdigest()[:16]}.parquet"


def write_past(folder: Path, name: str, documents: list[Read], until: int, digest: str = "") -> str:
    """Write a sample to `folder`, as a whole or not at all; nothing where a file with the SHA-256 `digest` is there already. The SHA-256 of the file."""
    final, aside = folder / name, folder / f"{name}.tmp"
    if final.exists() and file_hash(final) == digest:
        return digest
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "priority": [document.priority for document in documents],
        "source": [document.source for document in documents],
        "text": [document.text.encode("utf-8", "surrogatepass") for document in documents],
        "scored": [None if document.scored is None else json.dumps(document.scored) for document in documents],
    }
    table = pyarrow.table(columns, schema=SCHEMA.with_metadata({"until": str(until)}))
    try:
        with open(aside, "wb") as file:
            pyarrow.parquet.write_table(table, file, row_group_size=BLOCK, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(final)
    except BaseException:
        discard(aside)
        raise
    sync_folder(folder)
    return file_hash(final)


def file_hash(path: Path) -> str:
    """SHA-256 of what a file holds. OSError where it can't be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_past(path: Path, digest: str, limit: int) -> Past:
    """The sample in a file, for going on with it. OSError where it is not there, or not the one with that hash.

    With another `limit` than it had: a smaller one sifts on; with a larger one, what is read from now on has a better chance to be kept.
    """
    if file_hash(path) != digest:
        raise OSError(f"{path.name} is damaged")
    with _opened(path) as file:
        found = _documents(file.read())
        until = int((file.schema_arrow.metadata or {})[b"until"])
    grew = until < ANY and sum(document.size for document in found) + LARGEST + OVERHEAD < limit
    return Past(limit, found, ANY if grew else until)


def _opened(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, memory_map=False)
    except pyarrow.ArrowException as error:
        raise OSError(f"{path.name} is damaged: {str(error).splitlines()[0]}") from None


def _documents(table: pyarrow.Table) -> list[Read]:
    return [Read(row["priority"], row["source"], row["text"].decode("utf-8", "surrogatepass"), _spans(row["scored"])) for row in table.to_pylist()]


def _spans(text: str | None) -> Spans | None:
    return None if text is None else tuple((first, last) for first, last in json.loads(text))


class PastReader:
    """Reader of a sample, or of that part of it that came from certain sources. One shard; its blocks are row groups."""

    def __init__(self, source: PastSource):
        self._path, self._sources = Path(source.path), set(source.sources)
        self._file: pyarrow.parquet.ParquetFile | None = None

    def shards(self) -> list[str]:
        self._open()
        return [self._path.name]

    def blocks(self, shard: int) -> int:
        return self._open().num_row_groups

    def read(self, shard: int, block: int) -> Documents | None:
        file = self._open()
        if block >= file.num_row_groups:
            return None
        try:
            found = [read for read in _documents(file.read_row_group(block)) if read.source in self._sources]
        except Exception:  # a file that was changed since the run began fails in many ways
            raise GivenUp(f"{self._path.name} is damaged; what was read before is not read again in this run") from None
        return Documents([read.text for read in found], [f"read before, from {read.source}" for read in found], [read.scored for read in found])

    def content(self) -> str:
        return ""  # its file is named by what it holds

    def notices(self) -> list[str]:
        return []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> pyarrow.parquet.ParquetFile:
        if self._file is None:
            try:
                self._file = _opened(self._path)
            except OSError as error:
                raise GivenUp(f"the text of the past can't be read: {error}") from None
        return self._file


def remove_others(folder: Path, named: Iterable[str]) -> None:
    """Delete the samples in `folder` that no snapshot names any more."""
    kept = set(named)
    for path in folder.glob("*.parquet*") if folder.is_dir() else ():
        if path.name not in kept:
            discard(path)
