"""Blocks in memory: documents in the order they are dealt to lanes, and the cache that all lanes of a process share."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from data_sources.documents import Documents, Spans
from data_sources.order import LANES, draw, permutation

Key = tuple[int, int, int, int]  # source, epoch, shard, block

DOCUMENT_BYTES = 200  # what a document takes beside its characters, each of which is taken for one
CACHE_BYTES = 256 << 20


class Block:
    """The documents of one block in dealt order: number j belongs to lane (j + offset) mod LANES."""

    def __init__(self, documents: Documents, shuffle: bool, *key: str | int):
        order = permutation(len(documents), *key, "documents") if shuffle else range(len(documents))
        self._texts: list[str | None] = [documents.texts[index] for index in order]
        self.scored: list[Spans | None] = [documents.scored[index] for index in order]
        self._places, self._titles, self._order = documents.places, documents.titles, order
        # The offset moves from block to block: without it small blocks would all go to the first lanes.
        self.offset = draw(*key, "lanes") % LANES
        self.chosen: dict[int, bool] = {}  # whether a document is read by this part of the data; found out once
        self.ids: dict[int, np.ndarray | None] = {}  # tokenised ahead; None once handed out
        self.marks: dict[int, np.ndarray] = {}  # which of those ids are scored, where not all are
        self.at: tuple[int, ...] | None = None  # epoch, shard and block as lanes count them, once a lane has come by
        self.key: Key | None = None  # in the cache
        self.bytes = sum(map(len, documents.texts)) + sum(map(len, documents.titles or ())) + DOCUMENT_BYTES * (len(documents) + 1)

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, index: int) -> str:
        """Document `index`. LookupError once it was forgotten."""
        text = self._texts[index]
        if text is None:
            raise LookupError(f"document {index} was forgotten")
        return text

    def place(self, index: int) -> str:
        """Where document `index` stands, in words."""
        return self._places[self._order[index]]

    def title(self, index: int) -> str:
        """The title of document `index`, empty where it has none."""
        return self._titles[self._order[index]] if self._titles else ""

    def forget(self, index: int) -> int:
        """Keep the text of a document no longer, which was read. How many bytes that was."""
        text, self._texts[index] = self._texts[index], None
        self.chosen[index] = True  # nobody can find out any more
        freed = len(text or "")
        self.bytes -= freed
        return freed

    def index(self, lane: int, taken: int) -> int:
        """Number of the document that `lane` reads after `taken` others of this block."""
        return (lane - self.offset) % LANES + LANES * taken

    def lane(self, index: int) -> int:
        """The lane that document `index` belongs to."""
        return (index + self.offset) % LANES


class BlockCache:
    """The blocks that lanes still read, and the last of the others, up to a number of bytes. Lanes run nearly in step, so a block is
    normally read once."""

    def __init__(self, limit: int = CACHE_BYTES):
        self._limit, self._bytes = limit, 0
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, load: Callable[[], Block | None]) -> Block | None:
        """The block at `key`, loaded where it is not here. None is not kept. Sources may ask at once; they load side by side."""
        block = self._blocks.get(key)
        if block is None:  # one without documents is kept, too
            block = load()
        if block is None:
            return None
        with self._lock:
            if key not in self._blocks:
                self._blocks[key], block.key = block, key
                self._bytes += block.bytes
            self._blocks.move_to_end(key)
            while self._bytes > self._limit and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].bytes
        return block

    def forget(self, key: Key, index: int) -> None:
        """Keep the text of a document no longer: its lane has read it. The block may have left, or been loaded again."""
        with self._lock:
            if key in self._blocks:
                self._bytes -= self._blocks[key].forget(index)

    def drop(self, source: int, before: tuple[int, ...]) -> None:
        """Let go of a source's blocks that lie before a place which all lanes have come to."""
        with self._lock:
            passed = [key for key, block in self._blocks.items() if key[0] == source and block.at is not None and block.at < before]
            for key in passed:
                self._bytes -= self._blocks.pop(key).bytes
