"""TensorBoard: losses, pace and held-out measures as curves over the tokens of the model's whole life.

A run that goes on from a snapshot takes some steps again. The new file of events tells from which place on it holds, and TensorBoard
leaves out what older files say past that place; so it is, too, when the model went back to an earlier snapshot.
"""

import contextlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lm.training.snapshots import SnapshotError

FOLDER = "tensorboard"
STEP = ("loss", "learning_rate", "tokens_per_second", "gradient_norm")
HELD_OUT = ("cross_entropy", "perplexity", "bits_per_byte")


def tensorboard_missing() -> str:
    """What to do when the package is not there; empty when it is."""
    return "" if find_spec("tensorboard") else "train.tensorboard is on, but the package tensorboard is not installed: pip install tensorboard"


class TensorBoard:
    """An observer that writes curves into tensorboard/ of `folder`, from `life_tokens` on. `say` hears when that has come to an end.

    SnapshotError, one line, when nothing can be written there.
    """

    def __init__(self, folder: Path, life_tokens: int, say: Callable[[str], None]) -> None:
        from accelerate.tracking import TensorBoardTracker  # imports TensorBoard, which is not always there

        self._place, self._life_tokens, self._say = folder / FOLDER, life_tokens, say
        self._tracker: TensorBoardTracker | None = TensorBoardTracker(FOLDER, folder, purge_step=life_tokens + 1)
        try:
            self._tracker.start()
        except OSError as error:
            raise SnapshotError(f"{self._place}: can't be written: {error.strerror or error}") from None

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._life_tokens = event.get("life_tokens", self._life_tokens)
        values = curves(event)
        if self._tracker is None or not values:
            return
        try:
            self._tracker.log(values, step=self._life_tokens)
        except OSError as error:  # a full disk must not end a run
            self.close()
            self._say(f"{self._place}: can't be written any more: {error.strerror or error}; training goes on")

    def close(self) -> None:
        tracker, self._tracker = self._tracker, None
        with contextlib.suppress(OSError):
            if tracker is not None:
                tracker.finish()


def curves(event: Mapping[str, Any]) -> dict[str, float]:
    """The points that `event` adds, by the name of their curve. Brief evaluations read less text and have curves of their own, and so have those of a
    model that saw both sides of each word."""
    if event["event"] == "step":
        losses = {f"losses/{name}": loss for name, loss in event["losses"].items()}
        sources = {f"sources/{name}": told["loss"] for name, told in event["sources"].items() if told["loss"] is not None}
        return {f"step/{name}": event[name] for name in STEP} | losses | sources
    if event["event"] == "evaluation":
        kind = "pseudo_" * event.get("pseudo", False) + "held_out" + "_brief" * event["brief"]
        by_source = {f"{kind}/{measure}/{name}": told[measure] for name, told in event["sources"].items() for measure in HELD_OUT}
        denoisers = {f"{kind}/denoisers/{name}": loss for name, loss in event.get("denoisers", {}).items()}
        weights = {f"{kind}/without_average/{measure}": event["without_average"][measure] for measure in HELD_OUT if "without_average" in event}
        return {f"{kind}/{measure}": event[measure] for measure in HELD_OUT} | weights | by_source | denoisers
    return {}
