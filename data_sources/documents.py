"""Documents, and how a kind of source hands them out: shards of blocks of documents.

A shard is a file (or what is like one), a block a part of it that is read in one piece (a row group of parquet, a few
thousand lines of jsonl, a whole PDF), a document a text. All three are numbered, so that a place in a source is three
integers and going back to it is a seek.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Span = tuple[int, int]  # characters of a text, from the first to one past the last
Spans = tuple[Span, ...]


class Document(NamedTuple):
    """A text, and where it stands, in words a person can follow ("guide.pdf, page 12")."""

    text: str
    place: str
    scored: Spans | None = None  # the characters that are learned; None for all
    title: str = ""


@dataclass
class Documents(Sequence[Document]):
    """The documents of a block, column by column: a lane reads a few of them, and to make an object of each takes longer than to decode the block."""

    texts: Sequence[str]
    places: Sequence[str]
    scored: Sequence[Spans | None]
    titles: Sequence[str] | None = None  # None for none at all; a document without one has an empty one

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Document:
        return Document(self.texts[index], self.places[index], self.scored[index], self.titles[index] if self.titles else "")


class SourceError(Exception):
    """A source can't be read, now or ever; the message is one line for the screen."""


class GivenUp(SourceError):
    """No use in trying again: a wrong name, a missing folder, an unknown column. The message says what to do."""


class PassingFault(SourceError):
    """Worth another try: a refused connection, a timeout, a busy server."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after  # seconds that the server asked to wait


class Unreadable(Exception):
    """A file, or a part of one, is of no use, and the rest of its source may be. The message is the reason."""


class Stopped(Exception):
    """Asked to stop, it stopped before it was done."""


def one_line(error: Exception) -> str:
    """What `error` says, for the reason of one of these."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:500] or type(error).__name__


class Reader(Protocol):
    """One source. Every method may raise GivenUp or PassingFault; the same numbers always give the same documents."""

    def shards(self) -> list[str]:
        """Names of all shards, in a stable order. Resolved at the first call, cheap afterwards."""
        ...

    def blocks(self, shard: int) -> int | None:
        """How many blocks a shard has, or None where only reading through would tell."""
        ...

    def read(self, shard: int, block: int) -> Documents | None:
        """The documents of a block, or None past the last one. A block may be empty: a scanned PDF holds no text."""
        ...

    def content(self) -> str:
        """A mark of what the shards hold (data_sources/fingerprint.py), found without reading them; empty where there is none."""
        ...

    def notices(self) -> list[str]:
        """Lines for the log since the last call: what was passed over, which alias was taken."""
        ...

    def close(self) -> None:
        """Let go of files, connections and threads. Safe to call twice."""
        ...


class SourcesFailed(Exception):
    """No source is left to read from. One line, with each source's reason."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__("no source can be read: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.reasons = reasons
