"""The trainer's end of `pdf_worker`: asks for pages, waits no longer than is fair, and starts a new worker where one was lost.

A subprocess rather than multiprocessing: loader workers are daemons, which may have no children there, and `spawn` would import
main.py again. A worker is reused from file to file, and has a session of its own, so that Ctrl-C in the terminal costs no page.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
MOST_LOST = 3  # workers that a request may cost, before the rest of its pages is given up
PATIENCE = 6  # wall seconds for each second of processor time, before a worker that waits for a dead disk is ended


class Limits(NamedTuple):
    """What a PDF may cost: processor seconds for opening it and for each page, and bytes of address space."""

    seconds: int = 20
    memory: int = 1 << 30


LIMITS = Limits()


class Refused(Exception):
    """A file gives no page at all. The message is the end of a sentence that begins with its name."""


class Page(NamedTuple):
    """The text of a page, or why there is none."""

    text: str
    fault: str | None = None


class Extract(NamedTuple):
    """How many pages a file has, and those asked for; fewer where too many workers were lost."""

    count: int
    pages: list[Page]


class Lost(Exception):
    """The worker ended before it answered. `guilty`: because of what it read, and it would again."""

    def __init__(self, reason: str, guilty: bool):
        super().__init__(reason)
        self.guilty = guilty


class PdfProcess:
    """Reads pages in another process. For one thread at a time."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._worker: subprocess.Popen[str] | None = None

    def read(self, path: Path, first: int, last: int) -> Extract:
        """Pages `first` to `last` (not included; none when they are equal). Raises Refused."""
        try:
            return self._read(path, first, last)
        except Refused:
            raise
        except BaseException:  # an interrupt, say: answers would wait in the pipe for the next question
            self.close()
            raise

    def title(self, path: Path) -> str:
        """The beginning of the title in a file's description; empty where there is none, or it can't be had."""
        try:
            self._ask({"title_of": str(path), **self._limits._asdict()})
            return self._answer().get("title", "")
        except Lost:
            self.close()
            return ""
        except BaseException:  # as in `read`
            self.close()
            raise

    def close(self) -> None:
        """End the worker. The next read starts another."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            pipe.close()

    def _read(self, path: Path, first: int, last: int) -> Extract:
        count, pages, reason = 0, [], ""
        for lost in range(MOST_LOST):
            try:
                for answer in self._answers(path, first + len(pages), last):
                    if "pages" in answer:
                        count = answer["pages"]
                    else:
                        pages.append(Page(answer.get("text", ""), answer.get("fault")))
                return Extract(count, pages)
            except Lost as loss:
                reason = str(loss)
                self.close()
                if not loss.guilty and lost == 0:
                    continue  # killed from outside, once: the same again
                if count == 0:
                    break
                pages.append(Page("", reason))
        if count == 0:
            raise Refused(reason)
        return Extract(count, pages)

    def _answers(self, path: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
        self._ask({"path": str(path), "first": first, "last": last, **self._limits._asdict()})
        head = self._answer()
        if "refused" in head:
            raise Refused(head["refused"])
        yield head
        for _ in range(first, min(last, head["pages"])):
            yield self._answer()

    def _ask(self, request: dict[str, Any]) -> None:
        if self._worker is None or self._worker.poll() is not None:  # of a fork's parent, too, `poll` says that it is gone: it is no child here
            self.close()
            self._worker = _started()
        try:
            self._worker.stdin.write(json.dumps(request) + "\n")
            self._worker.stdin.flush()
        except BrokenPipeError:
            raise Lost("lost its reader", guilty=False) from None

    def _answer(self) -> dict[str, Any]:
        patience = PATIENCE * self._limits.seconds
        alarm = threading.Timer(patience, self._worker.kill)
        started = time.monotonic()
        alarm.start()
        line = self._worker.stdout.readline()
        alarm.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        raise self._loss(self._worker.wait(), late=time.monotonic() - started >= patience)

    def _loss(self, status: int, late: bool) -> Lost:
        ended_by = signal.Signals(-status).name if status < 0 else ""
        if late or ended_by == "SIGXCPU":
            return Lost(f"takes more than {self._limits.seconds} s", guilty=True)
        if ended_by in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
            return Lost("lost its reader twice", guilty=False)
        return Lost("brings its reader down", guilty=True)


def _started() -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "data_sources.pdf_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
