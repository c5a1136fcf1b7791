"""What one process reads: global batch after global batch, as arrays, each with the cursor that goes on after it.

    weights, events -> lanes -> rows of this rank -> (rows, cursor)

A batch is all or nothing. When a source can't be read while one is made, all lanes go back to where they stood at its beginning, and it
is made again without the source. So rows depend on the data, the seed and the events in the cursor, and never on the instant of a fault.

The end. A rank knows its own lanes only, and asks no other. One that reads alone stops when nothing is left. Of several,
each goes on with batches of padding, marked `last`, until the training loop sees `last` on all ranks and stops: all have then
made equally many batches, and no collective is needed here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_sources.chunks import Chunks
from data_sources.config import DataConfig
from data_sources.cursor import VERSION, Cursor, adapted, lanes_of
from data_sources.documents import SourcesFailed
from data_sources.encoder import Encoder
from data_sources.events import ASIDE, BACK, Event, Record, in_order, united
from data_sources.feed import Aside, Place
from data_sources.fingerprint import GONE, change
from data_sources.held_out import HeldOut
from data_sources.lane import ASIDE as IS_ASIDE
from data_sources.lane import FINISHED, READING, Lane, Mix, State
from data_sources.lengths import RowLengths
from data_sources.order import LANES
from data_sources.packed import Rows
from data_sources.past import Read, Sieve
from data_sources.recall import MemoryStates, Recall
from data_sources.rewriting import Rewriter, Rewriting
from data_sources.sources import Sources, SourceState
from data_sources.weights import WeightSchedule, base_weights

WORN = 4  # epochs
GLANCE = 0.1


@dataclass(frozen=True)
class Job:
    """What is to be read: by which rank of how many, in which sizes, from where on. As `open_stream` explains it."""

    data: DataConfig
    lengths: RowLengths
    context_length: int | None  # documents begin anew after so many positions
    rank: int
    world_size: int
    cursor: Cursor | None
    part: str
    seed: int
    replay: Cursor | None
    keep: tuple[int, int] | None  # bytes of what is read that are kept, and the priority that ends them
    chunk_size: int | None  # tokens of the chunks that are told, None for none
    endless: bool  # whether it goes on with padding at the end, since others may not be there yet
    rewrite: Rewriter | None = None  # what is made of documents on their way into rows

    @property
    def first_row(self) -> int:
        return 0 if self.cursor is None else self.cursor["next_row"]


class Reading:
    """An iterator over (rows, cursor). Used by one thread; what may be called from another says so."""

    def __init__(self, job: Job, tokenizer: Any, schedule: WeightSchedule | None, recall: Recall | None = None, states: MemoryStates | None = None):
        """recall, with the states of its memory: what is asked by the chunks of each batch."""
        self._job, self._schedule, self._recall, self._memory = job, schedule, recall, states
        cursor, data = job.cursor or {}, job.data
        self._seed, self._next_row = cursor.get("seed", job.seed), job.first_row
        self._log: list[list[Any]] = [list(event) for event in cursor.get("events", ())]
        self._record = Record(job.replay, job.first_row) if job.replay else None
        numbers = lanes_of(job.rank, job.world_size)
        self._encoder = Encoder(tokenizer, numbers, self._place_of)
        self._sources = Sources(data, self._seed, job.part, titled=job.chunk_size is not None)
        self._names = [feed.name for feed in self._sources.feeds]
        self._held_beside: dict[str, list[str]] = cursor.get("held_out", {})
        for feed in self._sources.feeds:
            if self._held_beside.get(feed.name):
                feed.hold_out(self._held_beside[feed.name])
        self._parked: dict[str, dict[str, Any]] = {}
        self._lanes = self._opened_lanes(numbers)
        self._states: dict[str, State] = {str(number): lane.keep() for number, lane in self._lanes.items()}
        self._marks = self._known_marks()
        self._is_reached = False
        self._sieve = Sieve(*job.keep) if job.keep else None
        self._worn = set(self._read_over())

    # How lanes begin

    def _opened_lanes(self, numbers: Sequence[int]) -> dict[int, Lane]:
        data, cursor = self._job.data, self._job.cursor
        strategy = "weighted" if self._schedule and data.mix_strategy != "sequential" else data.mix_strategy
        base = base_weights(data) if self._schedule else data.weights
        states, joining = {}, []
        if cursor is not None:
            self._compare_habits(cursor)
            states, joining, self._parked = adapted(cursor, self._names, [source.repeat for source in data.sources], numbers, self._sources.tell)
        held = dict(zip([name for name, _ in cursor["sources"]], cursor["weights"], strict=True)) if cursor and "weights" in cursor else {}
        before = tuple(held.get(name, weight) for name, weight in zip(self._names, base, strict=True))
        # An interval that is under way goes on with its own weights; the schedule of this process has not heard of them.
        self._weights = before if self._schedule and not joining else base
        self._weighed = (cursor or {}).get("weighed", max(0, self._next_row - 1))
        self._interval = self._weighed // self._schedule.interval_rows if self._schedule else 0
        self._by_weights = strategy == "weighted"
        mix = Mix(strategy, before, data.packing == "pad")
        if data.past:
            mix = mix._replace(past_share=data.past.share, past_document=data.past.document_tokens)
        terms = (self._job.context_length, Rewriting(self._job.rewrite, self._seed))
        lanes = {number: Lane(number, self._sources.feeds, mix, self._encoder, states.get(number), *terms) for number in numbers}
        for lane in lanes.values():
            lane.reweigh(self._weights)
            if cursor is not None and self._by_weights and not held and "packing" in cursor:
                lane.begin_shares()
            elif joining:
                lane.join(joining)
        return lanes

    def _place_of(self, lane: int, source: int) -> Place:
        return self._lanes[lane].standings[source].place

    def _compare_habits(self, cursor: Cursor) -> None:
        data = self._job.data
        if cursor.get("shuffle", data.shuffle) != data.shuffle:
            now, before = ("on", "off") if data.shuffle else ("off", "on")
            text = f"shuffle is {now} and was {before}: places mean other documents now, some may come twice or not at all"
            self._sources.tell({"event": "notice", "text": text})
        if cursor.get("packing", data.packing) != data.packing:
            text = f'packing is "{data.packing}" and was "{cursor["packing"]}": rows are filled in another way, documents go on where they were'
            self._sources.tell({"event": "notice", "text": text})

    def _known_marks(self) -> dict[str, str]:
        """By source its fingerprint when it was last read, until it is compared with what it is now."""
        cursor = self._job.cursor or {"sources": []}
        return {name: held["fingerprint"] for name, held in cursor.get("parked", {}).items()} | dict(cursor["sources"])

    def _tell_changes(self) -> None:
        """Of sources that are not what they were, as soon as they are reached."""
        for feed in self._sources.feeds:
            if feed.fingerprint and (text := change(self._marks.pop(feed.name, ""), feed.fingerprint)):
                self._sources.tell({"event": "changed", "source": feed.name, "text": text})

    def _tell_losses(self) -> None:
        """Of sources that were read when the cursor was written, and can't be read now."""
        for number, feed in enumerate(self._sources.feeds):
            if feed.state == "given up" and self._marks.get(feed.name) and any(lane.standings[number].status == READING for lane in self._lanes.values()):
                self._sources.tell({"event": "changed", "source": feed.name, "text": GONE})

    # Batches

    def __next__(self) -> tuple[Rows, Cursor]:
        while not self.reached(GLANCE):
            continue
        first, stop = self._next_row, self._next_row + self._job.lengths.rows_at(self._next_row)
        self._tell_changes()
        self._weigh(first)
        replayed = self._record is not None and first < self._record.until
        self._sources.be_patient(replayed)
        rows, due = self._replayed(first, stop) if replayed else self._live(first, stop)
        if due:
            self._log = united([*self._log, *due])
        rows.begun = self._sifted(rows)
        rows.chunks = self._chunked(rows)
        if self._recall is not None and self._memory is not None and rows.chunks is not None:
            state = self._memory.of(first, self._sources.closing)
            asked = time.monotonic()
            rows.answers = self._recall.ask(rows.chunks, state)
            rows.asked_seconds = time.monotonic() - asked
        moved = self._lanes if due else rows.lane.tolist()
        self._states |= {str(number): self._lanes[number].keep() for number in moved}
        for source, feed in enumerate(self._sources.feeds):
            feed.drop(lane.standings[source].place for lane in self._lanes.values())
        self._tell_ends()
        rows.last = rows.empty and self.exhausted
        if rows.last and not self._job.endless:
            raise StopIteration
        self._next_row = stop
        return rows, self.cursor()

    def _sifted(self, rows: Rows) -> list[Read]:
        """The documents begun in `rows` that may be among those kept of all that was ever read."""
        if self._sieve is None:
            return []
        begun = [each for number in dict.fromkeys(rows.lane.tolist()) for each in self._lanes[number].begun]
        found = [
            Read.of(self._seed, self._names[source], block.text(index), block.scored[index])
            for source, (_, block, index) in begun
            if self._sources.feeds[source].rules.holds_out
        ]
        return [read for read in found if self._sieve.offer(read.priority, read.size)[0]]

    def _chunked(self, rows: Rows) -> Chunks | None:
        """The chunks of what stands in `rows`, where they are wanted."""
        if self._job.chunk_size is None:
            return None
        stretches = [stretch for number in dict.fromkeys(rows.lane.tolist()) for stretch in self._lanes[number].stretches]
        stretches.sort(key=lambda stretch: (stretch.row, stretch.position))
        return Chunks.of(stretches, self._names, self._job.chunk_size, self._job.context_length)

    def _live(self, first: int, stop: int) -> tuple[Rows, list[Event]]:
        """The batch, and what was decided at its beginning, where sources are taken back and set aside as the clock will have it."""
        moves = dict.fromkeys(self._returned(), BACK)
        while True:
            self._sources.require_one()
            self._sources.watch()
            due = [Event(first, self._names[source], what, self._job.rank, self._job.world_size) for source, what in moves.items()]
            try:
                rows = self._fill(first, stop, due)
            except Aside as fault:
                if moves.pop(fault.source, ASIDE) == ASIDE:  # what came back and left again in one batch was never here
                    moves[fault.source] = ASIDE
                continue
            if not any(self._lanes[number].stranded for number in rows.lane.tolist()):
                return rows, due
            self._sources.require_one()
            self._rewind()  # a source came back in the very moment
            moves = {source: what for source, what in moves.items() if what == ASIDE and not self._is_here(source)}
            moves |= dict.fromkeys(self._returned(), BACK)

    def _replayed(self, first: int, stop: int) -> tuple[Rows, list[Event]]:
        """The batch as it was made the first time, whatever the clock says."""
        assert self._record is not None
        self._sources.watch()
        due = self._record.between(first, stop)
        try:
            return self._fill(first, stop, due), due
        except Aside as fault:
            feed = self._sources.feeds[fault.source]
            raise SourcesFailed({feed.name: f"{feed.reason}; it was read in the run that is replayed"}) from None

    def _fill(self, first: int, stop: int, due: Sequence[Event]) -> Rows:
        """Rows of this rank from `first` up to `stop`; a lane obeys what is due before its row. After an exception nothing has changed."""
        numbers = [row for row in range(first, stop) if row % self._job.world_size == self._job.rank]
        rows = Rows.blank(numbers, self._job.lengths.at(first), self._encoder.pad, has_kinds=self._job.rewrite is not None)
        events = in_order(due, self._names)
        try:
            obeyed = dict.fromkeys(self._lanes, first - 1)
            for index, number in enumerate(numbers):
                lane = self._lanes[number % LANES]
                self._obey(lane, [event for event in events if obeyed[lane.number] < event.row <= number])
                obeyed[lane.number] = number
                lane.fill(rows.view(index))
            for lane in self._lanes.values():
                self._obey(lane, [event for event in events if obeyed[lane.number] < event.row])
            if self._job.rewrite:
                rows.finish(self._job.rewrite)
        except BaseException:
            self._rewind()
            raise
        return rows

    def _obey(self, lane: Lane, events: Sequence[Event]) -> None:
        for event in events:
            if event.covers(lane.number):
                (lane.set_aside if event.what == ASIDE else lane.take_back)(self._names.index(event.source))

    def _rewind(self) -> None:
        for lane in self._lanes.values():
            lane.rewind()

    def _returned(self) -> list[int]:
        """Sources that a lane does without and that can be read again."""
        lanes = self._lanes.values()
        return [source for source in range(len(self._names)) if self._is_here(source) and any(lane.standings[source].status == IS_ASIDE for lane in lanes)]

    def _is_here(self, source: int) -> bool:
        return self._sources.feeds[source].state in ("reading", "finished")

    def _weigh(self, first: int) -> None:
        """Before the first batch of an interval: its weights."""
        self._weighed = first
        if self._schedule is None or first // self._schedule.interval_rows == self._interval:
            return
        interval = first // self._schedule.interval_rows
        self._weights = self._schedule.of(interval, self._sources.closing)
        self._interval = interval
        for number, lane in self._lanes.items():
            lane.reweigh(self._weights)
            self._states[str(number)] = lane.keep()

    def _tell_ends(self) -> None:
        """Of sources that these lanes have read to their end, or once too often."""
        for source, feed in enumerate(self._sources.feeds):
            if feed.state == "reading" and all(lane.standings[source].status == FINISHED for lane in self._lanes.values()):
                feed.finish()
        for source in self._read_over():
            if source not in self._worn:
                self._worn.add(source)
                name = self._names[source]
                text = f"{name}: read more than four times over; a model learns little from more repeats (Muennighoff et al. 2023)"
                self._sources.tell({"event": "notice", "source": name, "text": text})

    def _read_over(self) -> list[int]:
        """Sources that the lanes, taken together, have read WORN times. Of a source of few documents one lane alone is far ahead."""
        lanes = self._lanes.values()
        return [source for source in range(len(self._names)) if sum(lane.standings[source].place.epoch for lane in lanes) >= WORN * len(lanes)]

    @property
    def exhausted(self) -> bool:
        """Whether no lane of this rank has anything left to read."""
        return all(lane.ended for lane in self._lanes.values())

    def cursor(self) -> Cursor:
        """Goes on after the batch that came last."""
        marks = [[feed.name, feed.fingerprint or self._marks.get(feed.name, "")] for feed in self._sources.feeds]
        cursor = {
            "version": VERSION,
            "seed": self._seed,
            "next_row": self._next_row,
            "shuffle": self._job.data.shuffle,
            "packing": self._job.data.packing,
            "sources": marks,
            "lanes": dict(self._states),
            "parked": self._parked,
            "events": list(self._log),
            "held_out": self._held_beside | {feed.name: feed.held_beside for feed in self._sources.feeds if feed.held_beside},
        }
        return cursor | ({"weights": list(self._weights), "weighed": self._weighed} if self._by_weights else {})

    # What others ask

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

    def reached(self, seconds: float) -> bool:
        """Whether the sources have been reached, at the latest after `seconds`. For the thread that reads, before it does."""
        if not self._is_reached and self._sources.reached(seconds):
            self._is_reached = True
            self._tell_changes()
            self._tell_losses()
        return self._is_reached

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call, for the log. Safe from another thread."""
        return self._sources.take_events()

    def stop(self) -> None:
        """End any waiting, from whatever thread; the next batch may then fail with Closed."""
        self._sources.stop()

    def close(self) -> None:
        """Let go of files, connections and threads. Safe to call twice."""
        self._sources.close()
        if self._recall is not None:
            self._recall.close()
