"""A process that reads is killed again and again, and in the end has read what one that was left alone reads."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import data_sources.files  # noqa: F401 - so that not every reader has to
from data_sources import Prefetch, open_stream
from data_sources.config import DataConfig
from tests.data_sources.streams import byte_tokenizer, three_sources

KILLS, ROWS, LENGTH = 50, 31, 64
ROOT = Path(__file__).parents[2]


def read_on(folder: Path, book: Path, batches: int | None) -> None:
    """Go on after the last whole line of `book`, and write a line for each batch: a hash of its rows, and its cursor."""
    written = book.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    os.truncate(book, len(whole))
    cursor = json.loads(whole.splitlines()[-1])["cursor"] if whole else None
    data = DataConfig.model_validate_json((folder / "data.json").read_text())
    with book.open("a") as file, Prefetch(open_stream(data, byte_tokenizer(), LENGTH, ROWS, cursor=cursor), 2) as ahead:
        for batch, cursor in islice(ahead, batches):
            file.write(json.dumps({"hash": digest(batch), "cursor": cursor}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def digest(batch: Any) -> str:
    return hashlib.sha256(b"".join(row for _, row in batch.digests())).hexdigest()


def kill_again_and_again(folder: Path, book: Path) -> None:
    """Run in a process of its own, which has no threads yet and can be forked: a reader a time, killed at a random moment."""
    draw = random.Random(0)
    for _ in range(KILLS):
        whole, more, deadline = book.read_bytes().rfind(b"\n") + 1, draw.choice([0, 0, 1, 2, 3]), time.monotonic() + 5
        reader = os.fork()
        if not reader:
            read_on(folder, book, None)
            os._exit(1)
        with book.open("rb") as file:
            file.seek(whole)
            while more > 0 and time.monotonic() < deadline:
                more -= file.read().count(b"\n")
                time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.06))
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)


@pytest.mark.slow
def test_killed_at_50_moments(tmp_path: Path) -> None:
    data = three_sources(tmp_path, mix_strategy="weighted", source_weights=[5.0, 3.0, 2.0])
    (tmp_path / "data.json").write_text(data.model_dump_json())
    book = tmp_path / "book.jsonl"
    book.touch()
    call = "import sys; from pathlib import Path; from tests.data_sources.test_kill import *; kill_again_and_again(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", call, str(tmp_path), str(book)], check=True, timeout=200, cwd=ROOT, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    read_on(tmp_path, book, 3)
    lines = [json.loads(line) for line in book.read_bytes().splitlines()]
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream:
        for number, (line, (batch, cursor)) in enumerate(zip(lines, stream, strict=False)):
            assert line["hash"] == digest(batch) and line["cursor"] == json.loads(json.dumps(cursor)), number
    assert len(lines) > KILLS
