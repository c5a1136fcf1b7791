"""A loader process: reads for some lanes of a rank, and sends what it read to `Workers`, a few batches ahead of what is asked for.

Its arguments are the descriptor of the line to its parent and the parent's number. It ends when the parent closes the line, or is
gone, however it went. Torch is not imported here: a loader takes a fraction of a second to start, and little memory.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from data_sources.cursor import Cursor
from data_sources.documents import SourcesFailed
from data_sources.held_out import Held
from data_sources.packed import Rows
from data_sources.prefetch import Prefetch
from data_sources.reading import Job, Reading
from data_sources.recall import MemoryStates, Recall, State
from data_sources.sources import SourceState
from data_sources.weights import WeightSchedule

AHEAD = 3  # batches
NEWS_SECONDS = 0.5  # between looks at the sources while a batch is long in coming
GRACE = 2.0  # seconds for closing files
PR_SET_PDEATHSIG = 1


class Task(NamedTuple):
    """The first word to a loader."""

    job: Job
    tokenizer: Any
    schedule: tuple[tuple[float, ...], int] | None  # the base weights, and rows of an interval
    recall: Recall | None
    states: tuple[int, dict[int, State]] | None  # their lag, and those that are known


class StateAt(NamedTuple):
    """A state of the memory, announced."""

    row: int
    state: State


class Word(NamedTuple):
    """What a loader says: a batch, or news only."""

    batch: tuple[Rows | None, Cursor] | None = None  # the first one has no rows: its cursor is where the loader begins
    sources: Sequence[SourceState] = ()
    events: Sequence[dict[str, Any]] = ()
    held_out: Sequence[tuple[str, Held]] = ()
    failure: tuple[str, Any, str] | None = None  # kind, message or reasons by source, and the whole story


@dataclass(frozen=True)
class BareTokenizer:
    """What the encoder wants of a transformers tokenizer, without transformers."""

    text: str
    bos_token: str
    eos_token: str
    pad_token: str
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    is_fast: bool = True

    @property
    def backend_tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.text)


def bare(tokenizer: Any) -> Any:
    """A tokenizer that travels lightly; a slow one, which `tokenizers` can't hold, as it is."""
    names = [f"{name}_token{end}" for end in ("", "_id") for name in ("bos", "eos", "pad")]
    return BareTokenizer(tokenizer.backend_tokenizer.to_str(), *(getattr(tokenizer, name) for name in names)) if tokenizer.is_fast else tokenizer


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means, the parent decides
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    with contextlib.suppress(OSError, EOFError):
        _die_with(parent)
        _serve(connection, parent)
    os._exit(0)  # all is closed, and nothing inside compiled code may abort on the way out


def _serve(connection: Connection, parent: int) -> None:
    task: Task = connection.recv()
    schedule = WeightSchedule(*task.schedule) if task.schedule else None
    closing = threading.Event()
    states = MemoryStates(*task.states) if task.states else None
    threading.Thread(target=_listen, args=(connection, parent, schedule, states, closing), daemon=True).start()
    try:
        reading = Reading(task.job, task.tokenizer, schedule, task.recall, states)
        threading.Thread(target=lambda: closing.wait() and reading.stop(), daemon=True).start()
        while not reading.reached(NEWS_SECONDS):
            if closing.is_set():
                return
    except Exception as error:
        return connection.send(Word(failure=_failure(error)))
    connection.send(_word(reading, (None, reading.cursor())))
    with Prefetch(reading, AHEAD) as ahead:
        while True:
            while not ahead.wait(NEWS_SECONDS):
                connection.send(_word(reading))
            try:
                batch = next(ahead)
            except Exception as error:
                return connection.send(_word(reading)._replace(failure=_failure(error)))
            connection.send(_word(reading, batch))


def _word(reading: Reading, batch: tuple[Rows | None, Cursor] | None = None) -> Word:
    return Word(batch, reading.sources, reading.events(), reading.held_out.take_new())


def _failure(error: BaseException) -> tuple[str, Any, str]:
    story = "".join(traceback.format_exception(error))
    if isinstance(error, SourcesFailed):
        return "SourcesFailed", error.reasons, story
    kind = "ValueError" if isinstance(error, ValueError) else "RuntimeError"
    text = str(error) if kind == "ValueError" else f"{type(error).__name__}: {error}"
    return kind, " ".join(text.split()) or type(error).__name__, story


def _listen(connection: Connection, parent: int, schedule: WeightSchedule | None, states: MemoryStates | None, closing: threading.Event) -> None:
    """Hear announcements until the line is closed or the parent is gone; then end the process, whatever its other threads do."""
    with contextlib.suppress(OSError, EOFError):
        while os.getppid() == parent:
            if connection.poll(1.0):
                number, settled = word = connection.recv()
                announced = states if isinstance(word, StateAt) else schedule
                assert announced is not None
                announced.announce(number, settled)
    closing.set()
    time.sleep(GRACE)
    os._exit(0)


def _die_with(parent: int) -> None:
    """Linux ends this process along with the thread that started it. Only a main thread lives as long as its process."""
    if sys.platform == "linux" and sys.argv[3:] == ["main"]:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
