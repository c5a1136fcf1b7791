"""Not forgetting: a sample of all that was read is kept beside the snapshots, and a share of a later run's text is drawn from it.

Each snapshot names the file with the sample as it stood then, so the three of them, and those of the archive, have each their own.
What a run reads again is the sample as it stood when the run began. So it does not change while the run goes on, and any stop
is gone on from exactly.
"""

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from data_sources.config import PastSource
from data_sources.past import Past, Read, file_hash, read_past, remove_others, write_past
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.headers import listed

FOLDER = "past"
SHARE = 0.05  # where the mix lacks sources that were read before, and the preset says nothing

MEASURED = 200  # documents whose length is looked at
Replay = dict[str, Any]  # {"file", "digest", "share", "sources", "document_tokens"}: what a run reads again


def opened_past(folder: Path, life: dict[str, Any], limit: int, notice: Callable[[str], None]) -> Past:
    """The sample that the life's newest snapshot names, to go on with."""
    named = life.get("past")
    if named is None:
        return Past(limit)
    try:
        return read_past(folder / FOLDER / named["file"], named["digest"], limit)
    except OSError as error:
        notice(f"the sample of what was read before is lost ({error.strerror or error}); a new one begins with this run")
        return Past(limit)


def begun_replay(preset: Preset, life: dict[str, Any], past: Past, tokens: Callable[[str], int]) -> Replay | None:
    """What a run that begins now reads again: of sources that its mix lacks, where there are such, else of all. tokens: counts those of a text."""
    mix = {source.name for source in preset.data.sources}
    documents = past.documents()
    read = sorted({document.source for document in documents})
    gone = [name for name in read if name not in mix]
    share = preset.train.replay_share if preset.train.replay_share is not None else SHARE * bool(gone)
    if not (share and read and "past" in life):
        return None
    again = gone or read
    lengths = [tokens(document.text) for document in islice((document for document in documents if document.source in again), MEASURED)]  # as good as drawn
    known = {"file": life["past"]["file"], "digest": life["past"]["digest"]}
    return {**known, "share": share, "sources": again, "document_tokens": max(1, round(sum(lengths) / len(lengths)))}


def past_source(replay: Replay, folder: Path) -> PastSource:
    """The source that the stream reads it by."""
    path = (folder / FOLDER / replay["file"]).absolute()
    length = {key: replay[key] for key in ("document_tokens",) if key in replay}  # older snapshots have none
    return PastSource(path=str(path), sources=tuple(replay["sources"]), share=replay["share"], **length)


def spread(replay: Replay | None, folder: Path, ranks: Ranks) -> Replay | None:
    """`replay`, once every rank has its file: those on another machine get it from rank 0. None, on all ranks, where that has none."""
    if replay is None:
        return None
    path = folder / FOLDER / replay["file"]
    there = ranks.gathered(_is_there(path, replay["digest"]))
    if not there[0] or all(there):
        return replay if there[0] else None
    content = ranks.from_first(path.read_bytes() if ranks.is_first else None)
    if not there[ranks.rank]:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_bytes(content)
        aside.replace(path)
    return replay


def _is_there(path: Path, digest: str) -> bool:
    try:
        return file_hash(path) == digest
    except OSError:
        return False


def in_words(replay: Replay) -> str:
    """A line for the screen."""
    return f"{100 * replay['share']:.3g} % of the text is what was read before, from {', '.join(replay['sources'])}"


class PastKeeper:
    """The sample on its way to disk. On rank 0."""

    def __init__(self, past: Past, folder: Path) -> None:
        self.past, self.folder, self.trouble = past, folder, ""
        self._written: dict[str, dict[str, Any]] = {}  # by file, as a life notes it; the last one is the newest

    def writer(self, documents: Iterable[Read], run_life: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        """Add what was read since the last snapshot. What is given writes the sample and notes it in the life of a snapshot that is about
        to be written, from any thread. Where it can't be written, that snapshot has the sample of the one before, as `run_life` notes it."""
        if self._written:
            run_life["past"] = list(self._written.values())[-1]
        self.past.add(documents)
        held, until, name = self.past.documents(), self.past.until, self.past.name()

        def write(life: dict[str, Any]) -> None:
            try:
                noted = life.get("past") or {}
                digest = write_past(self.folder / FOLDER, name, held, until, noted.get("digest", "") if noted.get("file") == name else "")
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                self.trouble = f"the sample of what was read can't be written: {reason}; the one before stays, if there is one"
                return
            self._written.pop(name, None)
            self._written[name] = life["past"] = {"file": name, "digest": digest, "documents": len(held)}

        return write

    def tidy(self) -> None:
        """Remove the samples that no snapshot names. Beside a snapshot that can't be read, only those that were written here."""
        headers = [each.header for each in listed(self.folder)]
        named = [part["file"] for header in headers if header for part in (header.life.get("past"), header.run.get("replay")) if part]
        spared = [] if all(headers) else [path.name for path in (self.folder / FOLDER).glob("*") if path.name not in self._written]
        remove_others(self.folder / FOLDER, [*named, *spared])
