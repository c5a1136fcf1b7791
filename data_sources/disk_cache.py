"""What was fetched, kept on disk: bytes under a key, checked when they are read, removed when they were not used for longest.

    folder/3f/3fa2...   the first 16 bytes are a checksum of the key and the bytes after it

An entry is written aside and renamed, and nothing but the file system is shared, so that any number of processes may use one
folder: the worst that two can do to each other is to fetch a thing twice. An entry that is cut, damaged or another's counts as absent.

The limit. All caches of a process in one folder share one count of its bytes. What other processes write is seen when a process
counts again, at the latest before it has written a 32nd of the limit itself: n processes keep to the limit and n 32nds of it.
"""

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CHECKSUM_BYTES = 16
NAME = re.compile(r"[0-9a-f]{40}(\.[0-9-]+\.tmp)?")  # what is called otherwise is somebody else's
ROOM = 0.9  # part of the limit that is left when room was made
RECOUNT = 1 / 32  # part of the limit that a process writes before it looks again at what others wrote
ABANDONED = 3600.0  # seconds after which a file written aside belongs to nobody


class Entry(NamedTuple):
    """A file of the cache. The least comes first when room is made."""

    used: float
    size: int
    path: Path


class Count:
    """The bytes in a folder as a process knows them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.size: int | None = None  # as last counted, and what was written since
        self.since = 0  # written since
        self.under_way = 0  # room was made for it and it is not there yet


COUNTS: dict[str, Count] = {}  # by folder


class DiskCache:
    """Bytes by key in `folder`, up to `limit` bytes. It never fails: where it can't be written, `tell` hears of it once, and it keeps no more."""

    def __init__(self, folder: str | os.PathLike[str], limit: int, tell: Callable[[str], None]):
        self._folder, self._limit, self._tell = Path(folder), limit, tell
        self._count = COUNTS.setdefault(os.path.realpath(folder), Count())
        self._off = False

    def get(self, key: str) -> bytes | None:
        """The bytes kept under `key`, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        self.touch([key])
        checksum, data = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if checksum == _checksum(key, data):
            return data
        self.drop(key)
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`, in place of what was there. Too large a thing, and all things on a full disk, are not kept."""
        size = len(data) + CHECKSUM_BYTES
        if self._off or size > self._limit:
            return
        try:
            self._make_room(size)
        except OSError as error:
            return self._give_up(error)
        try:
            self._write(self._path(key), _checksum(key, data) + data)
        except OSError as error:
            self._give_up(error)
        finally:
            with self._count.lock:
                self._count.under_way -= size

    def _give_up(self, error: OSError) -> None:
        self._off = True
        self._tell(f"the cache {self._folder} can't be written ({error.strerror or error}); reading goes on without keeping more")

    def touch(self, keys: Iterable[str]) -> None:
        """Count these as used now, where the folder can be written."""
        for key in keys:
            with contextlib.suppress(OSError):
                os.utime(self._path(key))

    def drop(self, key: str) -> None:
        """Forget what is under `key`."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return self._folder / name[:2] / name

    def _write(self, final: Path, content: bytes) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f"{final.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            aside.write_bytes(content)
            os.replace(aside, final)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def _make_room(self, size: int) -> None:
        count = self._count
        with count.lock:
            if count.size is None or count.since + size > RECOUNT * self._limit or count.size + size > self._limit:
                count.size, count.since = self._shrunk(count.under_way + size) + count.under_way, count.under_way
            count.size += size
            count.since += size
            count.under_way += size

    def _shrunk(self, size: int) -> int:
        """What is there once there is room for `size` bytes more."""
        entries = sorted(self._entries())
        total = sum(entry.size for entry in entries)
        if total + size <= self._limit:
            return total
        for entry in entries:
            if total + size <= ROOM * self._limit:
                break
            with contextlib.suppress(OSError):  # another process was faster
                entry.path.unlink()
            total -= entry.size
        return total

    def _entries(self) -> Iterator[Entry]:
        """All entries, and what was written aside so long ago that its writer must be gone."""
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            name = NAME.fullmatch(path.name)
            if name is None:
                continue
            with contextlib.suppress(OSError):
                state = path.lstat()
                aside = name[1] is not None
                if not aside or time.time() - state.st_mtime > ABANDONED:
                    yield Entry(0.0 if aside else state.st_mtime_ns / 1e9, state.st_size, path)


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES, person=hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()).digest()
