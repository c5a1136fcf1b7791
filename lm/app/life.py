"""The model's life in a line, from the dates of its snapshots and life.json. No snapshot is opened for it."""

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lm.app.words import counted, duration, one_line
from lm.training.headers import NAMES, NEW

NO_MODEL = "There is no model yet: train one first."


@dataclass(frozen=True)
class Life:
    """What is known of the model without loading it."""

    saved_at: float | None = None  # seconds since the epoch; None without a snapshot
    born: str = ""
    runs: int = 0
    life_tokens: int = 0
    last_preset: str = ""
    run_tokens: int = 0
    budget: int = 0
    vocab_size: int | None = None

    @property
    def has_begun(self) -> bool:
        return self.saved_at is not None

    def in_words(self, now: float | None = None) -> str:
        """One line for the head of the menu."""
        if self.saved_at is None:
            return "No model yet: the first run begins its life."
        ago = duration(max((time.time() if now is None else now) - self.saved_at, 0))
        if not self.runs:
            return f"A snapshot is there, saved {ago} ago."
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        last = f"{self.last_preset} at {counted(self.run_tokens)} of {counted(self.budget)}"
        return f"{_day(self.born)}{counted(self.life_tokens)} tokens in {runs} · {last} · saved {ago} ago"


def _day(born: str) -> str:
    """ "born 3 Nov, " or nothing where it is not told."""
    try:
        day = datetime.fromisoformat(born).astimezone()
    except ValueError:
        return ""
    year = f" {day.year}" if day.year != datetime.now().year else ""
    return f"born {day.day} {day:%b}{year}, "


def read_life(folder: Path) -> Life:
    """The life in a folder of snapshots. A missing or damaged life.json only makes the line shorter."""
    saved_at = next(filter(None, (_date(folder / name) for name in (*NAMES.values(), NEW))), None)
    if saved_at is None:
        return Life()
    try:
        return _told(saved_at, json.loads((folder / "life.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return Life(saved_at)


def _date(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _told(saved_at: float, told: dict[str, Any]) -> Life:
    numbers = {key: int(told[key]) for key in ("runs", "life_tokens", "run_tokens", "budget", "vocab_size")}
    return Life(saved_at, born=one_line(str(told["born"])), last_preset=one_line(str(told["last_preset"])), **numbers)
