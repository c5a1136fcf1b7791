"""Saving beside training: the run is copied to host memory, and a thread writes the copy while the next steps are taken."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lm.training.snapshots import TENSORS, Snapshot, Snapshots


class Saved(NamedTuple):
    """A snapshot that was written."""

    tokens: int  # of the run
    stall: float  # seconds that training waited
    seconds: float  # from the beginning until it was on disk
    bytes: int


class Saver:
    """Writes snapshots one at a time. What goes wrong in the thread is raised by the call that asks for its outcome."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        self._error: BaseException | None = None

    def begin(self, snapshot: Snapshot, began: float, first: Callable[[Snapshot], None], then: Callable[[], None], amends: bool = False) -> None:
        """Copy `snapshot`, for which training has waited since `began`, and write it in the background. There `first` gets the copy before,
        to write what it names and to note that in it, and `then` is called once it is on disk. The one before must have been asked for.

        amends: it takes the place of the current one, whose run has not moved since.
        """
        own = copied(snapshot)
        stall = time.monotonic() - began
        # No daemon: Python then waits for the thread before it ends, and the file is whole.
        self._thread = threading.Thread(target=self._write, name="saver", args=(own, first, then, began, stall, amends))
        self._thread.start()

    def _write(self, own: Snapshot, first: Callable[[Snapshot], None], then: Callable[[], None], began: float, stall: float, amends: bool) -> None:
        try:
            first(own)
            path = self.snapshots.save(own, amends)
            then()
            self._saved = Saved(own.run["tokens"], stall, time.monotonic() - began, path.stat().st_size)
        except BaseException as error:  # handed to the one who asks
            self._error = error

    def outcome(self, wait: bool) -> Saved | None:
        """What became of the snapshot under way, told once; None when there is none, or when it is not done and `wait` is false.

        SnapshotError when it could not be written.
        """
        if self._thread is None or (not wait and self._thread.is_alive()):
            return None
        self._thread.join()
        saved, error = self._saved, self._error
        self._thread = self._saved = self._error = None
        if error is not None:
            raise error
        return saved


def copied(snapshot: Snapshot) -> Snapshot:
    """The same with tensors of its own in host memory, so that training may go on. All else must not be changed by the one who gave it."""
    return replace(snapshot, **{part: _on_host(getattr(snapshot, part)) for part in TENSORS})


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
