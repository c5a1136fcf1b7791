"""The stream of batches, each with the cursor that goes on after it.

    sources -> 48 lanes -> rows of this rank -> (batch, cursor)

Global row i comes from lane i mod 48, and rank r of W owns the rows with i mod W = r. A global batch is the next G rows, whoever
reads them. So the order of the data belongs to the data and the seed, and not to the machine: not to the number of ranks, and not to
the number of loader processes of each, which share its lanes in the same way.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from data_sources.batch import Batch
from data_sources.config import DataConfig
from data_sources.cursor import Cursor, check_cursor, lanes_of
from data_sources.events import Record
from data_sources.held_out import HeldOut
from data_sources.lengths import RowLengths
from data_sources.order import LANES
from data_sources.reading import Job, Reading
from data_sources.recall import MemoryStates, Recall
from data_sources.rewriting import Rewriter
from data_sources.sources import SourceState
from data_sources.weights import WeightSchedule
from data_sources.workers import Workers

GLANCE = 0.1


class Options(NamedTuple):
    """What a stream can do beside reading on.

    workers: loader processes beside this one, which do the reading and tokenising; 0 for none. schedule: weights that change while
    reading; sources are then chosen by weights whatever `mix_strategy` says (equal ones for "round_robin"), except for "sequential".
    replay: a later cursor of the same run. Up to its row only the events in it move a source: one that was read then is waited for
    however long, and one that was set aside stays so, even where it could be read. From there on the clock decides again.
    wait: whether `open_stream` returns once the sources have been reached. Otherwise it returns at once, as it does with loaders, and
    `Stream.reached` tells when they are; so somebody can be heard in the meantime.
    global_rows: rows of a batch over all ranks, when they can't be shared out evenly or must stay what they were on another number
    of ranks; `batch_size` then says nothing, and a batch of this rank has a row more or less than the one before, or none.
    lengths: rows of these lengths, as many in a batch as they say, in place of `seq_length` and, in all stages but the last, of `global_rows`.
    context_length: a document begins anew, as a restart, after so many positions of it.
    keep: have batches tell, as `begun`, which of their documents may belong to a sample of everything read (data_sources/past.py):
    its size in bytes, and the priority from which on it keeps nothing.
    chunk_size: have batches tell the chunks, of so many tokens, of the documents that stand in them (data_sources/chunks.py). recall, states:
    with them, what a memory answers to those chunks (data_sources/recall.py).
    rewrite: what is made of documents on their way into rows (data_sources/rewriting.py); the memory's chunks are those of the documents.
    """

    workers: int = 0
    schedule: WeightSchedule | None = None
    replay: Cursor | None = None
    wait: bool = True
    global_rows: int | None = None
    keep: tuple[int, int] | None = None
    lengths: RowLengths | None = None
    context_length: int | None = None
    chunk_size: int | None = None
    recall: Recall | None = None
    states: MemoryStates | None = None
    rewrite: Rewriter | None = None


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
    options: Options = Options(),  # noqa: B008 - it can't be changed
) -> "Stream":
    """The stream of batches of `batch_size` rows of `seq_length` positions for this rank.

    part: "train", or "held_out" for what training never sees, found by reading through. cursor: goes on after the batch it came
    with; its own seed then counts. ValueError for what can't be meant. The first batch fails with SourcesFailed when no source can be read.
    """
    lanes_of(rank, world_size)
    global_rows = batch_size * world_size if options.global_rows is None else options.global_rows
    if min(seq_length, batch_size, global_rows) < 1:
        raise ValueError(f"seq_length {seq_length}, batch_size {batch_size} and global_rows {global_rows} must be at least 1")
    lengths = options.lengths or RowLengths.constant(seq_length, global_rows)
    if lengths.rows != global_rows:
        raise ValueError(f"lengths are of batches of {lengths.rows} rows, and these have {global_rows}")
    if part not in ("train", "held_out"):
        raise ValueError(f'part is "train" or "held_out", not "{part}"')
    which = (rank, world_size, cursor, part, seed, options.replay, options.keep, options.chunk_size, world_size > 1)
    job = Job(data, lengths, options.context_length, *which, rewrite=options.rewrite)
    _check(job, options)
    if options.workers:
        return Stream(Workers(job, tokenizer, options.workers, options.schedule, options.recall, options.states))
    stream = Stream(Reading(job, tokenizer, options.schedule, options.recall, options.states))
    try:
        while options.wait and not stream.reached(GLANCE):
            continue
    except BaseException:  # Ctrl-C, too
        stream.close()
        raise
    return stream


def _check(job: Job, options: Options) -> None:
    """ValueError, in one line, before anything is opened."""
    lanes = lanes_of(job.rank, job.world_size)
    readers = options.workers * job.world_size
    if options.workers < 0 or (readers and LANES % readers):
        allowed = [number for number in range(1, LANES + 1) if LANES % (number * job.world_size) == 0]
        raise ValueError(f"{options.workers} loader processes for each of {job.world_size} ranks can't share {LANES} lanes evenly; use 0 or one of {allowed}")
    if job.cursor is not None:
        check_cursor(job.cursor, lanes)
    if job.replay is not None:
        check_cursor(job.replay, ())
        if job.replay["seed"] != (job.cursor or {}).get("seed", job.seed):
            raise ValueError(f"the cursor to replay has seed {job.replay['seed']}, reading goes on with another; take one of the same run")
        if [name for name, _ in job.replay["sources"]] != [source.name for source in job.data.sources]:
            raise ValueError("the cursor to replay has other sources than the preset; take one of the same run")
        Record(job.replay, job.first_row)
    if options.rewrite is not None and (options.recall is not None or options.context_length is not None):
        raise ValueError("what is rewritten is read by itself: no memory answers to it, and nothing goes on from row to row")
    if (options.recall is None) != (options.states is None) or (options.recall is not None and options.chunk_size is None):
        raise ValueError("a memory is asked with its recall, its states and a chunk_size")
    if options.schedule is not None:
        if options.schedule.sources != len(job.data.sources):
            raise ValueError(f"the schedule has {options.schedule.sources} weights for {len(job.data.sources)} sources")
        if options.schedule.interval_rows % job.lengths.rows:
            raise ValueError(f"interval_rows {options.schedule.interval_rows} must be a multiple of the {job.lengths.rows} rows of a global batch")


class Stream:
    """An iterator over (batch, cursor), and a context manager. Made by `open_stream`.

    On one rank it stops when nothing is left. On more, each goes on with batches of padding, marked `last`, until all are there.
    """

    def __init__(self, reading: Reading | Workers):
        self._reading = reading

    def __iter__(self) -> Iterator[tuple[Batch, Cursor]]:
        return self

    def __next__(self) -> tuple[Batch, Cursor]:
        rows, cursor = next(self._reading)
        return Batch.of(rows), cursor

    @property
    def exhausted(self) -> bool:
        """Whether no lane of this rank has anything left to read."""
        return self._reading.exhausted

    def cursor(self) -> Cursor:
        """Goes on after the batch that came last."""
        return self._reading.cursor()

    @property
    def sources(self) -> list[SourceState]:
        """The state of each source, in the order of the preset. Safe from another thread."""
        return self._reading.sources

    @property
    def held_out(self) -> HeldOut:
        """Held-out documents, gathered as they are met."""
        return self._reading.held_out

    def reached(self, seconds: float) -> bool:
        """Whether the sources have been reached, and `events` tells which of them were changed since the cursor, at the latest after `seconds`.
        For the thread that reads, before it does."""
        return self._reading.reached(seconds)

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call, for the log: "source", "notice", and "changed" for one that is not what it was when the cursor was
        written. Safe from another thread."""
        return self._reading.events()

    def stop(self) -> None:
        """End any waiting, from whatever thread; the next batch may then fail with Closed."""
        self._reading.stop()

    def close(self) -> None:
        """Let go of files, connections, threads and processes. Safe to call twice."""
        self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
