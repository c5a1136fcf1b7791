"""What the journal knows of earlier sittings: the losses of the present run, for its curve, and what became of each source."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.app.curve import Point
from lm.app.words import counted

NEWEST_BYTES = 64_000_000
TROUBLES = ("waiting", "given up")


def past_losses(journal: Path, tokens: int, life_tokens: int) -> Iterator[Point]:
    """(tokens, loss) of the steps up to `tokens` of the run that has read `life_tokens` in its life."""
    newest: dict[int, float] = {}
    for line in _newest_lines(journal):
        if b'"event": "went_back"' in line:  # what was learned after that place is no part of this life
            newest = {at: loss for at, loss in newest.items() if at <= _place(line) - (life_tokens - tokens)}
        elif b'"event": "step"' in line and (event := _read(line)) and event["life_tokens"] - event["tokens"] == life_tokens - tokens:
            newest[event["tokens"]] = event["loss"]
    yield from sorted((at, loss) for at, loss in newest.items() if at <= tokens)


def past_sources(journal: Path) -> dict[str, dict[str, Any]]:
    """By source what the journal last said of it: tokens, documents, epochs, state, last_error, last_error_at. Any of them may be missing.

    A state is told only of the sources of the newest run, and nothing of what was before the model went back to an earlier snapshot:
    much of that is no part of its life.
    """
    known: dict[str, dict[str, Any]] = {}
    last_step = b""
    for line in _newest_lines(journal):
        if b'"event": "went_back"' in line:
            known, last_step = {}, b""
        elif b'"event": "step"' in line:
            last_step = line  # each holds all that those before it in a run held
        elif b'"event": "run"' in line:
            _note_step(known, _read(last_step))
            for told in known.values():
                told.pop("state", None)
        elif b'"event": "source"' in line:
            _note_trouble(known, _read(line), last_step)
    _note_step(known, _read(last_step))
    return known


def _note_step(known: dict[str, dict[str, Any]], step: Mapping[str, Any]) -> None:
    for name, told in step.get("sources", {}).items():
        about = {"tokens": told["tokens"], "documents": told["documents"], "epochs": told["epoch"], "state": told["state"]}
        known.setdefault(name, {}).update(about)


def _note_trouble(known: dict[str, dict[str, Any]], event: Mapping[str, Any], last_step: bytes) -> None:
    if event.get("state") in TROUBLES:
        after = f"after {counted(_read(last_step).get('life_tokens', 0))} tokens"
        known.setdefault(event["name"], {}).update(last_error=event["reason"], last_error_at=event.get("at", after))


def _newest_lines(journal: Path) -> Iterator[bytes]:
    """The last lines of a journal, as many as can be looked through at once; none when it is not there."""
    try:
        file = journal.open("rb")
    except OSError:
        return
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - NEWEST_BYTES))
        yield from (line for line in file if line.endswith(b"\n"))  # the last may be torn


def _place(line: bytes) -> int:
    """The tokens of its life that a model went back to."""
    return _read(line).get("to", {}).get("life_tokens", 0)


def _read(line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return {}  # cut off at the beginning or the end
