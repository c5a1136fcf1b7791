"""Weights of sources that follow training: measured over one interval of rows, in force from the next but one.

    losses of interval k -> smoothed -> weights of interval k + 2 -> the stream, when it comes there

The fixed lag keeps reading ahead exact: what is read in an interval is settled before anything of the interval before it is known.
"""

import math
import threading
from collections.abc import Sequence

from data_sources.config import DataConfig
from data_sources.feed import Closed

GLANCE = 0.1  # seconds
LEAST = 1e-9  # share of a source: a weight divides

Loss = float | None  # nats a token; None where nothing was read


def base_weights(data: DataConfig) -> tuple[float, ...]:
    """One weight for each source, adding up to one: the preset's for "weighted", else equal ones."""
    return data.weights if data.mix_strategy == "weighted" else (1 / len(data.sources),) * len(data.sources)


def smoothed_losses(old: Sequence[Loss] | None, new: Sequence[Loss], smoothing: float) -> tuple[Loss, ...]:
    """smoothing * old + (1 - smoothing) * new for each source. One that was not read keeps what it had, one read first has the new."""
    return tuple(_smoothed(before, now, smoothing) for before, now in zip(old or [None] * len(new), new, strict=True))


def _smoothed(old: Loss, new: Loss, smoothing: float) -> Loss:
    if new is None or not math.isfinite(new) or new < 0:
        return old
    return new if old is None else smoothing * old + (1 - smoothing) * new


def adapted_weights(base: Sequence[float], smoothed: Sequence[Loss], lowest: float, highest: float) -> tuple[float, ...]:
    """Base weights times each source's loss over the mean of all, kept between `lowest` and `highest`; adding up to one, none zero.

    A source whose loss is not known yet has factor 1.
    """
    known = [loss for loss in smoothed if loss is not None]
    mean = sum(known) / len(known) if known else 0.0
    factors = [1.0 if loss is None or not mean else min(max(loss / mean, lowest), highest) for loss in smoothed]
    raw = [weight / sum(base) * factor for weight, factor in zip(base, factors, strict=True)]
    least = [max(weight / sum(raw), LEAST) for weight in raw]
    return tuple(weight / sum(least) for weight in least)


class WeightSchedule:
    """The weights in force, interval by interval. Announced by the one who trains, asked for by the one who reads, from any threads.

    `base` is in force in intervals 0 and 1; an interval is `interval_rows` rows of the whole order of the data. Who resumes in
    interval k announces k + 1 again: it was measured before the stop. Those of k travel in the cursor.
    """

    def __init__(self, base: Sequence[float], interval_rows: int):
        if interval_rows < 1:
            raise ValueError(f"interval_rows {interval_rows} must be at least 1")
        self.interval_rows = interval_rows
        self._known = {0: _checked(base), 1: _checked(base)}
        self._news = threading.Condition()

    @property
    def sources(self) -> int:
        """How many sources the weights are for."""
        return len(self._known[0])

    def announce(self, interval: int, weights: Sequence[float]) -> None:
        """Settle the weights of an interval. ValueError where they were settled before as others, or can't be weights."""
        with self._news:
            settled = self._known.setdefault(interval, _checked(weights))
            if settled != tuple(weights):
                raise ValueError(f"the weights of interval {interval} are settled already")
            self._news.notify_all()

    def of(self, interval: int, closing: threading.Event | None = None) -> tuple[float, ...]:
        """The weights of an interval, waited for until they are announced. Closed when `closing` is set first."""
        with self._news:
            while interval not in self._known:
                if closing is not None and closing.is_set():
                    raise Closed
                self._news.wait(GLANCE)
            return self._known[interval]

    def announced(self) -> dict[int, tuple[float, ...]]:
        """All that is settled until now."""
        with self._news:
            return dict(self._known)


def _checked(weights: Sequence[float]) -> tuple[float, ...]:
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive numbers, not {list(weights)}")
    return tuple(map(float, weights))
