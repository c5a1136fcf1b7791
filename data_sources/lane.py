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

from data_sources.blocks import Key
from data_sources.chunks import Stretch
from data_sources.encoder import Encoder, Tokens
from data_sources.feed import Aside, Feed, Found, Place
from data_sources.order import draw
from data_sources.packed import RowView
from data_sources.rewriting import Rewriting, Source

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
    credit: int = 0  # tokens it is taken to have had beside those, so that it need not catch up with what others had before or without it

    @property
    def half(self) -> float:
        """Half a document, in tokens."""
        return self.tokens / (2 * max(1, self.documents))

    def numbers(self) -> list[int]:
        return [self.status, *self.place, self.offset, self.documents, self.tokens, self.credit]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Standing":
        status, epoch, shard, block, taken, *rest = numbers
        return cls(status, Place(epoch, shard, block, taken), *rest)


class Mix(NamedTuple):
    """How the preset mixes its sources. With `past_share` the last of them is what was read before: it has that share in any
    strategy, and its weight says nothing."""

    strategy: str
    weights: tuple[float, ...]
    one_document_a_row: bool
    past_share: float = 0.0
    past_document: int = HEAD_START  # tokens of its documents, about

    @property
    def present(self) -> range:
        """The sources that the strategy chooses among."""
        return range(len(self.weights) - bool(self.past_share))

    @property
    def past(self) -> int | None:
        return len(self.weights) - 1 if self.past_share else None


class Document(NamedTuple):
    """The document under way: what is read at each of its positions, what is to be predicted there, and where it comes from."""

    tokens: np.ndarray
    targets: np.ndarray
    scored: np.ndarray | None
    text: str
    where: str  # its place in its source, in words
    title: str  # empty where none is known

    @classmethod
    def of(cls, tokens: Tokens, found: Found) -> "Document":
        read = Source.of(tokens.ids, tokens.scored)
        return cls(read.tokens, read.targets, read.scored, found.text, found.where, found.title)


class Opened(NamedTuple):
    """A document that was opened, and the block that it stands in."""

    source: int
    place: Place
    key: Key
    index: int


class Lane:
    """Lane `number`. `state` is a cursor's list of integers, None for a fresh start.

    Aside, from whatever asks a source for a document, leaves the lane in the middle of something: `rewind` mends that.
    """

    def __init__(
        self,
        number: int,
        feeds: Sequence[Feed],
        mix: Mix,
        encoder: Encoder | None,
        state: State | None = None,
        context_length: int | None = None,
        rewriting: Rewriting = Rewriting(),  # noqa: B008 - it can't be changed
    ):
        """`encoder` may be None where only texts are asked for. context_length: documents begin anew after so many positions."""
        self.number, self._rewriting = number, rewriting
        self._context_length = context_length
        self._feeds, self._mix, self._encoder = feeds, mix, encoder
        width = len(feeds)
        # Lanes begin with different sources, else the first rows would all be of the first, and the next all of the second.
        self.turn, self._under_way = (number - 1) % len(mix.present), NOTHING
        self.standings = [Standing(credit=_head_start(number, source)) for source in range(width)]
        self._begin_past()
        if state is not None:
            self._stand(state)
        self.begun: list[tuple[int, Found]] = []  # documents, with their sources, since `keep`
        self._opened: list[Opened] = []  # those and the one that was under way then; no blocks, which may have to leave memory
        self.stretches: list[Stretch] = []  # what was written into rows since `keep`
        self._document: Document | None = None  # the one under way
        self._fresh = False  # whether its first position is still to be written
        self._kept: tuple[State, Document | None] = self._numbers(), None

    def keep(self) -> State:
        """The lane's cursor, which is where `rewind` goes back to. Called between rows. What was read before leaves memory."""
        self._kept = self._numbers(), self._document
        self.begun, self.stretches = [], []
        for source, place, key, index in self._opened:
            if place < self.standings[source].place:
                self._feeds[source].forget(key, index)
        self._opened = [each for each in self._opened if each.source == self._under_way][-1:]
        return self._kept[0]

    def rewind(self) -> None:
        """Stand where the lane stood when `keep` was called last."""
        state, self._document = self._kept
        self._stand(state)
        self.begun, self.stretches = [], []

    def _numbers(self) -> State:
        return [self.turn, self._under_way, *(number for standing in self.standings for number in standing.numbers())]

    def _stand(self, state: State) -> None:
        self.turn, self._under_way = state[:HEAD]
        self.standings = [Standing.of(state[start : start + WIDTH]) for start in range(HEAD, len(state), WIDTH)]

    @property
    def ended(self) -> bool:
        """Whether nothing is left that could be read now."""
        return self._under_way == NOTHING and not self._living()

    @property
    def stranded(self) -> bool:
        """Whether everything it reads is set aside."""
        return all(self.standings[source].status == ASIDE for source in self._mix.present)

    @property
    def is_round(self) -> bool:
        """Whether it has read all that it reads at least once, and goes round again."""
        return all(standing.place.epoch > 0 for standing in self.standings if standing.status == READING)

    def fill(self, row: RowView) -> int:
        """Fill a row from the left and return how many positions hold text: fewer than T only where the lane ends, or in a padded row."""
        self._pick_up()
        position, size = 0, len(row.tokens)
        least = self._rewriting.least_room(row.number)
        while position + least <= size and (self._document is not None or self._begin()):
            position += self._copy(row, position)
            if self._mix.one_document_a_row and self._document is None:
                break
        if self._rewriting.rewriter:
            row.end(position)
        return position

    def _copy(self, row: RowView, position: int) -> int:
        """Write into the row what fits of the document under way. Returns how many positions that takes."""
        document, standing = self._document, self.standings[self._under_way]
        assert document is not None
        offset, room = standing.offset, len(row.tokens) - position
        source = Source(document.tokens, document.targets, offset, document.scored)
        example = self._rewriting.example(row.number, position, source, room)
        size = example.size
        row.source[position : position + size] = self._under_way
        row.write(position, example)
        self.stretches.append(Stretch(row.number, position, self._under_way, document, offset, example.taken))
        row.restart[position] |= self._fresh
        self._fresh = False
        if self._context_length:
            row.restart[position + -offset % self._context_length : position + size : self._context_length] = True
        standing.offset += example.taken
        if standing.offset == len(document.tokens):
            standing.place = standing.place._replace(taken=standing.place.taken + 1)
            standing.offset, self._under_way, self._document = 0, NOTHING, None
        return size

    def _begin(self) -> bool:
        """Put the next document under way. False where no source has one."""
        while (source := self._choose()) is not None:
            if self._open(source):
                self._under_way, self._fresh = source, True
                self.turn = source if source in self._mix.present else self.turn
                return True
        return False

    def _pick_up(self) -> None:
        """After a resume: go on in the document that was under way."""
        self._fresh = False
        if self._under_way == NOTHING or self._document is not None:
            return
        if not self._open(self._under_way):
            self._under_way = NOTHING
        else:
            self._fresh = self.standings[self._under_way].offset == 0  # the document is gone, and this is the one after it

    def _open(self, source: int) -> bool:
        """Tokenise the next document of a source. False where there is none for this lane."""
        standing = self.standings[source]
        found = self._find(source)
        if found is None:
            return False
        assert self._encoder is not None
        assert found.block.key is not None
        self._opened.append(Opened(source, found.place, found.block.key, found.index))
        document = Document.of(self._encoder.tokens(self._feeds[source], found), found)
        if found.place != standing.place or standing.offset >= len(document.tokens):
            standing.offset = 0
        if standing.offset == 0:
            standing.documents += 1
            standing.tokens += len(document.tokens)
            self.begun.append((source, found))
        standing.place, self._document = found.place, document
        return True

    def _find(self, source: int) -> Found | None:
        """The next document of a source, or None, noted, where it has none for this lane."""
        found = self._feeds[source].find(self.number, self.standings[source].place)
        if found is None:
            self.standings[source].status = FINISHED
        return found

    def next_text(self) -> str | None:
        """The lane's next document as text; for the mix its characters count in place of its tokens. None at the end."""
        while (source := self._choose()) is not None:
            standing = self.standings[source]
            try:
                found = self._find(source)
            except Aside:
                self.set_aside(source)
                continue
            if found is not None:
                self.turn = source
                standing.place = found.place._replace(taken=found.place.taken + 1)
                standing.documents += 1
                standing.tokens += len(found.text)
                return found.text
        return None

    # Sources that leave and come back, and weights that change: between rows

    def set_aside(self, source: int) -> None:
        """Go on without a source. A document of it that is under way stays where it is, for its return."""
        standing = self.standings[source]
        if standing.status == READING:
            standing.status = ASIDE
            if self._under_way == source:
                self._under_way, self._document = NOTHING, None

    def take_back(self, source: int) -> None:
        """Go on with a source that was set aside, where it was. It takes its share again, and does not catch up."""
        standing = self.standings[source]
        if standing.status == ASIDE and source == self._mix.past:
            standing.status = READING
            self._begin_past()
        elif standing.status == ASIDE:
            floor = min((self._lag(other) for other in self._living()), default=0.0)
            standing.credit += max(0, round(floor * self._mix.weights[source]) - standing.tokens - standing.credit)
            standing.status = READING

    def join(self, sources: Sequence[int]) -> None:
        """Sources that are new in this mix, or come from another one, have from now on their share of it."""
        lags = [self._lag(source) for source in self._living() if source not in sources]
        if not lags:
            return self.begin_shares()
        for source in sources:
            if source == self._mix.past:
                self._begin_past()
            else:
                self._level(source, min(lags))

    def begin_shares(self) -> None:
        """Shares by weights from now on, after another strategy: as if nothing had been read so far."""
        for source in self._mix.present:
            self._level(source, _head_start(self.number, source) / self._mix.weights[source])
        self._begin_past()

    def reweigh(self, weights: tuple[float, ...]) -> None:
        """Other weights from now on. A source is as many tokens ahead of the one that lags most as before, which is a document or so:
        nobody makes up for the shares of the past."""
        before = self._mix.weights
        if weights == before:
            return
        lags = [self._lag(source) for source in self._mix.present]
        floor = min((lags[source] for source in self._living()), default=0.0)
        self._mix = self._mix._replace(weights=weights)
        for source, lag in enumerate(lags):
            self._level(source, (lag - floor) * before[source] / weights[source])

    def _level(self, source: int, lag: float) -> None:
        """Choose a source's credit so that it lags by `lag`."""
        standing = self.standings[source]
        standing.credit = round(lag * self._mix.weights[source] - standing.half) - standing.tokens

    def _living(self) -> list[int]:
        """The sources of the present that are being read."""
        return [source for source in self._mix.present if self.standings[source].status == READING]

    def _choose(self) -> int | None:
        living = self._living()
        if living and self._past_is_due():
            return self._mix.past
        return CHOICES[self._mix.strategy](self, living) if living else None

    def _past_is_due(self) -> bool:
        """Whether the past has fallen behind its share of what the lane reads."""
        if self._mix.past is None:
            return False
        standing = self.standings[self._mix.past]
        half = standing.half if standing.documents else self._mix.past_document / 2
        return standing.status == READING and standing.tokens + standing.credit + half < self._share_of_past()

    def _share_of_past(self) -> float:
        """Tokens that the past should have had beside those of all others, in its share, were half of their next document read too."""
        share, present = self._mix.past_share, [self.standings[source] for source in self._mix.present]
        tokens, documents = sum(standing.tokens for standing in present), sum(standing.documents for standing in present)
        return share / (1 - share) * (tokens + tokens / (2 * max(1, documents)))

    def _begin_past(self) -> None:
        """It has its share from now on, and makes up for nothing. Up to half a document ahead or behind, so that lanes don't come to it
        all at once."""
        if self._mix.past is not None:
            standing = self.standings[self._mix.past]
            length = self._mix.past_document
            standing.credit = round(self._share_of_past()) - standing.tokens + draw(self.number, "past") % length - length // 2

    def _lag(self, source: int) -> float:
        """Tokens drawn for each unit of weight, were half of the next document drawn too: the least lags most.

        The half keeps sources of long documents from being ahead by half a document all the time (Webster's way to share out seats).
        """
        standing = self.standings[source]
        return (standing.tokens + standing.credit + standing.half) / self._mix.weights[source]


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
