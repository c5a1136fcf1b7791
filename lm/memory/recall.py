"""A memory as loader processes ask it: what was found by the chunks of a batch, ready for the model.

Sizes: N chunks that something was asked by, k neighbours of each, C chunk_size.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_sources.chunks import NOWHERE, Chunks
from data_sources.recall import Answers
from data_sources.recall import State as Numbers
from lm.memory.embedder import Embedder
from lm.memory.layout import MemoryFault
from lm.memory.memory import Memory, Options
from lm.memory.store import State


@dataclass
class MemoryRecall:
    """Opens the memory in the process that asks it, when it is asked first."""

    folder: Path
    chunk_size: int
    vocab_size: int
    embedder: Embedder
    neighbours: int
    options: Options
    _opened: dict[int, Memory] = field(default_factory=dict)  # by writer

    def ask(self, chunks: Chunks, state: Numbers | None) -> Answers:
        """The nearest chunks of other documents, each with what follows it. None are found where the memory is damaged or gone: a model can
        be taught without."""
        asked = np.flatnonzero(chunks.at != NOWHERE) if state is not None and state[0] else np.zeros(0, np.int64)
        row, at, trouble = chunks.row[asked], chunks.at[asked], ""
        if len(asked):
            try:
                return Answers(row, at, *self._found(chunks, asked, State(*state)))
            except MemoryFault as fault:
                trouble = str(fault)
        nothing = (len(asked), self.neighbours)
        return Answers(row, at, np.zeros((*nothing, 2 * self.chunk_size), np.int64), np.zeros(nothing, np.int64), trouble)

    def _found(self, chunks: Chunks, asked: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray]:
        memory = self.memory(state)
        found = memory.nearest(chunks.tokens[asked], chunks.length[asked], self.neighbours, state.length, chunks.document[asked])
        return memory.neighbours(found.numbers, state.length)

    def memory(self, state: State) -> Memory:
        """The memory of the state's writer; that of the one before is let go of."""
        if state.writer not in self._opened:
            self.close()
            self._opened[state.writer] = Memory.open(self.folder, self.chunk_size, self.vocab_size, self.embedder, state, self.options)
        return self._opened[state.writer]

    def close(self) -> None:
        """Let go of files. Safe to call twice."""
        while self._opened:
            self._opened.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: no open files."""
        return {**vars(self), "_opened": {}}
