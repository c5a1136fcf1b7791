"""Ctrl-C while a run goes on: once asks it to stop, twice within three seconds leaves at once.

A signal is seen by a thread of its own, so that the second one counts also while the main thread is deep in a library.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

TWICE_WITHIN = 3.0  # seconds
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal was closed
STATUS = 130


class Interrupts:
    """A context manager. `asked()`: stop at the next good moment. `ends`: the process itself was asked to end, not only the run."""

    def __init__(self, on_asked: Callable[[], None], on_leaving: Callable[[], None]) -> None:
        self.ends = False
        self._asked = threading.Event()
        self._on_asked, self._on_leaving = on_asked, on_leaving
        self._last = float("-inf")
        self._before: dict[signal.Signals, object] = {}

    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Stop, without a key or a signal."""
        self._asked.set()

    def pressed(self) -> None:
        """Ctrl-C that came as a key."""
        self._count(signal.SIGINT, time.monotonic())

    def __enter__(self) -> "Interrupts":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = {number: signal.signal(number, _seen_elsewhere) for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writing)
        self._watcher.join()
        os.close(self._reading)

    def _watch(self) -> None:
        while numbers := os.read(self._reading, 64):
            for number in numbers:
                self._count(number, time.monotonic())

    def _count(self, number: int, now: float) -> None:
        twice = number == signal.SIGINT and now - self._last < TWICE_WITHIN
        self.ends |= number != signal.SIGINT
        self._last = now if number == signal.SIGINT else self._last
        if twice:
            with contextlib.suppress(Exception):
                self._on_leaving()
            os._exit(STATUS)
        self._asked.set()
        self._on_asked()


def _seen_elsewhere(number: int, frame: FrameType | None) -> None:
    """Signals arrive through the pipe; this only keeps Python from raising KeyboardInterrupt."""
