"""The person's terminal while something long goes on: libraries print into the log, keys are not echoed, and all is put back after."""

import contextlib
import logging
import os
import sys
import termios
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

CHECKPOINTS = Path("checkpoints")
LOG = CHECKPOINTS / "perennial.log"
LEAVE_SCREEN = "\x1b[?1049l\x1b[?25h\x1b[0m"


def is_terminal() -> bool:
    """Whether a person can be asked: both ends are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


@contextlib.contextmanager
def diverted() -> Iterator[TextIO]:
    """Inside, whatever is printed by anyone goes to the log. What comes is the one way to the person's own screen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    screen = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
    log = _open_log()
    _point(1, log)
    _point(2, log)
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


def _open_log() -> int:
    """The log to append to; nowhere when it can't be opened, since a run must not fail for it."""
    try:
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        return os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _point(number: int, file: int) -> None:
    os.dup2(file, number)


def log_traceback(error: BaseException) -> None:
    """The whole of an error for the log; a person gets one line."""
    logging.getLogger("perennial").error("%s", "".join(traceback.format_exception(error)))


def in_a_line(error: BaseException) -> str:
    """An unforeseen error for a person: what it says, and where the rest is."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if said else ''}{said[:200]} (the whole story is in {LOG})"


@contextlib.contextmanager
def silent_keys() -> Iterator[None]:
    """Inside, keys are neither echoed nor kept for later. Ctrl-C works as ever."""
    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    silent = termios.tcgetattr(0)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
