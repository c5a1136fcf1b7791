"""One of the 48 lanes: its own order of documents, its own rows.

    place in each source -> choose a source -> a document's tokens -> rows of T positions

Nothing here depends on other lanes, so the rows of a lane are the same for any number of processes. What a lane remembers is a
few integers: a document under way is a place and an offset, never its tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data_sources.encoder import Encoder
from data_sources.feed import Aside, Feed, Found, Place
from data_sources.order import draw

READING, FINISHED, ASIDE = 0, 1, 2
NOTHING = -1
HEAD_START = 500  # tokens, about a document
HEAD = 2  # integers of a lane's cursor before those of its sources
WIDTH = 9  # integers for each source

State = list[int]  # [turn, under way, then for each source: status, epoch, shard, block, taken, offset, documents, tokens, credit]


@dataclass
class Standing:
    """How far a lane has come in one source."""

    status: int = READING
    place: Place = field(default_factory=Place)
    offset: int = 0  # positions of the document at `place` that are in rows already
    documents: int = 0
    tokens: int = 0
    credit: int = 0  # tokens it is taken to have had at the start, and while it was set aside, so that it need not catch up

    def numbers(self) -> list[int]:
        return [self.status, *self.place, self.offset, self.documents, self.tokens, self.credit]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Standing":
        status, epoch, shard, block, taken, *rest = numbers
        return cls(status, Place(epoch, shard, block, taken), *rest)


class RowView(NamedTuple):
    """One row of a batch, each (T,), written in place."""

    tokens: np.ndarray
    targets: np.ndarray
    restart: np.ndarray
    source: np.ndarray


class Mix(NamedTuple):
    """How the preset mixes its sources."""

    strategy: str
    weights: tuple[float, ...]
    one_document_a_row: bool


class Lane:
    """Lane `number`. `state` is a cursor's list of integers, None for a fresh start."""

    def __init__(
        self, number: int, feeds: Sequence[Feed], mix: Mix, encoder: Encoder | None, moved: Callable[[int, int, str], None], state: State | None = None
    ):
        """`encoder` may be None where only texts are asked for. `moved(lane, source, what)` hears of "aside", "back" and "finished"."""
        self.number = number
        self._feeds, self._mix, self._encoder, self._moved = feeds, mix, encoder, moved
        width = len(feeds)
        # Lanes begin with different sources, else the first rows would all be of the first, and the next all of the second.
        self.turn, self._under_way = (number - 1) % width, NOTHING
        self.standings = [Standing(credit=_head_start(number, source)) for source in range(width)]
        if state is not None:
            self.turn, self._under_way = state[:HEAD]
            self.standings = [Standing.of(state[HEAD + WIDTH * s : HEAD + WIDTH * (s + 1)]) for s in range(width)]
        self._ids: np.ndarray | None = None  # of the document under way
        self._fresh = False  # whether its first position is still to be written

    def state(self) -> State:
        """The lane's cursor."""
        return [self.turn, self._under_way, *(number for standing in self.standings for number in standing.numbers())]

    @property
    def ended(self) -> bool:
        """Whether nothing is left that could be read now."""
        return self._under_way == NOTHING and all(standing.status != READING for standing in self.standings)

    def fill(self, row: RowView) -> int:
        """Fill a row from the left and return how many positions hold text: fewer than T only where the lane ends, or in a padded row."""
        self._take_back()
        self._pick_up()
        position, size = 0, len(row.tokens)
        while position < size and (self._ids is not None or self._begin()):
            position += self._copy(row, position)
            if self._mix.one_document_a_row:
                break
        return position

    def _copy(self, row: RowView, position: int) -> int:
        """Copy from the document under way what fits. Returns how much."""
        ids, standing = self._ids, self.standings[self._under_way]
        assert ids is not None
        offset = standing.offset
        size = min(len(row.tokens) - position, len(ids) - 1 - offset)
        to = slice(position, position + size)
        row.tokens[to] = ids[offset : offset + size]
        row.targets[to] = ids[offset + 1 : offset + size + 1]
        row.source[to] = self._under_way
        row.restart[position] |= self._fresh
        self._fresh = False
        standing.offset += size
        if standing.offset == len(ids) - 1:
            standing.place = standing.place._replace(taken=standing.place.taken + 1)
            standing.offset, self._under_way, self._ids = 0, NOTHING, None
        return size

    def _begin(self) -> bool:
        """Put the next document under way. False where no source has one."""
        while (source := self._choose()) is not None:
            if self._open(source):
                self.turn, self._under_way, self._fresh = source, source, True
                return True
        return False

    def _pick_up(self) -> None:
        """After a resume: go on in the document that was under way; where its source is gone, leave it for its return."""
        self._fresh = False
        if self._under_way != NOTHING and self._ids is None and not self._open(self._under_way):
            self._under_way = NOTHING

    def _open(self, source: int) -> bool:
        """Tokenise the next document of a source. False where there is none, for this lane or for now."""
        standing = self.standings[source]
        found = self._find(source)
        if found is None:
            return False
        assert self._encoder is not None
        ids = self._encoder.ids(self._feeds[source], found)
        if found.place != standing.place or standing.offset >= len(ids) - 1:
            standing.offset = 0
        if standing.offset == 0:
            standing.documents += 1
            standing.tokens += len(ids) - 1
        standing.place, self._ids = found.place, ids
        return True

    def _find(self, source: int) -> Found | None:
        """The next document of a source, or None, noted, where the source has none for this lane, or none for now."""
        try:
            found = self._feeds[source].find(self.number, self.standings[source].place)
        except Aside:
            self._move(source, ASIDE)
            return None
        if found is None:
            self._move(source, FINISHED)
        return found

    def next_text(self) -> str | None:
        """The lane's next document as text; for the mix its characters count in place of its tokens. None at the end."""
        while (source := self._choose()) is not None:
            found, standing = self._find(source), self.standings[source]
            if found is not None:
                self.turn = source
                standing.place = found.place._replace(taken=found.place.taken + 1)
                standing.documents += 1
                standing.tokens += len(found.text)
                return found.text
        return None

    def _take_back(self) -> None:
        """At the start of a row: sources that were set aside and can be read again come back where they were."""
        for source, standing in enumerate(self.standings):
            if standing.status == ASIDE and self._feeds[source].state in ("reading", "finished"):
                floor = min((self._lag(s) for s in self._living()), default=0.0)
                standing.credit += max(0, round(floor * self._mix.weights[source]) - standing.tokens - standing.credit)
                self._move(source, READING)

    def _move(self, source: int, status: int) -> None:
        self.standings[source].status = status
        self._moved(self.number, source, {READING: "back", FINISHED: "finished", ASIDE: "aside"}[status])

    def _living(self) -> list[int]:
        return [source for source, standing in enumerate(self.standings) if standing.status == READING]

    def _choose(self) -> int | None:
        living = self._living()
        return CHOICES[self._mix.strategy](self, living) if living else None

    def _lag(self, source: int) -> float:
        """Tokens drawn for each unit of weight, were half of the next document drawn too: the least lags most.

        The half keeps sources of long documents from being ahead by half a document all the time (Webster's way to share out seats).
        """
        standing = self.standings[source]
        half = standing.tokens / (2 * max(1, standing.documents))
        return (standing.tokens + standing.credit + half) / self._mix.weights[source]


def _head_start(lane: int, source: int) -> int:
    """Tokens that a source is taken to have had before a lane's first document: exponential draws, since divided by their weights
    the smallest of them falls to each source as often as its weight says."""
    return round(-HEAD_START * math.log((draw(lane, source, "head start") + 1) / 2**64))


def _in_turn(lane: Lane, living: list[int]) -> int:
    return next((source for source in living if source > lane.turn), living[0])


def _first(lane: Lane, living: list[int]) -> int:
    return living[0]


def _most_behind(lane: Lane, living: list[int]) -> int:
    return min(living, key=lane._lag)


CHOICES: dict[str, Callable[[Lane, list[int]], int]] = {"round_robin": _in_turn, "sequential": _first, "weighted": _most_behind}
