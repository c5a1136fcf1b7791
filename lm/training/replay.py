"""Not forgetting: a sample of all that was read is kept beside the snapshots, and a share of a later run's text is drawn from it.

Each snapshot names the file with the sample as it stood then, so the three of them, and those of the archive, have each their own.
What a run reads again is the sample as it stood when the run began. So it does not change while the run goes on, and any stop
is gone on from exactly.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_sources.config import PastSource
from data_sources.past import Past, Read, read_past, remove_others, write_past
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.headers import listed

FOLDER = "past"
SHARE = 0.05  # where the mix lacks sources that were read before, and the preset says nothing

Replay = dict[str, Any]  # {"file", "share", "sources"}: what a run reads again


def opened_past(folder: Path, life: dict[str, Any], limit: int, notice: Callable[[str], None]) -> Past:
    """The sample that the life's newest snapshot names, to go on with."""
    named = life.get("past")
    if named is None:
        return Past(limit)
    try:
        return read_past(folder / FOLDER / named["file"], limit)
    except OSError as error:
        notice(f"the sample of what was read before is lost ({error.strerror or error}); a new one begins with this run")
        return Past(limit)


def begun_replay(preset: Preset, life: dict[str, Any], past: Past) -> Replay | None:
    """What a run that begins now reads again: of sources that its mix lacks, where there are such, else of all."""
    mix = {source.name for source in preset.data.sources}
    read = sorted({document.source for document in past.documents()})
    gone = [name for name in read if name not in mix]
    share = preset.train.replay_share if preset.train.replay_share is not None else SHARE * bool(gone)
    return {"file": life["past"]["file"], "share": share, "sources": gone or read} if share and read and "past" in life else None


def past_source(replay: Replay, folder: Path) -> PastSource:
    """The source that the stream reads it by."""
    return PastSource(path=str((folder / FOLDER / replay["file"]).absolute()), sources=tuple(replay["sources"]), share=replay["share"])


def spread(replay: Replay | None, folder: Path, ranks: Ranks) -> Replay | None:
    """`replay`, once every rank has its file: those on another machine get it from rank 0. None, on all ranks, where that has none."""
    path = folder / FOLDER / replay["file"] if replay else None
    if path is None or all(ranks.gathered(path.exists())):
        return replay
    content = ranks.from_first(path.read_bytes() if ranks.is_first and path.exists() else None)
    if content is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return replay if content is not None else None


def in_words(replay: Replay) -> str:
    """A line for the screen."""
    return f"{100 * replay['share']:.3g} % of the text is what was read before, from {', '.join(replay['sources'])}"


class PastKeeper:
    """The sample on its way to disk. On rank 0."""

    def __init__(self, past: Past, folder: Path) -> None:
        self.past, self.folder = past, folder

    def take(self, documents: Iterable[Read], life: dict[str, Any]) -> Callable[[], None]:
        """Add what was read since the last snapshot and note the sample in the life. What is given writes it, from any thread."""
        self.past.add(documents)
        held, until, name = self.past.documents(), self.past.until, self.past.name()
        life["past"] = {"file": name, "documents": len(held)}
        return lambda: write_past(self.folder / FOLDER, name, held, until)

    def tidy(self) -> None:
        """Remove the samples that no snapshot names. None is, while there is a snapshot that can't be read."""
        headers = [each.header for each in listed(self.folder)]
        named = [part for header in headers if header for part in (header.life.get("past"), header.run.get("replay")) if part]
        if all(headers):
            remove_others(self.folder / FOLDER, [part["file"] for part in named])
