"""What the model has read over its whole life, by source: from life.json, and from the journal what is not told there."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lm.app.past import past_sources
from lm.app.words import duration, one_line


@dataclass(frozen=True)
class SourceReading:
    """One source in the model's life. The texts are as they were told: not yet harmless."""

    name: str
    tokens: int = 0
    documents: int = 0
    epochs: int = 0  # how often it was read to its end
    state: str = ""  # at the newest step; empty when the newest run does not read it
    last_error: str = ""
    last_error_at: str = ""  # a date, or in words how much the model had read then


def read_reading(folder: Path) -> list[SourceReading]:
    """All sources that are known of, those with most tokens first. What is damaged is passed over."""
    by_name = _told_by_journal(folder / "run.jsonl")
    for name, about in _told_by_life(folder / "life.json").items():
        by_name[name] = by_name.get(name, {}) | about
    known = [reading for name, about in by_name.items() if (reading := _reading(name, about))]
    return sorted(known, key=lambda reading: (-reading.tokens, reading.name))


def _told_by_journal(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return past_sources(path)
    except (OSError, KeyError, TypeError, AttributeError):
        return {}  # another program's


def _told_by_life(path: Path) -> dict[str, dict[str, Any]]:
    try:
        life = json.loads(path.read_text(encoding="utf-8"))
        tokens, read = life["sources"], life.get("read", {})
        return {name: {"tokens": count, **read.get(name, {})} for name, count in {**dict.fromkeys(read, 0), **tokens}.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _reading(name: str, about: dict[str, Any]) -> SourceReading | None:
    try:
        tokens, documents, epochs = (int(about.get(key) or 0) for key in ("tokens", "documents", "epochs"))
    except (ValueError, TypeError):
        return None
    state, error, at = (str(about.get(key) or "") for key in ("state", "last_error", "last_error_at"))
    return SourceReading(name, tokens, documents, epochs, state, error, at)


def when(at: str, now: datetime) -> str:
    """A date as the time since then, other words as they are."""
    try:
        return f"{duration(max((now - datetime.fromisoformat(at)).total_seconds(), 0))} ago"
    except (ValueError, TypeError):
        return one_line(at)
