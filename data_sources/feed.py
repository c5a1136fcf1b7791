"""One source as one process reads it: places, the deal of documents to lanes, held-out text, faults.

    reader: shards of blocks of documents -> seeded order -> dealt to lanes -> the next document of a lane

A place is where a lane stands: epoch, position of the shard and of the block in their seeded order, documents taken there.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

from data_sources.blocks import Block, BlockCache, Key
from data_sources.documents import GivenUp, PassingFault, Reader, Spans
from data_sources.fingerprint import fingerprint
from data_sources.held_out import SAMPLE, Choice, Held, HeldOut, local_choice
from data_sources.order import kept_permutation

PATIENCE = 60.0  # seconds a source that has been read before is waited for
FIRST_PATIENCE = 3.0  # seconds for one that has not: the others can begin without it
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
FIRST_RETRY, LONGEST_RETRY = 30.0, 600.0
GLANCE = 0.1

Result = TypeVar("Result")


class Place(NamedTuple):
    """Where a lane stands in a source."""

    epoch: int = 0
    shard: int = 0
    block: int = 0
    taken: int = 0


class Found(NamedTuple):
    """A document, and its place."""

    place: Place
    block: Block
    index: int

    @property
    def text(self) -> str:
        return self.block.text(self.index)

    @property
    def where(self) -> str:
        """The document's place, in words."""
        return self.block.place(self.index)

    @property
    def title(self) -> str:
        """The document's title, empty where it has none or nobody asked."""
        return self.block.title(self.index)


class Aside(Exception):
    """Source number `source` can't be read for now: the order goes on without it."""

    def __init__(self, source: int):
        super().__init__(source)
        self.source = source


class Closed(Exception):
    """The stream was closed while it waited."""


@dataclass(frozen=True)
class Rules:
    """What decides which documents of a source are read, and in which order."""

    seed: int
    shuffle: bool
    repeat: bool
    part: str  # "train" or "held_out"
    shortest: int  # characters
    local: bool  # on this machine, so that at least one document can be held out
    holds_out: bool = True  # not so for what was read before


class Feed:
    """A source, from its reader to the next document of each lane."""

    def __init__(self, name: str, number: int, reader: Reader, rules: Rules, cache: BlockCache, held_out: HeldOut, tell: Callable[[dict], None]):
        self.name, self.rules = name, rules
        self.state, self.reason, self.next_try = "reading", "", None
        self.closing = threading.Event()
        self.patient = False  # whether a source that may come back is waited for however long
        self.number, self._reader, self._cache, self._held_out, self._tell = number, reader, cache, held_out, tell
        self._opened = self._reached = False
        self._pause = FIRST_RETRY
        self._failed: Callable[[], None] = self._open
        self._answers: dict[tuple, Any] = {}  # what a retry brought, for the call that had failed
        self._shards = 0
        self._blocks: dict[int, int | None] = {}
        self._choice = Choice()
        self._has_text: bool | None = None
        self.fingerprint = ""

    # Held-out text

    @property
    def held_beside(self) -> list[str]:
        """Hashes of documents that are held out beside the percent, for the cursor."""
        return [f"{value:016x}" for value in sorted(self._choice.extra)]

    def hold_out(self, hashes: Iterable[str]) -> None:
        """Go by a cursor's hashes, before anything is read: with more files the choice would be another, and the old one be trained on."""
        self._choice = Choice(int(value, 16) for value in hashes)

    # Finding documents

    def find(self, lane: int, place: Place) -> Found | None:
        """The document of `lane` at `place` or the next after it, None where the source ends. Aside when it can't be read."""
        if not self._opened:
            self._wait_for_return()
            if not self._opened:  # stopped while it was reached for
                raise Closed
        started = place
        while True:
            if place.shard >= self._shards:
                if started[1:] == (0, 0, 0):
                    self._require_text(started.epoch)
                if not self.rules.repeat:
                    return None
                started = place = Place(place.epoch + 1)
            block = self._block(place)
            if block is None:
                place = Place(place.epoch, place.shard + 1)
                continue
            index = block.index(lane, place.taken)
            if index >= len(block):
                place = Place(place.epoch, place.shard, place.block + 1)
                continue
            if self.chosen(block, index):
                return Found(place, block, index)
            place = place._replace(taken=place.taken + 1)

    def drop(self, places: Iterable[Place]) -> None:
        """Keep no block in memory that lies before all `places`, where the lanes of this process stand."""
        self._cache.drop(self.number, min(place[:3] for place in places))

    def forget(self, key: Key, index: int) -> None:
        """Keep the text of a document no longer: its lane has read it."""
        self._cache.forget(key, index)

    def chosen(self, block: Block, index: int) -> bool:
        """Whether this part of the data reads the document. What training meets of the held-out text is gathered."""
        known = block.chosen.get(index)
        if known is None:
            text = block.text(index)
            long_enough = len(text) >= self.rules.shortest
            held = long_enough and self._holds_out(text, block.scored[index])
            known = block.chosen[index] = held if self.rules.part == "held_out" else long_enough and not held
        return known

    def _holds_out(self, text: str, learned: Spans | None) -> bool:
        held = self.rules.holds_out and self._choice.holds(text)
        if held and self.rules.part == "train":
            self._held_out.add(self.name, Held(text, learned))
        return held

    def _block(self, place: Place) -> Block | None:
        """The block at `place`, or None past the last of its shard."""
        rules, epoch = self.rules, place.epoch
        shard = kept_permutation(self._shards, rules.seed, self.name, epoch, "shards")[place.shard] if rules.shuffle else place.shard
        blocks = self._count(shard)
        if blocks is not None and place.block >= blocks:
            return None
        shuffled = rules.shuffle and blocks is not None
        number = kept_permutation(blocks, rules.seed, self.name, epoch, shard, "blocks")[place.block] if shuffled else place.block
        block = self._cached(epoch, shard, number)
        if block is not None:
            block.at = place[:3]
        return block

    def _cached(self, epoch: int, shard: int, number: int) -> Block | None:
        return self._cache.get((self.number, epoch, shard, number), lambda: self._load(epoch, shard, number))

    def _load(self, epoch: int, shard: int, number: int) -> Block | None:
        documents = self._ask(self._reader.read, shard, number)
        self._reached = True
        if documents is None:
            self._blocks[shard] = number
            return None
        return Block(documents, self.rules.shuffle, self.rules.seed, self.name, epoch, shard, number)

    def _count(self, shard: int) -> int | None:
        if shard not in self._blocks:
            self._blocks[shard] = self._ask(self._reader.blocks, shard)
        return self._blocks[shard]

    def _walk(self, epoch: int) -> Iterator[Block]:
        """All blocks in natural order."""
        for shard in range(self._shards):
            blocks = self._count(shard)
            for number in count() if blocks is None else range(blocks):
                block = self._cached(epoch, shard, number)
                if block is None:
                    break
                yield block

    def _require_text(self, epoch: int) -> None:
        """Called by a lane that got nothing in a whole epoch: where no lane can get anything, the source is given up."""
        if self.rules.part == "held_out":
            return
        if self._has_text is None:
            self._has_text = any(self.chosen(block, index) for block in self._walk(epoch) for index in range(len(block)))
        if not self._has_text:
            self._give_up("holds no text" if self.rules.shortest <= 1 else f"holds no text of {self.rules.shortest} characters or more")
            raise Aside(self.number)

    # Faults

    def reach(self) -> None:
        """Ask for the first time. The outcome is `state`."""
        try:
            self._ask(self._open)
        except (Aside, Closed):
            return

    def _open(self) -> None:
        names = self._reader.shards()
        self._shards = len(names)
        self.fingerprint = fingerprint(names, self._reader.content())
        if self.rules.local:
            documents = ((block.text(index), block.scored[index]) for block in self._walk_unguarded() for index in range(len(block)))
            sample = list(islice((document for document in documents if len(document[0]) >= self.rules.shortest), SAMPLE))
            if not self._choice.extra:
                self._choice = local_choice(text for text, _ in sample)
            for document in sample:  # a short run may not come by them
                self._holds_out(*document)
            if len({text for text, _ in sample}) == 1:
                self._tell({"event": "notice", "source": self.name, "text": "one document only: nothing is held out"})
        self._opened = True

    def _walk_unguarded(self) -> Iterator[Block]:
        """The blocks of a local source: `reach` already waits for it."""
        for shard in range(self._shards):
            blocks = self._reader.blocks(shard)
            for number in count() if blocks is None else range(blocks):
                documents = self._reader.read(shard, number)
                if documents is None:
                    break
                block = Block(documents, self.rules.shuffle, self.rules.seed, self.name, 0, shard, number)
                yield self._cache.get((self.number, 0, shard, number), lambda block=block: block)

    def _ask(self, method: Callable[..., Result], *numbers: int) -> Result:
        """What the reader answers, waiting through passing faults. Aside when patience ends or there is no use in it."""
        if self.state in ("waiting", "given up"):
            self._wait_for_return()
        question = (method.__name__, numbers)
        if question in self._answers:
            return self._answers.pop(question)
        deadline = time.monotonic() + (PATIENCE if self._reached else FIRST_PATIENCE)
        pause = FIRST_PAUSE
        while True:
            try:
                answer = method(*numbers)
            except PassingFault as fault:
                self._failed = lambda: self._answers.update({question: method(*numbers)})
                self._wait(fault, pause, deadline)
                pause = min(2 * pause, LONGEST_PAUSE)
            except (GivenUp, OSError) as error:
                self._give_up(str(error))
                raise Aside(self.number) from None
            else:
                self.reason = ""
                self._pass_on_notices()
                return answer

    def _wait(self, fault: PassingFault, pause: float, deadline: float) -> None:
        pause = max(pause, fault.retry_after or 0.0)
        if time.monotonic() + pause > deadline and not self.patient:
            self._set_aside(fault)
            raise Aside(self.number) from None
        self.reason = str(fault)
        if self.closing.wait(pause):
            raise Closed from None

    def _wait_for_return(self) -> None:
        """Aside, but for a patient feed, which waits for the thread that asks again."""
        while self.patient and self.state == "waiting":
            if self.closing.wait(GLANCE):
                raise Closed
        if self.state in ("waiting", "given up"):
            raise Aside(self.number)

    def _set_aside(self, fault: PassingFault) -> None:
        self.next_try = time.time() + max(self._pause, fault.retry_after or 0.0)
        self._pause = min(2 * self._pause, LONGEST_RETRY)
        self._change("waiting", str(fault))

    def _give_up(self, reason: str) -> None:
        self.next_try = None
        self._change("given up", reason)
        self._pass_on_notices()

    def retry(self) -> None:
        """Ask the question that failed again, once. Called by another thread than the one that reads, while that one keeps off."""
        try:
            self._failed()
        except PassingFault as fault:
            self._set_aside(fault)
        except (GivenUp, OSError) as error:
            self._give_up(str(error))
        else:
            self._pause, self.next_try = FIRST_RETRY, None
            self._change("reading", "")

    def finish(self) -> None:
        """All lanes of this process have read their share."""
        self._change("finished", "")

    def _change(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason) or state == "waiting":
            self._tell({"event": "source", "name": self.name, "state": state, "reason": reason})
        self.state, self.reason = state, reason

    def _pass_on_notices(self) -> None:
        for line in self._reader.notices():
            self._tell({"event": "notice", "source": self.name, "text": line})

    def close(self) -> None:
        self.closing.set()
        self._reader.close()
