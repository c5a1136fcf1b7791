"""Going back: an earlier snapshot becomes the current one, and life.json and run.jsonl tell of it.

What was held out stays as it is, since no life may train on it; all that a life knows of itself is in its snapshot and comes with it.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from lm.training.headers import NAMES, Header, SnapshotError, read_header
from lm.training.journal import LIFE, opened_journal, snapshot_in_numbers, write_life
from lm.training.run import now
from lm.training.snapshots import Snapshot, Snapshots


def go_back(folder: str | Path, path: str | Path) -> dict[str, Any]:
    """Make the snapshot at `path` the current one of `folder` (see Snapshots.go_back). The event that the journal gets.

    SnapshotError, one line, when it can't be done.
    """
    folder, event = Path(folder), {"event": "went_back"}
    with contextlib.suppress(SnapshotError):  # there may be none, or a damaged one
        event["from"] = _about(read_header(folder / NAMES["current"]))
    event["to"] = _about(read_header(Path(path)))

    def tell(chosen: Snapshot, kept: Path | None) -> None:
        event["kept"] = str(kept.relative_to(folder)) if kept else None
        note = {"from_tokens": event.get("from", {}).get("life_tokens"), "tokens": chosen.life["tokens"], "at": now()}
        write_life(folder, snapshot_in_numbers(chosen) | {"went_back": note})
        with contextlib.suppress(SnapshotError), contextlib.closing(opened_journal(folder)) as journal:
            journal(event)

    Snapshots(folder).go_back(path, tell)
    return event


def _about(header: Header) -> dict[str, Any]:
    about = {"file": header.path.name, "preset": header.preset, "life_tokens": header.life_tokens, "run_tokens": header.run.get("tokens")}
    return about | {"saved": header.saved.isoformat(timespec="seconds")}


def came_back(folder: Path, life: dict[str, Any]) -> str:
    """Put a going back that no save has followed yet into the life that goes on from there. It in words, or nothing."""
    try:
        note = json.loads((folder / LIFE).read_text(encoding="utf-8"))["went_back"]
        if note["tokens"] != life["tokens"]:
            return ""
        words = f"; gone back to on {note['at'][:10]}" + (f" from {note['from_tokens']:,} tokens of life" if note["from_tokens"] is not None else "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    life.setdefault("went_back", []).append(note)
    return words
