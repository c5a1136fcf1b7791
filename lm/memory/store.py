"""The chunks themselves: segments of a fixed size, mapped into memory, that grow at one end and leave at the other.

    state = (length, writer)        two integers, all that a snapshot notes

Whoever opens a memory for writing takes a new writer's number, drawn by lot, and writes only files of that number: full segments of the
writer it goes on from are shared, the one that was begun is copied up to the length it goes on from. So no file that a state names is
ever written below that state's length again, neither by the writer itself, which only appends, nor by a later one that goes on from an
earlier state, with the same chunks or with others. What a killed process left beyond the length it told is what nobody asks for.

What is read is checked: each chunk has a checksum of its number, its tokens, its vector and where it stands, each document's line one of
its own. A file that is cut is noticed when it is opened.
"""

import contextlib
import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from data_sources.disk import discard, sync_folder
from lm.memory.layout import FORMAT, LONGEST, MemoryFault, Shape, checksums, in_short, line_of, read_json, text_of, write_json

OWN_FILE = re.compile(r"writer-[0-9a-f]{12}\.(json|tmp)|[0-9]{8}-[0-9a-f]{12}\.(chunks|about)")
LINE = 8 + 2 + 2 * (12 * LONGEST + 2) + 4  # bytes: no line about a document is longer
REACH = 16_384  # chunks: where a document's next chunk is looked for
CHECKED_AT_ONCE = 4096  # chunks
About = tuple[str, str]  # source, place


class State(NamedTuple):
    """A memory as it stood at some time."""

    length: int  # chunks ever added, with those that have left
    writer: int  # who wrote the last of them


class Manifest(NamedTuple):
    """Which files a writer's memory is in."""

    shape: Shape
    floor: int  # no chunk before this one was there when the writer began
    runs: tuple[tuple[int, int], ...]  # (segment, writer): from this segment on, to the next run's, they are that writer's

    @classmethod
    def read(cls, folder: Path, writer: int) -> Self:
        """MemoryFault where there is none, or a damaged one."""
        try:
            held = read_json(manifest_path(folder, writer))
        except FileNotFoundError:
            raise MemoryFault(f"{folder}: of writer {writer:012x} nothing is there") from None
        if held["format"] != FORMAT:
            raise MemoryFault(f"{manifest_path(folder, writer)}: format {held['format']}; this program reads format {FORMAT}")
        return cls(Shape(**held["shape"]), held["floor"], tuple((first, int(number, 16)) for first, number in held["runs"]))

    def write(self, folder: Path, writer: int) -> None:
        """Put it where `read` finds it."""
        runs = [(first, f"{number:012x}") for first, number in self.runs]
        write_json(manifest_path(folder, writer), {"format": FORMAT, "shape": self.shape._asdict(), "floor": self.floor, "runs": runs})

    def writer(self, segment: int) -> int:
        """Whose the file of a segment is."""
        return next(number for first, number in reversed(self.runs) if first <= segment)

    def gone_on(self, floor: int, segment: int, writer: int) -> Self:
        """That of a writer whose own segments begin with `segment`."""
        runs = [(first, number) for first, number in self.runs if first < segment]
        return self._replace(floor=floor, runs=(*runs, (segment, writer)))


def manifest_path(folder: Path, writer: int) -> Path:
    """Where a writer's manifest is."""
    return folder / f"writer-{writer:012x}.json"


class Store:
    """The chunks of one writer, for reading. Which of them are there yet is the caller's to know."""

    def __init__(self, folder: Path, writer: int):
        """MemoryFault where that writer's manifest can't be read."""
        self.folder, self.writer = folder, writer
        self.manifest = Manifest.read(folder, writer)
        self.shape = self.manifest.shape
        self._segments: dict[int, Mapping[str, np.ndarray]] = {}
        self._checked: dict[int, int] = {}  # by segment: up to where

    def path(self, segment: int, kind: str = "chunks") -> Path:
        """The file of a segment."""
        return self.folder / f"{segment:08d}-{self.manifest.writer(segment):012x}.{kind}"

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """The chunks from `first` to one before `last`, unchecked: (number of the first, its columns) for each segment's part of them."""
        size = self.shape.segment
        for segment in range(first // size, -(-last // size)):
            start = segment * size
            part = slice(max(first - start, 0), min(last - start, size))
            yield start + part.start, {name: column[part] for name, column in self._columns(segment).items()}

    def column(self, name: str, first: int, last: int) -> np.ndarray:
        """A column of the chunks from `first` to one before `last`, unchecked; without a copy where one segment holds them."""
        parts = [columns[name] for _, columns in self.pieces(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else self._columns_of_none()[name]

    def take(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """All columns of these chunks (N,), checked. MemoryFault where one is damaged."""
        found = {name: self.gathered(name, numbers) for name in self.shape.columns}
        wrong = np.flatnonzero(checksums(found, numbers) != found["checksum"])
        if len(wrong):
            raise self._damaged(int(numbers[wrong[0]]))
        return found

    def gathered(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """(N, ...) a column of these chunks (N,), unchecked."""
        segments, places = np.divmod(numbers, self.shape.segment)
        column = self._columns_of_none()[name]
        found = np.empty((len(numbers), *column.shape[1:]), column.dtype)
        for segment in np.unique(segments):
            these = segments == segment
            found[these] = self._columns(int(segment))[name][places[these]]
        return found

    def check(self, first: int, last: int) -> None:
        """See that the chunks from `first` to one before `last` are whole, each once in a process. MemoryFault where one is not."""
        size = self.shape.segment
        for segment in range(first // size, -(-last // size)):
            at, upto = self._checked.get(segment, max(segment * size, self.manifest.floor)), min(last, (segment + 1) * size)
            while at < upto:
                at = self._check(at, min(upto, at + CHECKED_AT_ONCE))
                self._checked[segment] = at

    def _check(self, first: int, last: int) -> int:
        for start, columns in self.pieces(first, last):
            wrong = np.flatnonzero(checksums(columns, np.arange(start, start + len(columns["count"]))) != columns["checksum"])
            if len(wrong):
                raise self._damaged(start + int(wrong[0]))
        return last

    def continuations(self, numbers: np.ndarray, length: int) -> np.ndarray:
        """(N,) the chunk below `length` that goes on where these (N,) end, -1 where there is none within REACH chunks."""
        chunks = self.take(numbers)
        found = np.full(len(numbers), -1)
        for index in np.flatnonzero((chunks["count"] == self.shape.chunk_size) & (numbers + 1 < length)):
            wanted, place = chunks["document"][index], chunks["place"][index] + 1
            found[index] = self._first_of(wanted, place, int(numbers[index]) + 1, min(length, int(numbers[index]) + 1 + REACH))
        return found

    def about(self, numbers: np.ndarray) -> list[About]:
        """Source and place of the documents that these chunks (N,) are of. MemoryFault where they can't be read."""
        places = self.take(numbers)["about"]
        return [self._about(number, place) for number, place in zip(numbers.tolist(), places.tolist(), strict=True)]

    def close(self) -> None:
        """Let go of the maps, once nobody holds an array of them."""
        self._segments.clear()

    def _first_of(self, document: np.integer, place: np.integer, first: int, last: int) -> int:
        step = 64  # it is nearly always the next one, or not far
        while first < last:
            upto = min(last, first + step)
            for start, columns in self.pieces(first, upto):
                there = np.flatnonzero((columns["document"] == document) & (columns["place"] == place))
                if len(there):
                    return start + int(there[0])
            first, step = upto, 4 * step
        return -1

    def _about(self, number: int, at: int) -> About:
        path = self.path(number // self.shape.segment, "about")
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(at)
                start = file.read(256)
                line = start if b"\n" in start else start + file.read(LINE)
            text = text_of(line[: line.index(b"\n") + 1]).decode()
        except (OSError, ValueError) as error:
            raise MemoryFault(f"{path}: what stands about chunk {number} can't be read: {in_short(error)}") from None
        source, _, place = text.partition("\t")
        return unescaped(source), unescaped(place)

    def _columns(self, segment: int) -> Mapping[str, np.ndarray]:
        if segment not in self._segments:
            self._segments[segment] = self._mapped(self.path(segment))
        return self._segments[segment]

    def _mapped(self, path: Path) -> Mapping[str, np.ndarray]:
        offsets = self.shape.offsets
        try:
            if path.stat().st_size != offsets["end"]:
                raise MemoryFault(f"{path} is cut: {path.stat().st_size:,} bytes of {offsets['end']:,}")
            data = np.memmap(path, np.uint8, "r").view(np.ndarray)  # whose parts are had in less time
        except (OSError, ValueError) as error:
            raise MemoryFault(f"{path} can't be read: {in_short(error)}") from None
        found = {}
        for name, (kind, width) in self.shape.columns.items():
            size = self.shape.segment * np.dtype(kind).itemsize * max(1, width)
            found[name] = data[offsets[name] : offsets[name] + size].view(kind).reshape((-1, width) if width else (-1,))
        return found

    def _columns_of_none(self) -> dict[str, np.ndarray]:
        return {name: np.empty((0, width) if width else (0,), kind) for name, (kind, width) in self.shape.columns.items()}

    def _damaged(self, number: int) -> MemoryFault:
        return MemoryFault(f"{self.path(number // self.shape.segment)}: chunk {number} is damaged")


def escaped(text: str) -> str:
    """ASCII without tabs and line ends, of the first LONGEST characters."""
    return text[:LONGEST].encode("unicode_escape").decode("ascii")


def unescaped(text: str) -> str:
    """What `escaped` was given."""
    return text.encode("ascii").decode("unicode_escape")


class Writer:
    """The one that appends. `store` reads what was appended."""

    def __init__(self, folder: Path, shape: Shape, state: State | None, floor: int):
        """Go on from `state`, or begin. `floor`: no chunk before it is wanted any more.

        MemoryFault where `state` can't be gone on from, or another process writes to the folder; OSError where it can't be written."""
        self._lock = hold(folder)
        try:
            self._begin(folder, shape, state, floor)
        except BaseException:
            self.close()
            raise

    def _begin(self, folder: Path, shape: Shape, state: State | None, floor: int) -> None:
        number, length = secrets.randbits(48), state.length if state else 0
        own = length // shape.segment  # the first segment in a file of its own
        before = Store(folder, state.writer) if state else None
        manifest = before.manifest if before else Manifest(shape, 0, ())
        manifest.shape.require(shape, folder)
        floor = max(manifest.floor, floor)
        manifest.gone_on(floor, own, number).write(folder, number)
        self.store = Store(folder, number)
        self.length = max(floor, own * shape.segment)
        self._ends: dict[int, int] = {}  # bytes about documents, by segment
        self._known: dict[tuple[int, int, About], int] = {}  # where a document's line is
        self._unsynced: set[Path] = set()
        self._lock_unsynced = threading.Lock()
        while before and self.length < length:
            numbers = np.arange(self.length, min(length, self.length + CHECKED_AT_ONCE))
            self.add(before.take(numbers), before.about(numbers))

    @property
    def state(self) -> State:
        """As it stands. To be noted once `sync` has returned."""
        return State(self.length, self.store.writer)

    def add(self, columns: Mapping[str, np.ndarray], about: Sequence[About]) -> None:
        """Append chunks: document, place, count (N,), tokens (N, C), vectors (N, D), and what their documents are. OSError: none was added."""
        shape, at = self.store.shape, 0
        ends = dict(self._ends)
        try:
            while at < len(about):
                number = self.length + at
                segment, start = divmod(number, shape.segment)
                upto = min(len(about), at + shape.segment - start)
                part = {name: columns[name][at:upto].astype(kind) for name, (kind, _) in shape.columns.items() if name not in ("checksum", "about")}
                part["about"] = self._write_about(segment, part["document"], about[at:upto], ends)
                part["checksum"] = checksums(part, np.arange(number, self.length + upto))
                self._write_chunks(segment, start, part)
                at = upto
        except BaseException:
            self._known.clear()  # of these, some may not be there
            raise
        self._ends = {segment: ends[segment] for segment in ends if segment >= (self.length + at) // shape.segment}
        self._known = {key: value for key, value in self._known.items() if key[0] in self._ends} if len(self._ends) != len(ends) else self._known
        self.length += at

    def sync(self) -> None:
        """Wait until what was added is on disk. From any thread. OSError where it can't be written."""
        with self._lock_unsynced:
            paths = set(self._unsynced)
            self._unsynced -= paths  # what is written from here on is the next call's
        try:
            for path in paths:
                sync_file(path)
            sync_folder(self.store.folder)
        except BaseException:
            with self._lock_unsynced:
                self._unsynced |= paths
            raise

    def tidy(self, kept: Iterable[tuple[int, State]]) -> None:
        """Delete the files that neither these (from which chunk on, state) nor what is added from now on needs. What can't be deleted stays."""
        names: set[str] = set()
        for first, state in [*kept, (self.length, State(self.length + 1, self.store.writer))]:
            with contextlib.suppress(MemoryFault):
                names |= self._names(first, state)
        for path in self.store.folder.iterdir():
            if OWN_FILE.fullmatch(path.name) and path.name not in names:
                discard(path)

    def close(self) -> None:
        """Let others write."""
        self._lock.close()

    def _names(self, first: int, state: State) -> set[str]:
        store = Store(self.store.folder, state.writer)
        size = store.shape.segment
        files = {store.path(segment, kind).name for segment in range(first // size, -(-state.length // size)) for kind in ("chunks", "about")}
        return files | {manifest_path(store.folder, state.writer).name}

    def _write_about(self, segment: int, documents: np.ndarray, about: Sequence[About], ends: dict[int, int]) -> np.ndarray:
        """(N,) where the line of each one's document is. Those that are not there yet are written."""
        lines, places, end = [], [], ends.get(segment, 0)
        for document, what in zip(documents.tolist(), about, strict=True):
            key = (segment, document, what)
            if key not in self._known:
                lines.append(line_of("\t".join(map(escaped, what)).encode()))
                self._known[key] = end
                end += len(lines[-1])
            places.append(self._known[key])
        self._write(self.store.path(segment, "about"), {ends.get(segment, 0): b"".join(lines)})
        ends[segment] = end
        return np.array(places, "<u4")

    def _write_chunks(self, segment: int, start: int, columns: Mapping[str, np.ndarray]) -> None:
        offsets, parts = self.store.shape.offsets, {}
        for name, column in columns.items():
            parts[offsets[name] + start * column[0].nbytes] = column.tobytes()
        self._write(self.store.path(segment), parts, offsets["end"])

    def _write(self, path: Path, parts: Mapping[int, bytes], size: int = 0) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            if os.fstat(handle).st_size < size:
                os.ftruncate(handle, size)  # its end is there from the start: what is mapped never grows
            for at, data in parts.items():
                while data:
                    written = os.pwrite(handle, data, at)
                    at, data = at + written, data[written:]
        finally:
            os.close(handle)
            with self._lock_unsynced:
                self._unsynced.add(path)


def hold(folder: Path) -> IO[Any]:
    """Hold the folder for this process until the file that comes back is closed. MemoryFault when another process holds it."""
    # lockf and not flock: that lock would live on in forked children of a writer that was killed.
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "ab")  # noqa: SIM115 - it stays open as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise MemoryFault(f"{folder}: another process writes to this memory; stop it first") from None
    return file


def sync_file(path: Path) -> None:
    """Wait until a file is on disk. One that was deleted since needs no waiting."""
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
