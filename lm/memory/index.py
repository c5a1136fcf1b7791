"""What spares comparing with every chunk: inverted lists over blocks of chunks, merged into larger ones as the memory grows.

A block is size chunks from a multiple of size on. Blocks of `unit` chunks are indexed as they fill up, four of them are merged into one four times as
large, and four of those again (a log-structured merge: O'Neil et al. 1996). What no indexed block holds is compared exactly. Each index is
faiss's inverted file (Jégou, Douze and Schmid 2011) over the vectors themselves, its centroids found from them by k-means.

Which blocks serve a question is a rule on the length it is asked at alone: a block serves from `lag` chunks past its end on. It is built
in the meantime, in another process; who needs it before it is there waits, or builds it if nobody does. And since vectors and centroids are whole
numbers whose products float32 holds exactly, a block's index is a function of its chunks alone, on every machine. Its file is named
by their checksums and its own: it can be lost, and it can't be another's.

Sizes: N chunks of a block, L lists, D vector, Q queries, k neighbours.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_sources.disk import discard
from lm.memory.embedder import quantised
from lm.memory.layout import SEED, MemoryFault, in_short, mixed
from lm.memory.nearest import NONE, Nearest
from lm.memory.store import Store

UNIT = 65_536  # chunks of the smallest block
LEVELS, GROWTH = 3, 4
LAG = 4  # a block of N chunks serves from N / LAG chunks past its end on
PROBED = 0.5  # part of a block's lists that a question looks into
ROUNDS = 8  # of k-means
SAMPLE = 48  # chunks for each centroid
FOLDER, SUFFIX = "index", ".faiss"


class Block(NamedTuple):
    """Chunks that have an index of their own."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def lists(self) -> int:
        """L, how many inverted lists it has: about twice the root of its size."""
        return max(1, 1 << (self.size.bit_length() // 2 + 1)) if self.size >= 64 else 1


def sizes(unit: int, capacity: int) -> list[int]:
    """Sizes of blocks, the largest first: so that what must stay on disk for a block of which chunks have left is half the capacity at most."""
    return [size for level in reversed(range(LEVELS)) if (size := unit * GROWTH**level) <= capacity // 2]


def plan(floor: int, first: int, length: int, blocks: list[int]) -> tuple[list[Block], int]:
    """The blocks that serve a question about the chunks from `first` to one before `length`, and the chunk from which on it is answered exactly.

    `floor`: no chunk before it is on disk. `blocks`: as `sizes` gives them.
    """
    found, at = [], first
    while True:
        fitting = (Block(at // size * size, size) for size in blocks)
        block = next(
            (block for block in fitting if block.start >= floor and block.end + block.size // LAG <= length and (block.start == at or not found)), None
        )
        if block is None:
            return found, at
        found.append(block)
        at = block.end


def due(before: int, after: int, blocks: list[int]) -> list[Block]:
    """The blocks that are full once the memory grew from `before` to `after` chunks."""
    return [Block(end - size, size) for size in reversed(blocks) for end in range(before // size * size + size, after + 1, size)]


def centroids_of(vectors: np.ndarray, count: int, should_stop: Callable[[], bool] = lambda: False) -> np.ndarray:
    """(N, D) int8 -> (count, D) int8: spherical k-means (Dhillon and Modha 2001), in whole numbers from a drawn sample on. Stopped: InterruptedError."""
    drawn = np.argsort(mixed(np.arange(len(vectors), dtype=np.uint64) + np.uint64(SEED)), kind="stable")[: count * SAMPLE]
    sample = vectors[drawn]
    centroids = sample[:count].copy()
    for _ in range(ROUNDS):
        nearest = assigned(sample, centroids, should_stop)
        order = np.argsort(nearest, kind="stable")
        filled, starts = np.unique(nearest[order], return_index=True)
        centroids[filled] = quantised(np.add.reduceat(sample[order], starts, axis=0, dtype=np.int64))
    return centroids


def assigned(vectors: np.ndarray, centroids: np.ndarray, should_stop: Callable[[], bool]) -> np.ndarray:
    """(N,) the centroid of the largest inner product; of equal ones the first."""
    turned, found = centroids.astype(np.float32).T, []
    for at in range(0, len(vectors), 4096):
        if should_stop():
            raise InterruptedError
        found.append((vectors[at : at + 4096].astype(np.float32) @ turned).argmax(1))
    return np.concatenate(found)


def inverted_file(vectors: np.ndarray, lists: int, should_stop: Callable[[], bool] = lambda: False) -> Any:
    """faiss's index of (N, D) int8."""
    import faiss

    size = vectors.shape[1]
    faiss.omp_set_num_threads(1)  # its own OpenMP: a forked process could not use a team of threads of its parent's
    coarse = faiss.IndexFlatIP(size)
    coarse.add(centroids_of(vectors, lists, should_stop).astype(np.float32))
    index = faiss.IndexIVFScalarQuantizer(coarse, size, lists, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT, False)
    index.is_trained = True
    for at in range(0, len(vectors), 4096):
        if should_stop():
            raise InterruptedError
        index.add(vectors[at : at + 4096].astype(np.float32))
    return index


class Indexes:
    """The indexes of a memory's blocks, in files that all of its processes share."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        self._opened: dict[Block, Any] = {}

    def search(self, store: Store, block: Block, vectors: np.ndarray, first: int, exclude: np.ndarray, best: Nearest) -> Nearest:
        """`best` with the nearest of a block's chunks from `first` on, as `nearest.exact` has it, but for those in lists that are not looked into."""
        rows, k = np.arange(len(vectors)), best.numbers.shape[1]
        wanted = 2 * k + 8
        while len(rows):
            scores, numbers = self._search(store, block, vectors[rows], first, wanted)
            documents = np.full(numbers.shape, NONE)
            documents[numbers >= 0] = store.gathered("document", numbers[numbers >= 0])
            good = (numbers >= 0) & ((documents != exclude[rows, None]) | (exclude[rows, None] == NONE))
            short = (good.sum(1) < k) & (numbers[:, -1] >= 0) & (wanted < block.size)  # of its own document are many, and there may be others
            good &= ~short[:, None]
            which, column = np.nonzero(good)
            best = best.merged(rows[which], numbers[which, column], scores[which, column])
            rows, wanted = rows[short], min(8 * wanted, block.size)
        return best

    def _search(self, store: Store, block: Block, vectors: np.ndarray, first: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        index = self.open(store, block)
        faiss.omp_set_num_threads(1)
        chosen = faiss.IDSelectorRange(max(0, first - block.start), block.size) if first > block.start else None
        settings = faiss.SearchParametersIVF(sel=chosen, nprobe=max(1, round(PROBED * block.lists)))
        scores, places = index.search(vectors.astype(np.float32), min(wanted, block.size), params=settings)
        return scores, np.where(places >= 0, places + block.start, NONE)

    def open(self, store: Store, block: Block, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """The index of a block; built where it is not there yet, once another process that does so has ended without it."""
        if block not in self._opened:
            name = self.name(store, block)
            index = self._read(name)
            if index is None:
                with self._turn(name):
                    index = self._read(name) or self._build(store, block, name, should_stop)
            self._opened[block] = index
        return self._opened[block]

    def name(self, store: Store, block: Block) -> str:
        """What its file's name begins with."""
        digest = hashlib.blake2b(store.column("checksum", block.start, block.end).tobytes(), digest_size=8, person=b"index-1")
        return f"{block.start:012d}-{block.size}-{digest.hexdigest()}"

    def forget(self, end: int) -> None:
        """Let go of the indexes of blocks that end before this chunk."""
        self._opened = {block: index for block, index in self._opened.items() if block.end > end}

    def tidy(self, names: set[str]) -> None:
        """Delete the files of all other blocks. What can't be deleted stays."""
        for path in self.folder.glob("*-*-*") if self.folder.is_dir() else ():
            if "-".join(path.name.split(".")[0].split("-")[:3]) not in names:
                discard(path)

    def _read(self, name: str) -> Any | None:
        import faiss

        for path in sorted(self.folder.glob(f"{name}-*{SUFFIX}")):
            with contextlib.suppress(OSError, RuntimeError):
                if file_digest(path) == path.name.removesuffix(SUFFIX).rsplit("-", 1)[1]:
                    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
            discard(path)  # cut or damaged: it is built anew
        return None

    def _build(self, store: Store, block: Block, name: str, should_stop: Callable[[], bool]) -> Any:
        import faiss

        store.check(block.start, block.end)
        index = inverted_file(store.column("vectors", block.start, block.end), block.lists, should_stop)
        aside = self.folder / f"{name}.{os.getpid()}.tmp"
        try:
            faiss.write_index(index, str(aside))
            aside.replace(self.folder / f"{name}-{file_digest(aside)}{SUFFIX}")
        except (OSError, RuntimeError):  # a full disk: this process has it in memory
            discard(aside)
            return index
        return self._read(name) or index

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / f"{name}.lock", "ab")  # noqa: SIM115 - it stays open as long as the lock is held
        except OSError as error:
            raise MemoryFault(f"{self.folder} can't be written: {in_short(error)}") from None
        with file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # which ends with the process that holds it
            yield


def file_digest(path: Path) -> str:
    """16 hexadecimal digits of what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
