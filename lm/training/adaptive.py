"""Adaptive source weights: the loss of each source over an interval of rows decides how much of it is read two intervals later.

The measuring is here, since only training knows losses; data_sources/weights.py keeps the schedule that the stream reads by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data_sources.config import DataConfig
from data_sources.weights import WeightSchedule, adapted_weights, base_weights, smoothed_losses
from lm.preset.switches import AuxiliaryConfig

LAG = 2  # intervals between measuring and use, so that what is read ahead is already settled


class AdaptiveSources:
    """Sums of the interval under way, smoothed losses of those before, and the schedule they are announced to.

    The same on every rank, since losses are summed over ranks before they come here.
    """

    def __init__(self, config: AuxiliaryConfig, data: DataConfig, step_rows: int, seq_length: int, next_row: int, state: Mapping[str, Any] | None) -> None:
        """`step_rows`: rows of an optimizer step over all ranks; `next_row`: where the data goes on; `state`: of a snapshot."""
        self.config, self.base = config, base_weights(data)
        rows = max(1, round(config.adaptive_interval_tokens / seq_length / step_rows)) * step_rows
        self.schedule = WeightSchedule(self.base, rows)
        self.names = [source.name for source in data.sources]
        self.interval = next_row // rows
        self.smoothed: Sequence[float | None] = [None] * len(self.names)
        self._begin_interval()
        same = state is not None and (state["names"], state["interval_rows"], tuple(state["base"])) == (self.names, rows, self.base)
        ahead = {int(interval): tuple(weights) for interval, weights in state["ahead"].items()} if same else {}
        if same:
            self.smoothed, self.nats, self.read = state["smoothed"], state["nats"], state["read"]
        for interval in (self.interval, self.interval + 1):
            self.schedule.announce(interval, ahead.get(interval, self.base))

    def _begin_interval(self) -> None:
        self.nats, self.read = [0.0] * len(self.names), [0.0] * len(self.names)

    def measured(self, nats: Sequence[float], read: Sequence[float], next_row: int) -> bool:
        """Count a step: nats and tokens by source over all ranks, and the row that comes after it. Whether an interval ended with it.

        Every step must come here, also one that taught nothing: the stream waits for what is announced at the ends of intervals.
        """
        self.nats = [sum(pair) for pair in zip(self.nats, nats, strict=True)]
        self.read = [sum(pair) for pair in zip(self.read, read, strict=True)]
        before = self.interval
        while self.interval < next_row // self.schedule.interval_rows:
            self._end_interval()
        return self.interval > before

    def _end_interval(self) -> None:
        losses = [total / count if count else None for total, count in zip(self.nats, self.read, strict=True)]
        self.smoothed = smoothed_losses(self.smoothed, losses, self.config.adaptive_smoothing)
        weights = adapted_weights(self.base, self.smoothed, self.config.adaptive_min_weight, self.config.adaptive_max_weight)
        self.schedule.announce(self.interval + LAG, weights)
        self.interval += 1
        self._begin_interval()

    @property
    def weights(self) -> dict[str, float]:
        """The weights in force where training stands, by source."""
        return dict(zip(self.names, self.schedule.announced()[self.interval], strict=True))

    def state(self) -> dict[str, Any]:
        """What a snapshot must hold of it."""
        ahead = {str(interval): list(weights) for interval, weights in self.schedule.announced().items() if interval >= self.interval}
        about = {"names": self.names, "base": list(self.base), "interval_rows": self.schedule.interval_rows, "smoothed": list(self.smoothed)}
        return about | {"nats": self.nats, "read": self.read, "ahead": ahead}
