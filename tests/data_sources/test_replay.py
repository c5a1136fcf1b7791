"""What the clock decided once, a replay obeys: the same batches without the faults, on another number of processes."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_sources import SourcesFailed, merge_cursors, open_stream
from data_sources.blocks import BlockCache
from data_sources.config import DataConfig
from data_sources.events import EVENTS_KEPT, Event, Record, united
from data_sources.feed import Closed
from data_sources.lane import FINISHED, HEAD
from data_sources.stream import Options, Stream
from tests.data_sources.streams import Row, byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, write_jsonl
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

ROWS, LENGTH = 21, 29
Batches = list[tuple[list[Row], Any]]


def refuse_all(answer: Answer, path: str) -> bool:
    answer.refuse(503)
    return True


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[BlockCache]:
    """The caches of all streams, in the order they were opened: an empty one must ask the Hub again, so that a fault is felt at once."""
    made: list[BlockCache] = []
    monkeypatch.setattr("data_sources.sources.BlockCache", lambda: made.append(BlockCache()) or made[-1])
    return made


@pytest.fixture
def data(tmp_path: Path, hub: LoopbackHub) -> DataConfig:
    """A remote source that ends, and a local one that goes round."""
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(200)], shards=2, row_group_size=25)
    write_jsonl(tmp_path / "local.jsonl", paragraphs(150, start=450))
    words = {"type": "hf", "name": "words", "dataset": "some/words"}
    return data_config(words, files("local", tmp_path / "local.jsonl", repeat=True), mix_strategy="weighted", source_weights=[2.0, 1.0])


def state(stream: Stream, name: str) -> str:
    return next(source.state for source in stream.sources if source.name == name)


def read_with_faults(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], batches: int, world_size: int) -> Batches:
    """Global batches during which `words` goes away and comes back again and again. One rank feels it a batch after another."""
    del caches[:]
    streams = [open_stream(data, byte_tokenizer(), LENGTH, 1, rank, world_size, options=Options(global_rows=ROWS)) for rank in range(world_size)]
    made: Batches = []
    for number in range(batches):
        for rank in range(world_size):
            if number % 9 == 2 + rank:
                caches[rank]._blocks.clear()
        if number % 9 == 2:
            hub._server.fault = lambda answer, path: "words" in path and refuse_all(answer, path)
        if number % 9 == 7:
            hub._server.fault = None
            deadline = time.monotonic() + 20
            while any(state(stream, "words") == "waiting" for stream in streams) and time.monotonic() < deadline:
                time.sleep(0.02)
        parts = [next(stream) for stream in streams]
        found = sorted(row for batch, _ in parts for row in rows_of(batch))
        made.append((found, json.loads(json.dumps(merge_cursors([each for _, each in parts])))))
    hub._server.fault = None
    for stream in streams:
        stream.close()
    return made


def replayed(data: DataConfig, made: Batches, start: int, world_size: int, batches: int, **options: Any) -> Batches:
    cursor = made[start - 1][1] if start else None
    return global_batches(data, batches, ROWS, world_size, LENGTH, cursor, options=Options(replay=made[-1][1], **options))


@pytest.mark.slow
def test_a_replay_gives_the_same_batches_on_any_number_of_processes(
    data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = read_with_faults(data, hub, caches, 46, world_size=2)
    events = [Event(*event) for event in made[-1][1]["events"]]
    assert {(event.source, event.what) for event in events} == {("words", "aside"), ("words", "back")} and len(events) > 6
    assert any(event.world_size == 2 for event in events), "the ranks noticed it in different batches"
    calm = global_batches(data, 9, ROWS, 1, LENGTH)
    assert [rows for rows, _ in calm] != [rows for rows, _ in made[:9]]
    for start, world_size in ((0, 1), (4, 3)):
        assert replayed(data, made, start, world_size, len(made) - start) == made[start:], f"after batch {start} on {world_size}"
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert replayed(data, made, 11, 1, 20, workers=2) == made[11:31]

    more = global_batches(data, 20, 48, 1, 256, made[-1][1])
    assert all(lane[HEAD] == FINISHED for lane in more[-1][1]["lanes"].values())
    read = Counter(read_texts([row for found, _ in made + more for row in found]))
    with open_stream(data_config(data.sources[0]), byte_tokenizer(), LENGTH, ROWS, part="held_out") as stream:
        held_out = read_texts([row for batch, _ in stream for row in rows_of(batch)])
    words = {text.encode(): 1 for text in paragraphs(200)}
    assert Counter({text: times for text, times in read.items() if text in words}) + Counter(held_out) == Counter(words), "none lost, none twice"


def test_a_replay_waits_for_what_was_read_and_leaves_alone_what_was_not(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None) -> None:
    made = read_with_faults(data, hub, caches, 12, world_size=1)
    hub._server.fault = refuse_all
    threading.Timer(1.5, lambda: setattr(hub._server, "fault", None)).start()
    began = time.monotonic()
    assert replayed(data, made, 0, 1, 12) == made
    assert 1.4 < time.monotonic() - began < 15


def test_a_replay_that_waits_can_be_stopped(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None) -> None:
    made = read_with_faults(data, hub, caches, 3, world_size=1)
    hub._server.fault = refuse_all
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS, options=Options(replay=made[-1][1])) as stream:
        threading.Timer(0.5, stream.stop).start()
        with pytest.raises(Closed):
            next(stream)


def test_a_source_that_is_gone_for_good_ends_its_replay(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None) -> None:
    made = read_with_faults(data, hub, caches, 3, world_size=1)
    hub._server.fault = lambda answer, path: "words" in path and bool(answer.refuse(404, "RepoNotFound")) or "words" in path
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS, options=Options(replay=made[-1][1])) as stream, pytest.raises(SourcesFailed, match="replayed"):
        next(stream)


def test_after_its_record_a_replay_lives(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None) -> None:
    made = read_with_faults(data, hub, caches, 4, world_size=1)
    assert replayed(data, made, 0, 2, 20)[4:] == global_batches(data, 16, ROWS, 1, LENGTH, made[-1][1])


def test_a_batch_is_made_again_from_its_beginning(data: DataConfig, hub: LoopbackHub, caches: list[BlockCache], impatient: None) -> None:
    """A fault, whenever it strikes, changes a batch in one of two ways only: it is read as if the source had never been asked for it."""
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream:
        before = [next(stream) for _ in range(3)]
        hub._server.fault = refuse_all
        caches[0]._blocks.clear()
        after = list(islice(stream, 40))
    events = [Event(*event) for event in after[-1][1]["events"]]
    assert [(event.source, event.what, event.row % ROWS) for event in events] == [("words", "aside", 0)]
    rows = [row for batch, _ in before + after for row in rows_of(batch)]
    assert {source for row in rows if row.number < events[0].row for source in row.source} == {0, 1}
    assert {source for row in rows if row.number >= events[0].row for source in row.source} == {1}


def test_a_replay_that_cannot_be_meant(data: DataConfig, hub: LoopbackHub) -> None:
    made = global_batches(data, 3, ROWS, 1, LENGTH)
    later = made[-1][1]
    full = [[ROWS * number, "words", ("aside", "back")[number % 2], 0, 1] for number in range(5, 5 + EVENTS_KEPT)]
    wrong: list[tuple[Callable[[dict], dict], str]] = [
        (lambda c: c | {"seed": 5}, "seed"),
        (lambda c: c | {"next_row": 0}, "ends at row 0"),
        (lambda c: c | {"events": full}, "lost its events"),
        (lambda c: c | {"events": [[ROWS * 2, "words", "aside"]]}, "older program"),
        (lambda c: c | {"events": [[ROWS * 2, "words"]]}, "damaged at events"),
        (lambda c: c | {"sources": c["sources"][::-1]}, "other sources"),
    ]
    for change, words in wrong:
        with pytest.raises(ValueError, match=words) as error:
            open_stream(data, byte_tokenizer(), LENGTH, ROWS, cursor=made[0][1], options=Options(replay=change(later)))
        assert "\n" not in str(error.value)
    Record(later | {"next_row": ROWS * 999, "events": full}, ROWS * 6)


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([(0, 2), (1, 2)], [(0, 1)]),
        ([(0, 4), (2, 4)], [(0, 2)]),
        ([(number, 6) for number in range(6)], [(0, 1)]),
        ([(1, 3), (0, 3)], [(0, 3), (1, 3)]),
        ([(number, 48) for number in range(1, 48, 2)], [(1, 2)]),
        ([(0, 1), (0, 1)], [(0, 1)]),
    ],
)
def test_events_of_several_ranks_become_one(parts: Sequence[tuple[int, int]], whole: Sequence[tuple[int, int]]) -> None:
    events = [[7, "a", "aside", *part] for part in parts]
    assert united(reversed(events)) == [[7, "a", "aside", *part] for part in whole]
    lanes = [{lane for lane in range(48) if any(Event(*event).covers(lane) for event in found)} for found in (events, united(events))]
    assert lanes[0] == lanes[1]


def test_events_are_bounded() -> None:
    events = [[number, "a", "aside", 0, 1] for number in range(1000)]
    assert united(events) == events[-EVENTS_KEPT:]
