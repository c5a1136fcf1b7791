"""The memory of what was read, while a model trains: written on rank 0 after each step, asked by the readers of all ranks some steps later.

step -> chunks that its rows ended, of all ranks, in the order of the rows -> memory -> its state, announced to all readers
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_sources import Batch
from data_sources.chunks import Chunks
from data_sources.recall import MemoryStates
from lm.memory.embedder import Embedder, Hashed, SentenceModel
from lm.memory.layout import MemoryFault
from lm.memory.lookup import Heard, Lookup
from lm.memory.memory import Chunks as NewChunks
from lm.memory.memory import Memory, Options
from lm.memory.recall import MemoryRecall
from lm.memory.store import State
from lm.memory.words import piece_texts
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.headers import Header
from lm.training.snapshots import Snapshot

MEMORY = "memory"  # the folder, beside the snapshots
OWNER = "owner.json"  # in a folder that retro.index_path names
LAG = 8  # steps that the memory is behind: more than are read ahead, so that nobody waits


class Taken(Exception):
    """A folder is another model's. The message is one line."""


class Noted(NamedTuple):
    """What a snapshot holds of the memory."""

    states: dict[int, tuple[int, ...]]  # by row, those that the coming batches see, and the newest

    def as_json(self) -> list[list[int]]:
        return [[row, *state] for row, state in self.states.items()]

    @classmethod
    def of(cls, held: Sequence[Sequence[int]] | None) -> "Noted | None":
        return cls({row: tuple(state) for row, *state in held}) if held else None

    @property
    def newest(self) -> State:
        return State(*self.states[max(self.states)])


def embedder_of(preset: Preset, tokenizer: Any) -> Embedder:
    """What finds neighbours. ValueError, in one line, where a sentence model can't be had."""
    if preset.retro.embedder != "hashed":
        return SentenceModel(preset.retro.embedder, tokenizer.decode)
    return Hashed(len(tokenizer), piece_texts(tokenizer))


class Remembering:
    """Used by all ranks together, in step."""

    def __init__(self, preset: Preset, tokenizer: Any, folder: Path, born: str, ranks: Ranks, notice: Callable[[str], None]) -> None:
        """folder: of the snapshots; born: when the model was. ValueError, on all ranks, where the preset's embedder can't be had."""
        retro = preset.retro
        self.chunk_size, self._ranks, self._notice = retro.chunk_size, ranks, notice
        self._owner = {"checkpoints": str(folder.resolve()), "born": born} if retro.index_path else None
        self.folder = Path(retro.index_path) if retro.index_path else folder / MEMORY
        self._terms = (self.folder, retro.chunk_size, len(tokenizer), embedder_of(preset, tokenizer))
        self._options = Options(retro.memory_chunks, retro.retriever_type)
        self.recall = MemoryRecall(*self._terms, retro.num_neighbors, self._options) if retro.add_cross_attention else None
        self._looks_up = self.recall and replace(self.recall, _opened={})  # readers ask from threads and processes of their own
        self.states = MemoryStates(1)
        self._memory: Memory | None = None  # on rank 0
        self._full = False
        self._whole: Noted | None = None  # what was last known to be on disk
        self._is_sound = True  # whether what was added since may be put there
        self._swapping = threading.Lock()  # files of a memory that begins are not deleted
        self.trouble = ""  # of the last snapshot, to be told
        self._told: set[str] = set()
        self.added_seconds = 0.0  # that the last step's chunks took; known on rank 0
        self.lost = False  # whether what a snapshot held is not there any more

    def begin(self, held: Sequence[Sequence[int]] | None, goes_on: bool, next_row: int, step_rows: int) -> None:
        """Go on from what a snapshot held, or with an empty memory. goes_on: the same run, in the same steps. step_rows: of the largest of them."""
        noted = Noted.of(held)
        goes_on = goes_on and noted is not None and max(noted.states) == next_row  # a run may have read on without its memory
        opened = self._ranks.first_does(lambda: self._open(noted.newest if noted else None))
        lag, self.lost = LAG * step_rows, bool(noted and not opened)
        known = (noted.states if goes_on else {next_row - lag: tuple(noted.newest)}) if noted and opened else {}
        self.states = MemoryStates(lag, known)
        if not goes_on or not known:
            self._announce(next_row)

    def _open(self, state: State | None) -> bool:
        """Whether the memory of `state` is there to go on from; else an empty one is begun."""
        way_back = way_back_to(self.folder) if self._owner else ""  # told before the folder is made
        self._claim()
        if state is not None:
            try:
                self._memory = Memory.open(*self._terms, state, self._options, write=True)
                self._whole = Noted({0: tuple(state)})
                return True
            except MemoryFault as fault:
                self._notice(f"the memory of what was read can't be gone on with and begins anew: {way_back or fault}")
        self._memory = Memory.open(*self._terms, None, self._options, write=True)
        return False

    def _claim(self) -> None:
        """Have a folder outside of the model's for this model alone: what another's snapshots name would be deleted. Taken where one is there."""
        if self._owner is None:
            return
        path = self.folder / OWNER
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            other = json.loads(path.read_text(encoding="utf-8"))
            is_other_place = other["checkpoints"] != self._owner["checkpoints"] and any(Path(other["checkpoints"]).glob("lm_*.pth"))
            if is_other_place or other["born"] != self._owner["born"]:
                raise Taken(f"index_path {self.folder} holds the memory of another model ({other['checkpoints']}); give this one a folder of its own")
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._owner), encoding="utf-8")

    def take_in(self, batch: Batch, next_row: int) -> None:
        """Add the chunks that a step's rows ended, of all ranks, and tell all readers. What they could not ask is said, once each."""
        mine = batch.chunks
        told = self._ranks.gathered((mine and ended(mine), batch.trouble))
        if self._memory is not None:
            began = time.monotonic()
            self._add(Chunks.joined([part for part, _ in told if part is not None]))
            self.added_seconds = time.monotonic() - began
            self._tell({trouble for _, trouble in told if trouble})
        self._announce(next_row)

    def _tell(self, troubles: set[str]) -> None:
        for trouble in sorted(troubles - self._told):
            self._notice(f"the memory can't be asked for some of what is read: {trouble}; training goes on")
        self._told |= troubles

    def _add(self, chunks: Chunks | None) -> None:
        if not self._is_sound:
            self._go_back()
        if chunks is None or not self._is_sound:
            return
        about = [chunks.about[document] for document in chunks.document.tolist()]
        try:
            self._memory.add(NewChunks(chunks.tokens, chunks.length, chunks.document, chunks.number, about))
            self._full = False
        except OSError as error:
            if not self._full:
                self._notice(f"the memory can't take in what is read: {error.strerror}; training goes on")
            self._full = True

    def _go_back(self) -> None:
        """Go on from what was last whole on disk: of what can't be put there nobody knows later what is. Tried again by the next step."""
        assert self._memory is not None
        with self._swapping, contextlib.suppress(OSError, MemoryFault):
            self._memory.close()
            self._memory = Memory.open(*self._terms, self._whole and self._whole.newest, self._options, write=True)
            self._is_sound = True

    def _announce(self, next_row: int) -> None:
        state = self._ranks.from_first(tuple(self._memory.state) if self._memory is not None else None)
        self.states.announce(next_row, state)

    @property
    def chunks(self) -> int:
        """How many can be found now. On rank 0."""
        assert self._memory is not None
        return self._memory.length - self._memory.first(self._memory.length)

    def noted(self, next_row: int) -> list[list[int]]:
        """What a snapshot holds of the memory."""
        return Noted(self.states.needed(next_row)).as_json()

    @property
    def is_asked(self) -> bool:
        """Whether there is something in it, and layers attend to it. The same on all ranks."""
        return self.recall is not None and bool(self.states.newest and self.states.newest[0])

    def lookup(self) -> Heard | None:
        """The memory as it stands, for an evaluation; None where it is not `asked`, or is damaged."""
        if self._looks_up is None or not self.is_asked:
            return None
        state = State(*self.states.newest)
        try:
            return Heard(Lookup(self._looks_up.memory(state), state.length, self.chunk_size, self._looks_up.neighbours))
        except MemoryFault:
            return None

    def synced(self, noted: list[list[int]]) -> list[list[int]] | None:
        """Have all that was added on disk, before a snapshot names it as `noted`. What it may name comes back: where the disk fails, the memory
        as it was last whole. On rank 0, from any thread."""
        assert self._memory is not None
        try:
            if self._is_sound:
                self._memory.sync()
                self._whole = Noted.of(noted)
        except OSError as error:
            self._is_sound = False
            self.trouble = f"the memory can't be put on disk: {error.strerror or error}; training goes on, with the memory as it was last whole"
        return self._whole and self._whole.as_json()

    def tidy(self, headers: Iterable[Header]) -> None:
        """Delete what no snapshot needs any more. On rank 0."""
        assert self._memory is not None
        noted = [Noted.of(header.run.get("memory")) for header in headers]
        kept = {State(*state) for each in noted if each for state in each.states.values()}
        with self._swapping, contextlib.suppress(MemoryFault):  # of what is damaged nothing is deleted
            writer = self._memory.state.writer  # a memory that was gone back from is still asked by some
            self._memory.tidy([*kept, *(state for state in map(State._make, self.states.announced().values()) if state.writer != writer)])

    def close(self) -> None:
        """Let go of files. Safe to call twice."""
        if self._memory is not None:
            self._memory.close()
        for recall in filter(None, (self.recall, self._looks_up)):
            recall.close()


def lookup_of(snapshot: Snapshot, folder: Path, tokenizer: Any) -> Lookup | None:
    """The memory as `snapshot`, of `folder`, holds it; None where it has none, or nothing is in it. MemoryFault, in one line, where it is
    not there any more; ValueError where its sentence model can't be had."""
    retro, noted = snapshot.preset.retro, Noted.of(snapshot.run.get("memory"))
    if not (retro.enabled and noted and noted.newest.length):
        return None
    place = Path(retro.index_path) if retro.index_path else folder / MEMORY
    if retro.index_path and (way_back := way_back_to(place)):
        raise MemoryFault(way_back)
    options = Options(retro.memory_chunks, retro.retriever_type)
    memory = Memory.open(place, retro.chunk_size, len(tokenizer), embedder_of(snapshot.preset, tokenizer), noted.newest, options)
    return Lookup(memory, noted.newest.length, retro.chunk_size, retro.num_neighbors)


def way_back_to(place: Path) -> str:
    """What to do where a folder that retro.index_path names is not there, in a line; empty where it is."""
    return "" if place.is_dir() else f"{place}, which retro.index_path names, is not there; put the folder back, or a link to where it is now"


def ended(chunks: Chunks) -> Chunks:
    """Those whose last token stands in the batch."""
    new = np.flatnonzero(chunks.is_new)
    documents = set(chunks.document[new].tolist())
    about: Mapping[int, Any] = {key: words for key, words in chunks.about.items() if key in documents}
    return Chunks(*(column[new] for column in chunks[:-1]), dict(about))
