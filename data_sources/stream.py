"""The stream of batches, each with the cursor that goes on after it.

    sources -> 48 lanes -> rows of this rank -> (batch, cursor)

Global row i comes from lane i mod 48, and rank r of W owns the rows with i mod W = r. Global batch n holds rows
[n * B * W, (n + 1) * B * W). So the order of the data belongs to the data and the seed, and not to the machine.

The end. A rank knows its own lanes only, and asks no other. On one process the stream stops when nothing is left. On more,
every rank goes on with batches of padding, marked `last`, until the training loop sees `last` on all ranks and stops: all have then
made equally many batches, and no collective is needed here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from data_sources.batch import Batch, Rows
from data_sources.config import DataConfig
from data_sources.cursor import EVENTS_KEPT, VERSION, Cursor, adapted, check_cursor, lanes_of
from data_sources.encoder import Encoder
from data_sources.held_out import HeldOut
from data_sources.lane import FINISHED, Lane, Mix, State
from data_sources.order import LANES
from data_sources.sources import Sources


@dataclass(frozen=True)
class SourceState:
    """What the screen shows of a source. Counts are of this rank's lanes, over the whole life of the cursor."""

    name: str
    state: str  # "reading", "waiting", "finished" or "given up"
    reason: str
    next_try: float | None  # seconds since 1970
    documents: int
    tokens: int
    epoch: int  # of the lane that is furthest, from 0


def open_stream(
    data: DataConfig,
    tokenizer: Any,
    seq_length: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    cursor: Cursor | None = None,
    part: str = "train",
    seed: int = 0,
) -> "Stream":
    """The stream of batches of `batch_size` rows of `seq_length` positions for this rank.

    part: "train", or "held_out" for what training never sees, found by reading through. cursor: goes on after the batch it came
    with; its own seed then counts. SourcesFailed when no source can be read; ValueError for what can't be meant.
    """
    if seq_length < 1 or batch_size < 1:
        raise ValueError(f"seq_length {seq_length} and batch_size {batch_size} must be at least 1")
    if part not in ("train", "held_out"):
        raise ValueError(f'part is "train" or "held_out", not "{part}"')
    lanes = lanes_of(rank, world_size)
    if cursor is not None:
        check_cursor(cursor, lanes)
    return Stream(data, tokenizer, seq_length, batch_size, rank, world_size, cursor, part, seed)


class Stream:
    """An iterator over (batch, cursor), and a context manager. Made by `open_stream`."""

    def __init__(
        self, data: DataConfig, tokenizer: Any, seq_length: int, batch_size: int, rank: int, world_size: int, cursor: Cursor | None, part: str, seed: int
    ):
        self._seq_length, self._batch_size, self._rank, self._world_size = seq_length, batch_size, rank, world_size
        self._seed = seed if cursor is None else cursor["seed"]
        self._next_row = 0 if cursor is None else cursor["next_row"]
        self._log: list[list[Any]] = [] if cursor is None else [list(event) for event in cursor["events"]]
        self._sources = Sources(data, self._seed, part)
        numbers = lanes_of(rank, world_size)
        self._encoder = Encoder(tokenizer, numbers)
        states = {} if cursor is None else adapted(cursor, self._names(), [source.repeat for source in data.sources], self._sources.tell)
        mix = Mix(data.mix_strategy, data.weights, data.packing == "pad")
        self._lanes = {number: Lane(number, self._sources.feeds, mix, self._encoder, self._moved, states.get(number)) for number in numbers}
        self._states: dict[str, State] = {str(number): lane.state() for number, lane in self._lanes.items()}
        self._marks = self._compare_marks(cursor)

    def __iter__(self) -> Iterator[tuple[Batch, Cursor]]:
        return self

    def __next__(self) -> tuple[Batch, Cursor]:
        self._sources.require_one()
        self._sources.watch()
        first, size = self._next_row, self._batch_size * self._world_size
        numbers = [row for row in range(first, first + size) if row % self._world_size == self._rank]
        rows, valid = Rows(self._batch_size, self._seq_length, self._encoder.pad), 0
        for index, number in enumerate(numbers):
            valid += self._fill(rows, index, number % LANES)
        last = valid == 0 and self.exhausted
        if last and self._world_size == 1:
            raise StopIteration
        self._next_row += size
        return rows.batch([number % LANES for number in numbers], numbers, valid, last), self.cursor()

    def _fill(self, rows: Rows, index: int, number: int) -> int:
        lane = self._lanes[number]
        filled = lane.fill(rows.view(index))
        if lane.ended:
            self._sources.require_one()
        self._states[str(number)] = lane.state()
        return filled

    @property
    def exhausted(self) -> bool:
        """Whether no lane of this rank has anything left to read."""
        return all(lane.ended for lane in self._lanes.values())

    def cursor(self) -> Cursor:
        """Goes on after the batch that came last."""
        marks = [[feed.name, feed.fingerprint or self._marks.get(feed.name, "")] for feed in self._sources.feeds]
        return {
            "version": VERSION,
            "seed": self._seed,
            "next_row": self._next_row,
            "sources": marks,
            "lanes": dict(self._states),
            "events": list(self._log),
        }

    def _moved(self, lane: int, source: int, what: str) -> None:
        """A lane set a source aside, took it back, or read its share of it to the end."""
        feed = self._sources.feeds[source]
        if what == "finished" and all(other.standings[source].status == FINISHED for other in self._lanes.values()):
            feed.finish()
        event = [self._next_row, feed.name, what]
        if event not in self._log:  # one line for all lanes of a batch
            self._log = [*self._log, event][-EVENTS_KEPT:]

    def _names(self) -> list[str]:
        return [feed.name for feed in self._sources.feeds]

    def _compare_marks(self, cursor: Cursor | None) -> dict[str, str]:
        marks = {} if cursor is None else dict(cursor["sources"])
        for feed in self._sources.feeds:
            if feed.fingerprint and marks.get(feed.name) and marks[feed.name] != feed.fingerprint:
                text = "its files are others than when it was last read: some documents may come twice or not at all"
                self._sources.tell({"event": "notice", "source": feed.name, "text": text})
        return marks

    @property
    def sources(self) -> list[SourceState]:
        """The state of each source, in the order of the preset. Safe from another thread."""
        states = []
        for index, feed in enumerate(self._sources.feeds):
            standings = [lane.standings[index] for lane in self._lanes.values()]
            documents, tokens = sum(s.documents for s in standings), sum(s.tokens for s in standings)
            epoch = max(s.place.epoch for s in standings)
            states.append(SourceState(feed.name, feed.state, feed.reason, feed.next_try, documents, tokens, epoch))
        return states

    @property
    def held_out(self) -> HeldOut:
        """Held-out documents, gathered as they are met."""
        return self._sources.held_out

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call, for the log. Safe from another thread."""
        return self._sources.take_events()

    def stop(self) -> None:
        """End any waiting, from whatever thread; the next batch may then fail with Closed."""
        self._sources.stop()

    def close(self) -> None:
        """Let go of files, connections and threads. Safe to call twice."""
        self._sources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
