"""Held-out text: one percent of the documents, chosen by their content alone, never trained on.

The choice is the same for every lane, rank, seed and resume, since it looks at nothing but the text. What is met while
streaming is gathered here; `HeldOutStore` keeps it beside the snapshots until a source has enough of it for life.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_sources.disk import sync_folder
from data_sources.documents import Spans
from data_sources.order import content_hash, draw

SHARE = 2**64 // 100
SAMPLE = 200  # documents of a local source looked through for one that is held out by its hash
CHARACTERS, LEAST = 8, 4_000  # that a token has at most in all but few texts; and that are kept of any text
UNTAKEN_CHARACTERS = 4_000_000  # of one source: what nobody asks for must not fill the memory


class Held(str):
    """A held-out document: a text, and the characters of it that are learned, None for all."""

    learned: Spans | None

    def __new__(cls, text: str, learned: Spans | None = None) -> "Held":
        held = super().__new__(cls, text)
        held.learned = learned
        return held

    @classmethod
    def of(cls, text: str) -> "Held":
        """`text`, which is learned as a whole where nothing else is known of it."""
        return text if isinstance(text, cls) else cls(text)

    def beginning(self, size: int) -> "Held":
        """Its first `size` characters."""
        if self.learned is None:
            return Held(self[:size])
        return Held(self[:size], tuple((first, min(last, size)) for first, last in self.learned if first < size))

    @property
    def learned_bytes(self) -> int:
        """What a model is asked for, in UTF-8."""
        learned = ((0, len(self)),) if self.learned is None else self.learned
        return sum(len(self[first:last].encode()) for first, last in learned)


class Choice:
    """Which documents of one source are held out: those whose hash falls in the percent, and one more where a small source had none."""

    def __init__(self, extra: Iterable[int] = ()):
        self.extra = frozenset(extra)

    def holds(self, text: str) -> bool:
        value = content_hash(text)
        return value < SHARE or value in self.extra


def local_choice(sample: Iterable[str]) -> Choice:
    """The choice for a source on this machine, from its first documents: at least one is held out where it has two."""
    hashes = {content_hash(text) for text in sample}
    return Choice([min(hashes)] if len(hashes) > 1 else [])  # where one falls in by its hash, so does the least


class HeldOut:
    """Held-out documents met since the last `take_new`, each once."""

    def __init__(self) -> None:
        self._new: list[tuple[str, Held]] = []
        self._met: set[tuple[str, int]] = set()
        self._characters: dict[str, int] = {}

    def add(self, source: str, text: Held) -> None:
        key = (source, content_hash(text))
        if key in self._met or self._characters.get(source, 0) > UNTAKEN_CHARACTERS:
            return
        self._met.add(key)
        self._new.append((source, text))
        self._characters[source] = self._characters.get(source, 0) + len(text)

    def take_new(self) -> list[tuple[str, Held]]:
        """(source, text) of each document met since the last call."""
        new, self._new, self._characters = self._new, [], {}
        return new


class HeldOutStore:
    """Held-out text on disk, one JSON-lines file a source, closed to more once it has `limit_tokens`."""

    def __init__(self, folder: str | os.PathLike[str], limit_tokens: int):
        self._folder, self._limit = Path(folder), limit_tokens
        self._texts: dict[str, dict[Held, int]] = {}  # source -> text -> tokens, in order
        self._unwritten: set[str] = set()  # sources whose text is not yet all on disk
        self.load()

    def load(self) -> None:
        """Read what the folder holds. A torn or foreign line is passed over; one that says nothing of it is learned as a whole."""
        self._texts = {}
        for file in sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else ():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = json.loads(line)
                    self._texts.setdefault(row["source"], {})[_held(row)] = int(row["tokens"])

    def sources(self) -> list[str]:
        """Names of the sources that text is held for."""
        return list(self._texts)

    def texts(self, source: str) -> list[Held]:
        """Held-out documents of a source, in the order they came."""
        return list(self._texts.get(source, {}))

    def tokens(self, source: str) -> int:
        """How many tokens are held for a source."""
        return sum(self._texts.get(source, {}).values())

    def frozen(self, source: str) -> bool:
        """Whether the source has its text for life."""
        return self.tokens(source) >= self._limit

    def extend(self, new: Iterable[tuple[str, str]], count_tokens: Callable[[str], int]) -> None:
        """Add (source, text) pairs that are not there yet, as far as their sources are not frozen; of a long text its beginning.

        OSError when they can't be written; they are kept in memory, and the next call writes them.
        """
        for source, text in new:
            held, beginning = self._texts.setdefault(source, {}), _beginning(text, max(LEAST, CHARACTERS * self._limit))
            if beginning not in held and not self.frozen(source):
                held[beginning] = count_tokens(beginning)
                self._unwritten.add(source)
        for source in sorted(self._unwritten):
            self._write(source)
            self._unwritten.discard(source)

    def _write(self, source: str) -> None:
        """Written aside, synced, renamed: at any instant a whole file is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / file_name(source)
        aside = final.with_suffix(".tmp")
        with open(aside, "w", encoding="utf-8", errors="surrogatepass") as file:
            for text, tokens in self._texts[source].items():
                learned = {} if text.learned is None else {"learned": text.learned}
                file.write(json.dumps({"source": source, "text": text, "tokens": tokens, **learned}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
        sync_folder(self._folder)


def _beginning(text: str, size: int) -> Held:
    """Its first `size` characters; all of it where nothing of them is learned."""
    whole = Held.of(text)
    beginning = whole.beginning(size)
    return beginning if beginning.learned_bytes else whole


def _held(row: dict[str, Any]) -> Held:
    """The text of a line, and what is learned of it."""
    return Held(row["text"], tuple((int(first), int(last)) for first, last in row["learned"]) if "learned" in row else None)


def file_name(source: str) -> str:
    """A file name for any source's name: what is readable of it, and a hash that keeps names apart."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', source)[:40]}-{draw(source):016x}.jsonl"
