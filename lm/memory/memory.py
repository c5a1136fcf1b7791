"""The memory as training, chat and evaluation have it: chunks of what was read, and which of them are nearest.

    memory = Memory.open(folder, 64, len(tokenizer), Hashed(len(tokenizer)), write=True)
    memory.add(chunks_of(document=7, tokens=ids, chunk_size=64, about=("wikipedia", "row 5")))
    memory.sync(); state = memory.state                       # what a snapshot notes: two integers
    found = memory.nearest(tokens, count, k=2, length=state.length, exclude=documents)
    memory.neighbours(found.numbers, state.length)            # each with the chunk that goes on from it

What `nearest` and `neighbours` answer is a function of the chunks below `length` and of the question alone: not of what was added later, nor
of which index was ready. One process writes; any number of others open the same state for reading, and follow by the lengths they are told.

Sizes: Q queries, k neighbours, N chunks, C chunk_size.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lm.memory.embedder import Embedder
from lm.memory.index import UNIT, Indexes, due, plan
from lm.memory.layout import SEGMENT, MemoryFault, Shape
from lm.memory.nearest import NONE, Nearest, exact, scored
from lm.memory.store import About, State, Store, Writer

ROOT = Path(__file__).parents[2]  # where a new process finds this package


class Options(NamedTuple):
    """What may differ from one run to the next."""

    memory_chunks: int = 1_000_000  # past this many, the oldest are no longer found
    retriever_type: str = "faiss"  # or "exact": every chunk is compared
    unit: int = UNIT  # chunks of a block with an index


DEFAULT = Options()


class Chunks(NamedTuple):
    """Chunks to be added, those of one document in their order."""

    tokens: np.ndarray  # (N, C)
    count: np.ndarray  # (N,) tokens of each, from 1 to C
    document: np.ndarray  # (N,) >= 0, one number for all chunks of a document
    place: np.ndarray  # (N,) of the chunk within its document, from 0 on
    about: Sequence[About]  # (N) source, and place of the document


class Passage(NamedTuple):
    """A chunk as a person sees it."""

    source: str
    place: str
    tokens: np.ndarray  # (count,) int64


def chunks_of(document: int, tokens: np.ndarray, chunk_size: int, about: About, first: int = 0) -> Chunks:
    """A document's tokens (T,), from its chunk `first` on, cut into chunks, the last of which may be short."""
    count = -(-len(tokens) // chunk_size)
    padded = np.zeros(count * chunk_size, np.int64)
    padded[: len(tokens)] = tokens
    lengths = np.minimum(len(tokens) - chunk_size * np.arange(count), chunk_size)
    return Chunks(padded.reshape(count, chunk_size), lengths, np.full(count, document), first + np.arange(count), [about] * count)


class Memory:
    """One state of a memory, opened; a writer's goes on from it."""

    def __init__(self, store: Store, embedder: Embedder, options: Options, writer: Writer | None):
        self._store, self._embedder, self._options, self._writer = store, embedder, options, writer
        self._indexes = Indexes(store.folder)
        self._unit = options.unit if options.retriever_type == "faiss" else 0
        full = due(writer.store.manifest.floor, writer.length, self._unit) if writer else []
        self._due = [block for block in full if block.start >= store.manifest.floor and not self._indexes.there(store, block)]
        self._building: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        chunk_size: int,
        vocab_size: int,
        embedder: Embedder,
        state: State | None = None,
        options: Options = DEFAULT,
        write: bool = False,
        segment: int = SEGMENT,
    ) -> Self:
        """The memory in `folder` as it stood at `state`; without one, a new memory, which only a writer can open.

        MemoryFault, in one line: `state` is not there any more, is damaged, or is of chunks of another shape; another process writes.
        OSError where the folder can't be written."""
        shape = Shape(chunk_size, vocab_size, embedder.size, embedder.name, segment)
        if options.retriever_type not in ("faiss", "exact"):
            raise ValueError(f'retriever_type is "faiss" or "exact", not "{options.retriever_type}"')
        if write:
            writer = Writer(folder, shape, state, _first(0, state.length, options) if state else 0)
            return cls(writer.store, embedder, options, writer)
        if state is None:
            raise MemoryFault(f"{folder}: no memory was written yet")
        store = Store(folder, state.writer)
        store.shape.require(shape, folder)
        return cls(store, embedder, options, None)

    @property
    def state(self) -> State:
        """Of a writer: what a snapshot notes, once `sync` has returned."""
        assert self._writer is not None, "only a writer's memory grows"
        return self._writer.state

    @property
    def length(self) -> int:
        """Of a writer: chunks ever added."""
        return self.state.length

    def first(self, length: int) -> int:
        """The oldest chunk that is still found at a length."""
        return _first(self._store.manifest.floor, length, self._options)

    def add(self, chunks: Chunks) -> None:
        """Append. OSError, with none of them added, where they can't be written, and the same call may be tried again."""
        assert self._writer is not None, "opened for reading"
        if not len(chunks.count):
            return
        _check(chunks, self._store.shape)
        columns = {"document": chunks.document, "place": chunks.place, "count": chunks.count, "tokens": chunks.tokens}
        before = self.length
        self._writer.add(columns | {"vectors": self._embedder(chunks.tokens, chunks.count)}, chunks.about)
        self._due += due(before, self.length, self._unit)
        self._build()

    def sync(self) -> None:
        """Wait until all that was added before this call is on disk. From any thread. OSError where it can't be."""
        assert self._writer is not None, "opened for reading"
        self._writer.sync()

    def tidy(self, states: Iterable[State]) -> None:
        """Delete the files that neither these states, those of the snapshots and of the slowest reader, nor the present one needs."""
        assert self._writer is not None, "opened for reading"
        kept, names = [], set()
        for state in {*states, self.state}:
            store = self._store_of(state)
            if store is not None:
                first = _first(store.manifest.floor, state.length, self._options)
                kept.append((first, state))
                names |= {self._indexes.name(store, block) for block in due(first, state.length, self._unit) if block.start >= first}
        self._writer.tidy(kept)
        self._indexes.tidy(names)

    def nearest(self, tokens: np.ndarray, count: np.ndarray, k: int, length: int, exclude: np.ndarray | None = None) -> Nearest:
        """The k nearest of the chunks below `length`, none of the document `exclude` (Q,), to questions (Q, any number of tokens), of which
        the first `count` (Q,) of each count.

        numbers (Q, k), -1 where there are no more; scores (Q, k) from 0 to 1, -inf there. MemoryFault where the memory is damaged."""
        barred = np.full(len(tokens), NONE) if exclude is None else np.asarray(exclude)
        best = Nearest.none(len(tokens), max(k, self._embedder.breadth))
        if not len(tokens) or not k:
            return best.cut(k)
        first, store, vectors = self.first(length), self._store, self._embedder(tokens, count)
        head, served, tail = plan(first, length, self._unit)
        store.check(first, length)
        best = exact(store, vectors, first, head, barred, best)
        best = self._indexes.search(store, served, vectors, barred, best) if served else best
        best = exact(store, vectors, tail, length, barred, best)
        self._indexes.forget(first)
        questions = [row[:size] for row, size in zip(tokens, count.tolist(), strict=True)]
        return scored(store, self._embedder, questions, best).cut(k)

    def neighbours(self, numbers: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (..., 2C) int64, zeros behind them, and how many (...), of chunks (...) and of what follows each below `length`; none for -1."""
        flat = np.asarray(numbers).ravel()
        size = self._store.shape.chunk_size
        tokens, count = np.zeros((len(flat), 2 * size), np.int64), np.zeros(len(flat), np.int64)
        for half in range(2):
            there = np.flatnonzero(flat >= 0)
            chunks = self._store.take(flat[there])
            tokens[there, half * size : (half + 1) * size] = chunks["tokens"]
            count[there] += chunks["count"]
            if not half:
                following = np.full(len(flat), NONE)
                following[there] = self._store.continuations(flat[there], length)
                flat = following
        return tokens.reshape(*np.shape(numbers), 2 * size), count.reshape(np.shape(numbers))

    def about(self, numbers: np.ndarray) -> list[Passage]:
        """Chunks (N,) with where they are from."""
        chunks, lines = self._store.take(numbers), self._store.about(numbers)
        rows = zip(chunks["tokens"].astype(np.int64), chunks["count"].tolist(), lines, strict=True)
        return [Passage(source, place, tokens[:count]) for tokens, count, (source, place) in rows]

    def close(self) -> None:
        """Let another process write. What builds an index ends by itself."""
        if self._building is not None and self._building.poll() is None:
            self._building.terminate()
            self._building.wait()
        if self._writer is not None:
            self._writer.close()

    def _store_of(self, state: State) -> Store | None:
        try:
            return Store(self._store.folder, state.writer)
        except MemoryFault:
            return None

    def _build(self) -> None:
        """Have the next block that is due indexed, once the one before is done."""
        if self._due and (self._building is None or self._building.poll() is not None):
            block = self._due[0]
            arguments = [str(self._store.folder.resolve()), str(self._store.writer), str(block.start), str(block.end)]
            program = [sys.executable, "-m", "lm.memory.building", *arguments]
            with contextlib.suppress(OSError):  # the machine has no room for a process now; chunks are in the store whether or not they are indexed
                self._building = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self._due.remove(block)


def _first(floor: int, length: int, options: Options) -> int:
    return max(floor, length - options.memory_chunks)


def _check(chunks: Chunks, shape: Shape) -> None:
    """ValueError where chunks can't be of this memory."""
    count = len(chunks.about)
    if chunks.tokens.shape != (count, shape.chunk_size) or any(part.shape != (count,) for part in chunks[1:4]):
        raise ValueError(f"chunks of {shape.chunk_size} tokens are wanted, as many in each column, not {chunks.tokens.shape}")
    if chunks.tokens.min() < 0 or chunks.tokens.max() >= shape.vocab_size:
        raise ValueError(f"tokens from 0 to {shape.vocab_size - 1} are wanted")
    if chunks.count.min() < 1 or chunks.count.max() > shape.chunk_size or chunks.document.min() < 0 or chunks.place.min() < 0:
        raise ValueError(f"a chunk has from 1 to {shape.chunk_size} tokens; documents and places are counted from 0 on")
