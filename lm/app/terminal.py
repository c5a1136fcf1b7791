"""The person's terminal while something long goes on: libraries print into the log, keys are not echoed, and all is put back after."""

import contextlib
import logging
import os
import select
import signal
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

CHECKPOINTS = Path("checkpoints")
LOG = CHECKPOINTS / "perennial.log"
CANT_DRAW = ("dumb", "unknown")
INTERRUPT, ESCAPE = b"\x03", b"\x1b"
LEAVE_SCREEN = "\x1b[?1049l\x1b[?25h\x1b[0m"


def is_terminal() -> bool:
    """Whether a person can be asked: both ends are a terminal, and it can be drawn on."""
    ends = sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
    return ends and os.environ.get("TERM") not in CANT_DRAW


@contextlib.contextmanager
def diverted() -> Iterator[TextIO]:
    """Inside, whatever is printed by anyone goes to the log. What comes is the one way to the person's own screen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    screen = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
    log = _open_log()
    os.dup2(log, 1)
    os.dup2(log, 2)
    handler = logging.StreamHandler(os.fdopen(log, "a", encoding="utf-8", errors="replace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield screen
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            screen.close()
        for number, was in enumerate(kept, start=1):
            os.dup2(was, number)
            os.close(was)
        handler.stream.close()


@contextlib.contextmanager
def quieted() -> Iterator[None]:
    """Inside, what libraries print to stderr, log and warn of goes to the log; stdout stays the person's."""
    sys.stderr.flush()
    kept, log = os.dup(2), _open_log()
    os.dup2(log, 2)
    os.close(log)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _open_log() -> int:
    """The log to append to; nowhere when it can't be opened, since a run must not fail for it."""
    try:
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        return os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def log_traceback(error: BaseException) -> None:
    """The whole of an error for the log; a person gets one line."""
    with contextlib.suppress(OSError):
        CHECKPOINTS.mkdir(exist_ok=True)
    with contextlib.suppress(OSError), LOG.open("a", encoding="utf-8", errors="replace") as file:
        file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + "".join(traceback.format_exception(error)))


def in_a_line(error: BaseException) -> str:
    """An unforeseen error for a person: what it says, and where the rest is."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if said else ''}{said[:200]} (the whole story is in {LOG})"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C waits: a large import that is broken off can't be taken up again by the same process."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Inside, keys are kept for later and not echoed."""
    before = termios.tcgetattr(0)
    _set_without(termios.ECHO)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def _set_without(flags: int) -> None:
    """Switch off `flags` of the terminal's local modes."""
    modes = termios.tcgetattr(0)
    modes[3] &= ~flags
    termios.tcsetattr(0, termios.TCSANOW, modes)


class Escape:
    """Inside, keys are not echoed, and those pressed are dropped but for Esc, which `pressed` tells of; Ctrl-C interrupts as ever."""

    def __enter__(self) -> "Escape":
        self._before = termios.tcgetattr(0)
        _set_without(termios.ECHO | termios.ICANON)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        termios.tcsetattr(0, termios.TCSANOW, self._before)

    def pressed(self) -> bool:
        """Whether Esc was the last key since the last look. Arrows and their like begin with it and go on."""
        keys = b""
        while select.select([0], [], [], 0)[0] and (more := os.read(0, 64)):
            keys += more
        return keys.endswith(ESCAPE)


class Keyboard:
    """The keyboard while nothing is typed: keys are neither echoed nor kept for later. A context manager.

    Only the echo is off, so that little is amiss in a terminal whose program was killed.
    """

    def __enter__(self) -> "Keyboard":
        self._before = termios.tcgetattr(0)
        _set_without(termios.ECHO)
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        if self._watcher:
            self._watcher.join()
        with contextlib.suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(0, termios.TCSAFLUSH, self._before)

    def put_back(self) -> None:
        """As it was, at once, when the process is about to end."""
        termios.tcsetattr(0, termios.TCSANOW, self._before)

    def take_interrupts(self, pressed: Callable[[], None]) -> None:
        """From now on Ctrl-C is a key like others and calls `pressed`. torchrun, which would get the signal, does not hear of it."""
        _set_without(termios.ICANON | termios.ISIG)
        self._watcher = threading.Thread(target=self._watch, args=(pressed,), name="keyboard", daemon=True)
        self._watcher.start()

    def _watch(self, pressed: Callable[[], None]) -> None:
        while not self._closing.is_set():
            if select.select([0], [], [], 0.1)[0]:
                for _ in range(os.read(0, 64).count(INTERRUPT)):
                    pressed()
