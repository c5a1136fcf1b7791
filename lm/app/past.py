"""What the journal knows of the present run from earlier sittings, so that its curve begins where the run began."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from lm.app.curve import Point

NEWEST_BYTES = 64_000_000


def past_losses(journal: Path, tokens: int, life_tokens: int) -> Iterator[Point]:
    """(tokens, loss) of the steps up to `tokens` of the run that has read `life_tokens` in its life."""
    try:
        file = journal.open("rb")
    except OSError:
        return
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - NEWEST_BYTES))
        newest: dict[int, float] = {}
        for line in file:
            if b'"event": "step"' in line and (event := _read(line)) and event["life_tokens"] - event["tokens"] == life_tokens - tokens:
                newest[event["tokens"]] = event["loss"]
    yield from sorted((at, loss) for at, loss in newest.items() if at <= tokens)


def _read(line: bytes) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # cut off at the beginning or the end
