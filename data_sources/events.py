"""When sources were set aside and when they came back: beside the data and the seed, all that decides what is read.

    [row, source, "aside" or "back", rank, world size]

From that row on, the lanes L with L mod world size = rank read without the source, or with it again. What the clock decided once
stands in the cursor, and a replay obeys it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data_sources.order import LANES

ASIDE, BACK = "aside", "back"
EVENTS_KEPT = 128


class Event(NamedTuple):
    """A source leaves some lanes, or comes back to them, before `row`."""

    row: int
    source: str
    what: str
    rank: int
    world_size: int

    def covers(self, lane: int) -> bool:
        return lane % self.world_size == self.rank


def united(events: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """The newest EVENTS_KEPT, sorted, each once; those that several ranks had at the same row become one."""
    parts: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for event in events:
        parts.setdefault(tuple(event[:3]), set()).add(tuple(event[3:]))
    return sorted([*moved, *part] for moved, ranks in parts.items() for part in _fewest(ranks))[-EVENTS_KEPT:]


def _fewest(parts: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """The same lanes in fewer (rank, world size): 0 and 2 of 4 are 0 of 2. () is of an older program, whose lanes moved each for itself."""
    for world_size in range(LANES, 1, -1):
        for ways in (2, 3):
            coarse = world_size // ways
            for rank in range(coarse if world_size % ways == 0 else 0):
                fine = {(rank + way * coarse, world_size) for way in range(ways)}
                if fine <= parts:
                    parts = (parts - fine) | {(rank, coarse)}
    return parts


class Record:
    """The events that a later cursor of the same run tells of, from the row on where it is read again.

    ValueError, in one line, where it can't tell all of them.
    """

    def __init__(self, later: Mapping[str, Any], first_row: int):
        self.until: int = later["next_row"]
        if self.until < first_row:
            raise ValueError(f"the cursor to replay ends at row {self.until}, before row {first_row}, where reading goes on")
        events = later["events"]
        if len(events) >= EVENTS_KEPT and events[0][0] >= first_row:
            raise ValueError(f"the cursor to replay has lost its events before row {events[0][0]}; replay from a cursor after that row")
        known = [event for event in events if event[0] >= first_row]
        if any(len(event) != len(Event._fields) for event in known):
            raise ValueError("the cursor to replay is of an older program, which did not note enough for a replay")
        self._events = [Event(*event) for event in known]

    def between(self, first: int, stop: int) -> list[Event]:
        """The events from row `first` up to `stop`, which is not included."""
        return [event for event in self._events if first <= event.row < stop]


def in_order(events: Iterable[Event], names: Sequence[str]) -> list[Event]:
    """As a lane obeys them: by row, there first what leaves, then what comes back, each in the order of the sources."""
    return sorted(events, key=lambda event: (event.row, event.what, names.index(event.source)))
