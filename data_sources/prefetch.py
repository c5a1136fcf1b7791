"""Batches prepared ahead in one background thread.

The cursor that counts is the one that comes with the batch that was trained on, so running ahead loses and repeats nothing.
"""

import atexit
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

LONGEST_CLOSE = 5.0  # seconds: a thread inside a network wait is left behind
GLANCE = 0.1


class Prefetch:
    """Runs `stream` up to `depth` items ahead and hands its items out in order, each as `made` makes it of them, in the thread too. An exception
    comes in the place of its item."""

    def __init__(self, stream: Any, depth: int = 2, made: Callable[[Any], Any] = lambda item: item):
        self._stream, self._made = stream, made
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(1, depth))
        self._closing = threading.Event()
        self._over: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()
        # A thread that is inside compiled code when the interpreter ends would abort the process.
        atexit.register(self.close)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._put((self._made(next(self._stream)), None))
        except BaseException as error:  # handed to the one who asks next
            self._put((None, error))

    def _put(self, item: tuple[Any, BaseException | None]) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(item, timeout=GLANCE)
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._over is not None:
            raise self._over
        if self._closing.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self._over = error
            raise error
        return item

    def wait(self, seconds: float) -> bool:
        """Whether the next item is there, at the latest after `seconds`."""
        with self._ready.not_empty:
            return self._over is not None or self._ready.not_empty.wait_for(lambda: bool(self._ready.queue), seconds)

    def peek(self) -> list[Any]:
        """The items that are ready now, in order. They stay."""
        with self._ready.mutex:
            return [item for item, error in self._ready.queue if error is None]

    def close(self) -> None:
        """End the thread, then close the stream. Returns within seconds whatever the thread waits for. Safe to call twice."""
        self._closing.set()
        self._stream.stop()
        self._thread.join(LONGEST_CLOSE)
        if not self._thread.is_alive():  # a file must not be closed while it is read
            self._stream.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
