"""Faults at every instant: whatever read they strike, no document is lost or read twice, and the cursor's events alone give it all again."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_sources import feed, merge_cursors, open_stream, sources
from data_sources.blocks import BlockCache
from data_sources.config import DataConfig
from data_sources.documents import PassingFault
from data_sources.events import Event
from data_sources.shards import FileReader
from data_sources.stream import Options
from tests.data_sources.streams import Row, byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, write_jsonl

ROWS, LENGTH, RANKS = 19, 67, 2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Three finite sources of small files, and a cache that holds hardly one: files are read all the time. Nothing is waited for."""
    for name, seconds in {"PATIENCE": 0.0, "FIRST_PATIENCE": 0.0, "FIRST_PAUSE": 0.001, "FIRST_RETRY": 0.001}.items():
        monkeypatch.setattr(feed, name, seconds)
    monkeypatch.setattr(sources, "BlockCache", lambda: BlockCache(30_000))
    texts = iter(paragraphs(360))
    for name, shard in itertools.product("abc", range(4)):
        write_jsonl(tmp_path / name / f"{name}{shard}.jsonl", list(itertools.islice(texts, 30)))
    return data_config(*(files(name, tmp_path / name) for name in "abc"), mix_strategy="weighted", source_weights=[3.0, 2.0, 1.0])


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, str], bool]], None]:
    """Sets which reads fail: the function is asked with the number of the read and the path of the file."""
    fails: list[Callable[[int, str], bool]] = [lambda number, path: False]
    numbers: list[Iterator[int]] = [itertools.count()]
    read = FileReader.read

    def faulty(self: FileReader, shard: int, block: int) -> object:
        if fails[0](next(numbers[0]), self.shards()[shard]):
            raise PassingFault("out of reach")
        return read(self, shard, block)

    def begin(fail: Callable[[int, str], bool]) -> None:
        fails[0], numbers[0] = fail, itertools.count()

    monkeypatch.setattr(FileReader, "read", faulty)
    return begin


def read_all(data: DataConfig) -> tuple[list[tuple[list[Row], object]], set[str]]:
    """Every batch of two ranks until both are at the end, with their merged cursors, and the texts held out."""
    streams = [open_stream(data, byte_tokenizer(), LENGTH, 1, rank, RANKS, options=Options(global_rows=ROWS)) for rank in range(RANKS)]
    made = []
    while True:
        parts = [next(stream) for stream in streams]
        if all(batch.last for batch, _ in parts) and all(source.state == "finished" for stream in streams for source in stream.sources):
            break
        made.append((sorted(row for batch, _ in parts for row in rows_of(batch)), merge_cursors([cursor for _, cursor in parts])))
    held_out = {text for stream in streams for _, text in stream.held_out.take_new()}
    for stream in streams:
        stream.close()
    return made, held_out


@pytest.mark.parametrize("first", [13, 33, 58])
def test_a_fault_at_any_read(data: DataConfig, strike: Callable, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Of one source, and of a second while the first is away, so that a batch is made for the third time. The third always answers."""
    strike(lambda number, path: "c" not in Path(path).stem and first <= number < first + 60 and number % 5 != 0)
    made, held_out = read_all(data)
    events = [Event(*event) for event in made[-1][1]["events"]]
    assert {event.what for event in events} == {"aside", "back"} and len({event.source for event in events}) > 1
    read = Counter(read_texts([row for rows, _ in made for row in rows]))
    assert read + Counter(text.encode() for text in held_out) == Counter(text.encode() for text in paragraphs(360))
    strike(lambda number, path: False)
    monkeypatch.setattr(sources, "BlockCache", BlockCache)
    for start, world_size in ((0, 3), (len(made) // 2, 1)):
        cursor = made[start - 1][1] if start else None
        again = global_batches(data, len(made) - start - 1, ROWS, world_size, LENGTH, cursor, options=Options(replay=made[-1][1]))
        assert again == made[start:-1], f"from batch {start} on {world_size}"
