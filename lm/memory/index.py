"""What spares comparing with every chunk in full: codes of a few bits a place, block by block, and the likeliest compared exactly.

A block is `unit` chunks from a multiple of `unit` on. Each has an index of its own: faiss's product quantiser with codes of 4 bits that stay in
registers (Jégou, Douze and Schmid 2011; André, Kermarrec and Le Scouarnec 2015), made from that block's vectors and never again: as the memory grows
blocks are added, as it forgets they are dropped, and nothing has to be rebuilt. Of all blocks' chunks the RERANKED best by their codes are
compared exactly, and so are all chunks that no indexed block holds. (Inverted lists were measured, too: hashed vectors have no clusters, and
95 of 100 nearest neighbours were found only once half the lists were read. So were whole vectors of 8 bits in faiss and binary codes: the first
take five times as long for 64 questions at once, and of the second nothing is left, since most places of a short chunk's vector are zero.)

Which blocks serve a question is a rule on the length it is asked at alone: a block serves from unit / LAG chunks past its end on. Its index is
built in the meantime, in another process; who needs it before it is there waits for it, and builds it if nobody does. It is made by one thread from
fixed seeds, and its file is named by its chunks' checksums and its own: it can be lost, but it can't be another's.

Sizes: N chunks of a block, D vector, M parts of a code, Q queries, k neighbours, R candidates.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_sources.disk import discard
from lm.memory.layout import mixed
from lm.memory.nearest import NONE, Nearest, exact
from lm.memory.store import Store

UNIT = 32_768  # chunks
LAG = 4
RERANKED = 2048  # candidates of a query that are compared exactly, at least: 1024 lose four times as many of the nearest
CROWD, LEAST = 4, 64  # times its share of the candidates, and how many, a block may give
SAMPLE, ROUNDS = 4096, 10  # chunks that a quantiser is made from, and rounds of its k-means
AT_ONCE = 128  # vectors: more of them leave the cache
CODE = 4  # bits of a part of a code, which stands for D / M = 2 places of a vector
OWN_FILE = re.compile(r"([0-9]{12}-[0-9]+-[0-9a-f]{16})(-[0-9a-f]{16}\.faiss|\.[0-9]+\.tmp|\.lock)")
FOLDER, SUFFIX = "index", ".faiss"
INDEX = b"pq-fast-scan-1"  # what `made` makes: of another name once it makes something else


class Block(NamedTuple):
    """Chunks that have an index of their own."""

    start: int
    end: int


class Plan(NamedTuple):
    """How a question is answered: exactly up to `head`, by the blocks' indexes, and exactly from `tail` on."""

    head: int
    blocks: list[Block]
    tail: int


def plan(first: int, length: int, unit: int) -> Plan:
    """For the chunks from `first` to one before `length`. `unit`: chunks of a block, 0 for none."""
    head = -(-first // unit) * unit if unit else length
    blocks = [Block(start, start + unit) for start in range(head, length, unit or 1) if start + unit + unit // LAG <= length]
    return Plan(head, blocks, blocks[-1].end) if blocks else Plan(first, [], first)


def due(before: int, after: int, unit: int) -> list[Block]:
    """The blocks that are full once the memory grew from `before` to `after` chunks."""
    return [Block(end - unit, end) for end in range(before // unit * unit + unit, after + 1, unit)] if unit else []


def made(vectors: np.ndarray, should_stop: Callable[[], bool] = lambda: False) -> Any:
    """faiss's index of (N, D) int8. InterruptedError once `should_stop` says so."""
    import faiss

    faiss.omp_set_num_threads(1)  # of faiss's own OpenMP; one thread gives the same sums in the same order
    size = vectors.shape[1]
    index = faiss.IndexPQFastScan(size, -(-size // 2), CODE, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.niter, index.pq.cp.min_points_per_centroid = ROUNDS, 1
    drawn = np.argsort(mixed(np.arange(len(vectors), dtype=np.uint64)), kind="stable")[:SAMPLE]
    index.train(vectors[drawn].astype(np.float32))
    for at in range(0, len(vectors), SAMPLE):
        if should_stop():
            raise InterruptedError
        index.add(vectors[at : at + SAMPLE].astype(np.float32))
    return index


class Indexes:
    """The indexes of a memory's blocks, in files that all of its processes share."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        self._opened: dict[Block, Any] = {}

    def search(self, store: Store, blocks: list[Block], vectors: np.ndarray, exclude: np.ndarray, best: Nearest) -> Nearest:
        """`best` with the nearest chunks of the blocks as `nearest.exact` has it, but for those whose codes are not among the likeliest.

        vectors (Q, D) int8; exclude (Q,). Where most candidates of a query are of its own document, there are more of them."""
        rows, k = np.arange(len(vectors)), best.numbers.shape[1]
        wanted, most = max(RERANKED, 2 * k), sum(block.end - block.start for block in blocks)
        while len(rows):
            numbers = self._likeliest(store, blocks, vectors[rows], wanted)
            other = (numbers >= 0) & (store.gathered("document", np.maximum(numbers, 0).ravel()).reshape(numbers.shape) != exclude[rows, None])
            short = (other.sum(1) < min(wanted // 2, most)) & (wanted < most)
            for row in np.flatnonzero(~short):
                best = _reranked(store, vectors, rows[row], numbers[row, other[row]], best)
            rows, wanted = rows[short], 8 * wanted
        return best

    def _likeliest(self, store: Store, blocks: list[Block], vectors: np.ndarray, wanted: int) -> np.ndarray:
        """(Q, R) chunks, with the largest inner products by their codes, of equal ones the older: `wanted` of them, or fewer where they crowd
        in few of the blocks."""
        each = min(wanted, max(wanted * CROWD // len(blocks), LEAST))
        numbers, scores = (np.concatenate(parts, 1) for parts in zip(*(self._of(store, block, vectors, each) for block in blocks), strict=True))
        order = np.lexsort((numbers, -scores), axis=1)
        return np.take_along_axis(numbers, order[:, :wanted], 1)

    def _of(self, store: Store, block: Block, vectors: np.ndarray, count: int) -> Nearest:
        """The likeliest of a block, (Q, up to `count`). Of chunks as near as the last, faiss takes those that come first on this processor: they are
        left out, all of them. Where that is most there is, the block is compared exactly."""
        import faiss

        index, count = self.open(store, block), min(count, block.end - block.start)
        faiss.omp_set_num_threads(1)
        scores, places = index.search(vectors.astype(np.float32), count)
        if count < block.end - block.start:
            places = np.where(scores > scores[:, -1:], places, NONE)
        found = Nearest(np.where(places >= 0, places + block.start, NONE), np.where(places >= 0, scores, -np.inf))
        few = np.flatnonzero((places >= 0).sum(1) < count // 2)
        if len(few):
            compared = exact(store, vectors[few], *block, np.full(len(few), NONE), Nearest.none(len(few), count))
            found.numbers[few], found.scores[few] = compared.numbers, compared.scores
        return found

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

    def there(self, store: Store, block: Block) -> bool:
        """Whether a block's index was built."""
        return any(self.folder.glob(f"{self.name(store, block)}-*{SUFFIX}"))

    def name(self, store: Store, block: Block) -> str:
        """What its file's name begins with."""
        digest = hashlib.blake2b(store.column("checksum", block.start, block.end).tobytes(), digest_size=8, person=INDEX)
        return f"{block.start:012d}-{block.end - block.start}-{digest.hexdigest()}"

    def forget(self, end: int) -> None:
        """Let go of the indexes of blocks that end before this chunk."""
        self._opened = {block: index for block, index in self._opened.items() if block.end > end}

    def tidy(self, names: set[str]) -> None:
        """Delete the files of all other blocks. What can't be deleted stays."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            own = OWN_FILE.fullmatch(path.name)
            if own and own[1] not in names:
                discard(path)

    def _read(self, name: str) -> Any | None:
        import faiss

        for path in sorted(self.folder.glob(f"{name}-*{SUFFIX}")):
            with contextlib.suppress(OSError, RuntimeError):
                if file_digest(path) == path.name.removesuffix(SUFFIX).rsplit("-", 1)[1]:
                    return faiss.read_index(str(path))
            discard(path)  # cut or damaged: it is built anew
        return None

    def _build(self, store: Store, block: Block, name: str, should_stop: Callable[[], bool]) -> Any:
        import faiss

        store.check(block.start, block.end)
        index = made(store.column("vectors", block.start, block.end), should_stop)
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
        except OSError:  # nothing can be written here: what this process builds is for itself
            yield
            return
        with file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # which ends with the process that holds it
            yield


def file_digest(path: Path) -> str:
    """16 hexadecimal digits of what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _reranked(store: Store, vectors: np.ndarray, row: int, numbers: np.ndarray, best: Nearest) -> Nearest:
    """`best` with the candidates `numbers` (R,) of a query."""
    own, query = store.gathered("vectors", numbers), vectors[row].astype(np.float32)
    parts = [own[at : at + AT_ONCE].astype(np.float32) @ query for at in range(0, len(own), AT_ONCE)]
    scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    one = Nearest(best.numbers[row : row + 1], best.scores[row : row + 1]).merged(np.zeros(len(numbers), np.int64), numbers, scores)
    best.numbers[row], best.scores[row] = one.numbers[0], one.scores[0]
    return best
