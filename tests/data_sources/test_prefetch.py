"""Batches ahead of time: the same ones, in order, with their cursors; and an end that never hangs."""

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from data_sources import Prefetch, open_stream
from tests.data_sources.streams import byte_tokenizer, data_config, files, paragraphs, rows_of, write_jsonl


class Counting:
    """A stream of numbers that can be slow or fail."""

    def __init__(self, fail_at: int = -1, wait_at: int = -1):
        self.made, self.fail_at, self.wait_at = 0, fail_at, wait_at
        self.stopped, self.closed = threading.Event(), False

    def __next__(self) -> int:
        if self.made == self.fail_at:
            raise RuntimeError("broken")
        if self.made == self.wait_at:
            self.stopped.wait(60)
        self.made += 1
        return self.made

    def __iter__(self) -> Iterator[int]:
        return self

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.closed = True


def test_the_same_batches_and_cursors(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", paragraphs(300))
    data = data_config(files("a", tmp_path / "a.jsonl"))
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        alone = [(rows_of(batch), cursor) for batch, cursor in stream]
    with Prefetch(open_stream(data, byte_tokenizer(), 64, 48), 3) as ahead:
        assert [(rows_of(batch), cursor) for batch, cursor in ahead] == alone
        assert list(ahead) == []


def test_it_runs_ahead_by_its_depth() -> None:
    stream = Counting()
    with Prefetch(stream, 3) as ahead:
        assert list(islice(ahead, 2)) == [1, 2]
        time.sleep(0.3)
        assert 5 <= stream.made <= 6
    assert stream.closed


def test_who_waits_is_woken_by_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """And looks for it in no steps of its own, each of which would be late by half of itself."""
    stream = Counting(wait_at=0)
    with Prefetch(stream) as ahead, monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: pytest.fail("it sleeps"))
        assert not ahead.wait(0.05)
        threading.Timer(0.05, stream.stop).start()
        began = time.monotonic()
        assert ahead.wait(30) and time.monotonic() - began < 10


def test_items_are_made_in_the_thread() -> None:
    with Prefetch(Counting(), 2, lambda item: (item, threading.current_thread().name)) as ahead:
        assert list(islice(ahead, 2)) == [(1, "prefetch"), (2, "prefetch")]


def test_an_exception_comes_in_its_turn_and_again() -> None:
    with Prefetch(Counting(fail_at=2), 5) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken"):
                next(ahead)


def test_close_while_the_thread_waits_and_while_the_queue_is_full() -> None:
    for stream in (Counting(wait_at=1), Counting()):
        ahead = Prefetch(stream, 2)
        assert next(ahead) == 1
        time.sleep(0.05)
        began = time.monotonic()
        ahead.close()
        ahead.close()
        assert time.monotonic() - began < 1 and stream.closed
        with pytest.raises(StopIteration):
            next(ahead)
