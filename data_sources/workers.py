"""Loader processes of one rank: each reads the rows of some of the rank's lanes, and here they become the rank's batches.

    n processes, each rank r + W * w of W * n -> their parts of a global batch -> (rows, cursor), as one process would have made them

The rows and the cursors are those of a rank that reads by itself; only who does the work is another.

Processes of `subprocess`, and not of multiprocessing: `spawn` would import main.py again in each. Each has a session of its own, so
that Ctrl-C in the terminal is for the parent alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from data_sources.cursor import Cursor, merge_cursors
from data_sources.documents import SourcesFailed
from data_sources.feed import Closed
from data_sources.held_out import HeldOut
from data_sources.lane import HEAD, NOTHING, READING, WIDTH
from data_sources.packed import Rows, joined
from data_sources.reading import Job
from data_sources.recall import MemoryStates, Recall
from data_sources.sources import SourceState
from data_sources.special_tokens import with_special_tokens
from data_sources.weights import WeightSchedule
from data_sources.worker import StateAt, Task, Word, bare

PROJECT = Path(__file__).resolve().parents[1]
GLANCE = 0.1
LONGEST_CLOSE = 3.0  # seconds
LAST_WORDS = 8000  # bytes
STATES = ("waiting", "given up", "reading", "finished")  # what is said of a source when its loaders differ: the first of these

FAILURES: dict[str, Callable[[Any], Exception]] = {"SourcesFailed": SourcesFailed, "ValueError": ValueError, "RuntimeError": RuntimeError}


class Worker:
    """One loader process, as its parent knows it."""

    def __init__(self, threads: int):
        self.line, other = Pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `bury`
        in_main = threading.current_thread() is threading.main_thread()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from data_sources.worker import main; main()", str(other.fileno()), str(os.getpid()), *(["main"] if in_main else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={"RAYON_NUM_THREADS": str(threads), **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            pass_fds=[other.fileno()],
            start_new_session=True,
        )
        other.close()
        self.ready: deque[tuple[Rows, Cursor]] = deque()
        self.cursor: Cursor | None = None  # of the batch handed out last
        self.sources: list[SourceState] = []
        self.failure: Exception | None = None

    def tell(self, word: Any) -> None:
        """A task, or weights. One that is dead is noticed when it is listened to."""
        with contextlib.suppress(OSError):
            self.line.send(word)

    def hear(self) -> Word:
        """The next word. Where there can be none any more, one without news, and `failure` is set."""
        try:
            word: Word = self.line.recv()
        except (EOFError, OSError):
            self.failure = self._lost()
            return Word()
        if word.failure is not None:
            kind, message, story = word.failure
            self.failure = FAILURES[kind](message)
            self.failure.add_note(story)
        self.sources = word.sources or self.sources
        if word.batch is not None and self.cursor is None:
            self.cursor = word.batch[1]  # where it begins
        elif word.batch is not None:
            self.ready.append(word.batch)
        return word

    def _lost(self) -> RuntimeError:
        """That it is gone, with what it said last."""
        end, said = self._end(), self._last_words()
        failure = RuntimeError(f"a loader process {end}{f' ({said.splitlines()[-1].strip()})' if said else ''}; nothing is lost, start again")
        if said:
            failure.add_note(said)
        return failure

    def _last_words(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace").strip()

    def _end(self) -> str:
        try:
            status = self._process.wait(GLANCE * 10)
        except subprocess.TimeoutExpired:
            return "closed its line"
        return f"was ended from outside ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"

    def close(self) -> None:
        """It hears that the line is closed, and leaves."""
        self.line.close()

    def bury(self, seconds: float) -> None:
        """Wait for its end, and bring it about when it is late."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


class Workers:
    """The interface of `Reading`, over `count` loader processes."""

    def __init__(
        self,
        job: Job,
        tokenizer: Any,
        count: int,
        schedule: WeightSchedule | None = None,
        recall: Recall | None = None,
        states: MemoryStates | None = None,
    ):
        self._job, self._schedule, self._states_of_memory = job, schedule, states
        self.held_out = HeldOut()
        self._events: deque[dict[str, Any]] = deque()
        self._told: set[tuple[Any, ...]] = set()
        self._states = {source.name: ("reading", "") for source in job.data.sources}  # as they were told last
        self._announced: set[int] = {0, 1}
        self._closing = threading.Event()
        light = bare(with_special_tokens(tokenizer))
        terms = (schedule.of(0), schedule.interval_rows) if schedule else None
        known = states.announced() if states else {}
        self._newest_state = max(known, default=-1)
        self._workers = [Worker(_threads(count)) for _ in range(count)]
        for number, worker in enumerate(self._workers):
            part = replace(job, rank=job.rank + job.world_size * number, world_size=job.world_size * count, endless=True)
            worker.tell(Task(part, light, terms, recall, (states.lag, known) if states else None))

    def __next__(self) -> tuple[Rows, Cursor]:
        self._hear_until(lambda worker: worker.ready)
        parts = [worker.ready.popleft() for worker in self._workers]
        rows = joined([rows for rows, _ in parts])
        ended = rows.last and not self._job.endless
        for worker, part in zip(self._workers, parts, strict=True):
            assert worker.cursor is not None
            if ended:  # asked again, it ends again
                worker.ready.appendleft(part)
            worker.cursor = part[1] | {"next_row": worker.cursor["next_row"]} if ended else part[1]
        if ended:
            raise StopIteration
        return rows, self.cursor()

    def _hear_until(self, satisfied: Callable[[Worker], Any]) -> None:
        """Listen to those workers that are not `satisfied` yet. The others may have to wait: that is what keeps them from running far ahead."""
        while lacking := [worker for worker in self._workers if not satisfied(worker)]:
            if self._closing.is_set():
                raise Closed
            self._announce()
            for worker in lacking:
                if worker.failure is not None:
                    raise worker.failure
            self._hear(lacking)

    def _hear(self, workers: Sequence[Worker]) -> None:
        lines: dict[Connection, Worker] = {worker.line: worker for worker in workers}
        for line in wait(list(lines), GLANCE):
            self._note(lines[line].hear())

    def reached(self, seconds: float) -> bool:
        """Whether all loaders have reached their sources, or have failed, at the latest after `seconds`. For the thread that reads, before it does."""
        until = time.monotonic() + seconds
        while lacking := [worker for worker in self._workers if worker.cursor is None and worker.failure is None]:
            if time.monotonic() >= until:
                return False
            self._hear(lacking)
        return True

    def _announce(self) -> None:
        """Pass on the weights, and the states of the memory, that were settled since the last time."""
        settled = self._schedule.announced() if self._schedule else {}
        for interval in sorted(set(settled) - self._announced):
            self._announced.add(interval)
            for worker in self._workers:
                worker.tell((interval, settled[interval]))
        states = self._states_of_memory.announced(self._newest_state + 1) if self._states_of_memory else {}
        for row, state in states.items():
            self._newest_state = row
            for worker in self._workers:
                worker.tell(StateAt(row, state))

    def _note(self, word: Word) -> None:
        for source, text in word.held_out:
            self.held_out.add(source, text)
        for event in word.events:
            key = (event.get("source"), event.get("text"))
            if event["event"] != "source" and key not in self._told:
                self._told.add(key)
                self._events.append(event)
        for source in self.sources if all(worker.sources for worker in self._workers) else ():
            if self._states[source.name] != (source.state, source.reason):
                self._states[source.name] = (source.state, source.reason)
                self._events.append({"event": "source", "name": source.name, "state": source.state, "reason": source.reason})

    def cursor(self) -> Cursor:
        """Goes on after the batch that came last."""
        self._hear_until(lambda worker: worker.cursor)
        return merge_cursors([worker.cursor for worker in self._workers if worker.cursor])

    @property
    def exhausted(self) -> bool:
        """Whether no lane of this rank has anything left to read."""
        return all(_has_ended(state) for state in self.cursor()["lanes"].values())

    @property
    def sources(self) -> list[SourceState]:
        """The state of each source, over all loaders. Safe from another thread."""
        known = [worker.sources for worker in list(self._workers) if worker.sources]
        if not known:
            return [SourceState(source.name, "reading", "", None, 0, 0, 0) for source in self._job.data.sources]
        return [_together(states) for states in zip(*known, strict=True)]

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call, for the log. Safe from another thread."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def stop(self) -> None:
        """End any waiting, from whatever thread; the next batch fails with Closed."""
        self._closing.set()

    def close(self) -> None:
        """End the processes. Safe to call twice."""
        self.stop()
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.bury(LONGEST_CLOSE)


def _together(states: tuple[SourceState, ...]) -> SourceState:
    said = min(states, key=lambda state: STATES.index(state.state))
    documents, tokens = sum(state.documents for state in states), sum(state.tokens for state in states)
    return replace(said, documents=documents, tokens=tokens, epoch=max(state.epoch for state in states))


def _has_ended(state: list[int]) -> bool:
    return state[1] == NOTHING and READING not in state[HEAD::WIDTH]


def _threads(count: int) -> int:
    """Threads of each tokenizer: the cores, shared among the loaders of all ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (count * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
