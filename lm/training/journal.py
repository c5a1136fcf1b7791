"""run.jsonl: everything that happened, one JSON object a line; and life.json, the few numbers that the menu shows."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_sources.cursor import read_so_far
from lm.training.kept import keep
from lm.training.run import Run, now
from lm.training.snapshots import Snapshot, SnapshotError

JOURNAL, LIFE = "run.jsonl", "life.json"
PIECE = 1 << 20  # bytes that are looked through at once


class Journal:
    """An observer that appends each event to run.jsonl. A torn last line, left by a sudden end, is cut off first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JOURNAL
        if path.exists():
            _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")  # a lone surrogate becomes its JSON escape

    def __call__(self, event: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps({**_finite(event), "at": now()}, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError:
            return  # a full disk must not end a run; the snapshots say so when their turn comes

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk left unwritten
            self._file.close()


def opened_journal(folder: Path) -> Journal:
    """The journal of `folder`. SnapshotError, one line, when it can't be written."""
    try:
        return Journal(folder)
    except OSError as error:
        raise SnapshotError(f"{folder / JOURNAL}: can't be written: {error.strerror}") from None


def _finite(value: Any) -> Any:
    """`value` with null in the place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_torn_line(path: Path) -> None:
    """Cut off what stands after the last newline, unless it is whole: then only its newline is missing."""
    with path.open("rb+") as file:
        last, begins = b"", file.seek(0, os.SEEK_END)
        while begins and b"\n" not in last:  # from the end: the file of a long life is large
            size = min(PIECE, begins)
            begins = file.seek(begins - size)
            last = file.read(size) + last
        before, newline, last = last.rpartition(b"\n")
        try:
            json.loads(last)
        except ValueError:
            file.truncate(begins + len(before + newline))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def life_in_numbers(run: Run, vocab_size: int) -> dict[str, Any]:
    """What the menu shows of a life, as it stands now."""
    parameters = sum(parameter.numel() for parameter in run.learner.model.parameters())
    about = {"last_preset": run.preset.name, "run_tokens": run.tokens, "budget": run.budget, "parameters": parameters, "vocab_size": vocab_size}
    return _of_life(run.life, run.cursor) | about


def snapshot_in_numbers(snapshot: Snapshot) -> dict[str, Any]:
    """The same as a snapshot tells it."""
    weights = snapshot.model_weights
    about = {"last_preset": snapshot.preset.name, "run_tokens": snapshot.run["tokens"], "budget": snapshot.run["budget"]}
    about |= {"parameters": sum(tensor.numel() for tensor in weights.values()), "vocab_size": len(weights["embedding.weight"])}
    return _of_life(snapshot.life, snapshot.cursor) | about


def _of_life(life: Mapping[str, Any], cursor: Mapping[str, Any] | None) -> dict[str, Any]:
    about = {"born": life["born"], "runs": len(life["runs"]), "life_tokens": life["tokens"]}
    return about | {"sources": dict(life["sources"]), "read": _read(life, cursor)}


def _read(life: Mapping[str, Any], cursor: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """By source, over the whole life: documents begun, epochs from 0, and the last fault with its time, where there was one."""
    counts = read_so_far(cursor) if cursor else {}
    faults = life.get("faults", {})
    return {name: {**counts.get(name, {}), **faults.get(name, {})} for name in {**counts, **faults}}


def write_life(folder: Path, about: Mapping[str, Any]) -> None:
    """life.json. The menu reads it in place of opening a snapshot."""
    keep(folder / LIFE, about)
