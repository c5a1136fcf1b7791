"""All sources of a mix, opened together and watched over: reached in parallel, retried in the background, told about."""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_sources.blocks import BlockCache
from data_sources.config import DataConfig, FilesSource, PastSource, PdfSource, TableSource
from data_sources.documents import Reader, SourcesFailed
from data_sources.feed import Feed, Rules
from data_sources.held_out import HeldOut
from data_sources.readers import open_reader


@dataclass(frozen=True)
class SourceState:
    """What the screen shows of a source. Counts are of the lanes that are read here, over the whole life of the cursor."""

    name: str
    state: str  # "reading", "waiting", "finished" or "given up"
    reason: str
    next_try: float | None  # seconds since 1970
    documents: int
    tokens: int
    epoch: int  # of the lane that is furthest, from 0


LOCAL = (FilesSource, PdfSource)
LONGEST_CLOSE = 2.0  # seconds
LAST_GLANCE = 0.3  # seconds for threads that only have to hear that they are to stop


class Sources:
    """The feeds of a preset's sources, in their order. To be `reached` before they are read."""

    def __init__(self, data: DataConfig, seed: int, part: str, open_one: Callable[..., Reader] = open_reader, titled: bool = False):
        """titled: documents tell their titles."""
        self.held_out = HeldOut()
        self._events: deque[dict[str, Any]] = deque()
        self.closing = threading.Event()
        cache = BlockCache()
        self.feeds = [
            Feed(source.name, number, open_one(source, data.cache, titled), _rules(source, data, seed, part), cache, self.held_out, self._events.append)
            for number, source in enumerate(data.sources)
        ]
        for feed in self.feeds:
            feed.closing = self.closing
        self._watcher: threading.Thread | None = None
        self._errors: list[BaseException] = []
        # No pool: the interpreter would wait for its threads at the end.
        self._reaching = [threading.Thread(target=self._reach, args=[feed], name="reach", daemon=True) for feed in self.feeds]
        self._begun = False

    def reached(self, seconds: float) -> bool:
        """Whether all have been asked for the first time, at the latest after `seconds`. The first call begins it, with all at once: three
        that are dead cost three seconds, not nine."""
        for thread in () if self._begun else self._reaching:
            thread.start()
        self._begun = True
        until = time.monotonic() + seconds
        for thread in self._reaching:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._reaching):
            return False
        if self._errors:
            raise self._errors[0]
        return True

    def _reach(self, feed: Feed) -> None:
        try:
            feed.reach()
        except BaseException as error:  # handed to the one who asks
            self._errors.append(error)

    def watch(self) -> None:
        """See that sources which wait are asked again when their time has come."""
        waiting = any(feed.state == "waiting" for feed in self.feeds)
        if waiting and (self._watcher is None or not self._watcher.is_alive()):
            self._watcher = threading.Thread(target=self._retry_waiting, daemon=True)
            self._watcher.start()
            atexit.register(self.close)  # a thread inside compiled code when the interpreter ends would abort the process

    def _retry_waiting(self) -> None:
        while waiting := [feed for feed in self.feeds if feed.state == "waiting"]:
            first = min(waiting, key=lambda feed: feed.next_try or 0.0)
            if self.closing.wait(max(0.05, min(1.0, (first.next_try or 0.0) - time.time()))):
                return
            if time.time() >= (first.next_try or 0.0):
                first.retry()

    def require_one(self) -> None:
        """SourcesFailed when none is being read or finished. What is read again of the past is no reason to go on."""
        present = [feed for feed in self.feeds if feed.rules.holds_out]
        if all(feed.state in ("waiting", "given up") for feed in present):
            raise SourcesFailed({feed.name: feed.reason for feed in present})

    def be_patient(self, patient: bool) -> None:
        """Whether a source that may come back is waited for however long, and not set aside."""
        for feed in self.feeds:
            feed.patient = patient

    def tell(self, event: dict[str, Any]) -> None:
        """Add an event for the log."""
        self._events.append(event)

    def take_events(self) -> list[dict[str, Any]]:
        """The events since the last call. Safe from another thread."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def stop(self) -> None:
        """End any waiting, from whatever thread."""
        self.closing.set()

    def close(self) -> None:
        """End the threads and let go of the readers. Bounded in time: a thread inside a network wait is left behind, and its reader."""
        self.stop()
        if self._watcher is not None:
            self._watcher.join(LONGEST_CLOSE)
        until = time.monotonic() + LAST_GLANCE
        for thread, feed in zip(self._reaching, self.feeds, strict=True):
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
            if not thread.is_alive():
                feed.close()
            elif feed.rules.local:  # inside compiled code when the interpreter ends, it would abort the process
                atexit.register(thread.join, LONGEST_CLOSE)
        atexit.unregister(self.close)


def _rules(source: Any, data: DataConfig, seed: int, part: str) -> Rules:
    past = isinstance(source, PastSource)
    prose = not past and (not isinstance(source, TableSource) or source.is_prose)
    return Rules(
        seed=seed,
        shuffle=data.shuffle,
        repeat=source.repeat and part == "train",
        part=part,
        shortest=max(1, data.min_text_length if prose else 1),
        local=isinstance(source, LOCAL),
        holds_out=not past,
    )
