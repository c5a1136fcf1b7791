"""Loader processes: the batches and cursors of a rank that reads by itself, and an end that nothing survives."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import psutil
import pytest

from data_sources import Prefetch, SourcesFailed, merge_cursors, open_stream
from data_sources.config import DataConfig
from data_sources.feed import Closed
from data_sources.stream import Options, Stream
from data_sources.weights import WeightSchedule, base_weights
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, three_sources, write_jsonl

ROWS = 29
ROOT = Path(__file__).parents[2]


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path, mix_strategy="weighted", source_weights=[5.0, 3.0, 2.0])


def schedule(data: DataConfig) -> WeightSchedule:
    made = WeightSchedule(base_weights(data), 3 * ROWS)
    made.announce(2, (0.1, 0.2, 0.7))
    made.announce(3, (0.6, 0.2, 0.2))
    return made


def opened(data: DataConfig, workers: int, **options: object) -> Stream:
    return open_stream(data, byte_tokenizer(), 37, ROWS, options=Options(workers), **options)


def loaders() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "data_sources.worker" in " ".join(child.cmdline())]


@pytest.mark.parametrize("first", [(1, 1), (3, 1), (2, 1)], ids=str)
def test_any_number_of_loaders_makes_the_same_batches_and_cursors(mix: DataConfig, first: tuple[int, int]) -> None:
    """Stopped in the middle of an interval and gone on with by two ranks of another number of loaders, while the weights change."""
    whole = global_batches(mix, 11, ROWS, options=Options(schedule=schedule(mix)))
    workers, world_size = first
    read = global_batches(mix, 5, ROWS, world_size, options=Options(workers, schedule(mix)))
    assert read == whole[:5]
    workers, world_size = workers % 3 + 1, 2
    assert global_batches(mix, 6, ROWS, world_size, cursor=read[-1][1], options=Options(workers, schedule(mix))) == whole[5:]


def test_weights_reach_the_loaders_while_they_read_ahead(mix: DataConfig) -> None:
    whole = [rows for rows, _ in global_batches(mix, 11, ROWS, options=Options(schedule=schedule(mix)))]
    late = WeightSchedule(base_weights(mix), 3 * ROWS)
    with Prefetch(open_stream(mix, byte_tokenizer(), 37, ROWS, options=Options(2, late)), 2) as ahead:
        for number, (batch, _) in enumerate(islice(ahead, 11)):
            assert rows_of(batch) == whole[number]
            if number in (2, 5):
                late.announce(number // 3 + 2, schedule(mix).of(number // 3 + 2))


def test_census_with_loaders(tmp_path: Path) -> None:
    """A finite mix to its end: one rank of two loaders, stopped and gone on with by three ranks, one of which has two."""
    texts = paragraphs(500)
    write_jsonl(tmp_path / "a.jsonl", texts[:300])
    write_jsonl(tmp_path / "b.jsonl", texts[300:])
    data = data_config(files("a", tmp_path / "a.jsonl"), files("b", tmp_path / "b.jsonl"))
    rows, held_out = [], set()
    with open_stream(data, byte_tokenizer(), 128, ROWS, options=Options(2)) as stream:
        parts = list(islice(stream, 7))
        held_out |= {text for _, text in stream.held_out.take_new()}
    rows += [row for batch, _ in parts for row in rows_of(batch)]
    cursor = parts[-1][1]
    streams = [open_stream(data, byte_tokenizer(), 128, ROWS, rank, 3, cursor, options=Options(2 * (rank == 1), global_rows=ROWS)) for rank in range(3)]
    while True:
        parts = [next(stream) for stream in streams]
        if all(batch.last for batch, _ in parts):
            break
        rows += [row for batch, _ in parts for row in rows_of(batch)]
        assert merge_cursors([cursor for _, cursor in parts])["next_row"] == parts[0][1]["next_row"]
    assert all(stream.exhausted for stream in streams)
    assert {source.state for stream in streams for source in stream.sources} == {"finished"}
    for stream in streams:
        held_out |= {text for _, text in stream.held_out.take_new()}
        stream.close()
    assert Counter(read_texts(rows)) + Counter(text.encode() for text in held_out) == Counter(text.encode() for text in texts)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_rank_stops_at_the_end(tmp_path: Path, workers: int) -> None:
    write_jsonl(tmp_path / "a.jsonl", paragraphs(200))
    data = data_config(files("a", tmp_path / "a.jsonl"))
    alone = [(rows_of(batch), cursor) for batch, cursor in opened(data, 0)]
    with opened(data, workers) as stream:
        assert [(rows_of(batch), cursor) for batch, cursor in stream] == alone
        assert list(stream) == [] and stream.exhausted and stream.cursor()["next_row"] == alone[-1][1]["next_row"]
        told = [event for event in stream.events() if event["event"] == "source"]
        (source,) = stream.sources
    assert told == [{"event": "source", "name": "a", "state": "finished", "reason": ""}]
    assert source.documents == sum(state[8] for state in alone[-1][1]["lanes"].values()) and not loaders()


def test_what_happens_to_a_source_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write_jsonl(tmp_path / "local.jsonl", [*paragraphs(100), "", "x" * 5])
    dead = {"type": "hf", "name": "dead", "dataset": "some/words"}
    data = data_config(dead, files("local", tmp_path / "local.jsonl"), files("nowhere", tmp_path / "nowhere"))
    with opened(data, 2) as stream:
        assert [(source.name, source.state) for source in stream.sources] == [("dead", "reading"), ("local", "reading"), ("nowhere", "reading")]
        _, cursor = next(stream)
        states = {source.name: source.state for source in stream.sources}
        told = [event["name"] for event in stream.events() if event["event"] == "source"]
    assert states == {"dead": "waiting", "local": "reading", "nowhere": "given up"}
    assert sorted(told) == ["dead", "nowhere"]
    assert cursor["events"] == [[0, "dead", "aside", 0, 1], [0, "nowhere", "aside", 0, 1]]


def test_failures_come_as_what_they_are(tmp_path: Path, mix: DataConfig) -> None:
    data = data_config(files("nowhere", tmp_path / "nowhere"))
    with opened(data, 2) as stream:
        for _ in range(2):
            with pytest.raises(SourcesFailed, match="there is no") as error:
                next(stream)
    assert list(error.value.reasons) == ["nowhere"] and "\n" not in str(error.value)
    for workers, world_size in ((5, 1), (3, 6), (-1, 1)):
        with pytest.raises(ValueError, match="loader processes") as wrong:
            open_stream(mix, byte_tokenizer(), 37, 6, 0, world_size, options=Options(workers))
        assert "\n" not in str(wrong.value)


def test_a_killed_loader_is_noticed(mix: DataConfig) -> None:
    with opened(mix, 2) as stream:
        next(stream)
        loaders()[1].kill()
        with pytest.raises(RuntimeError, match=r"loader process was ended from outside \(SIGKILL\)") as error:
            list(islice(stream, 100))
    assert "\n" not in str(error.value) and not loaders()


def test_a_loader_that_can_not_start_says_why(mix: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizers.py").write_text('raise ImportError("libtok.so: cannot open shared object file")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with opened(mix, 2) as stream, pytest.raises(RuntimeError, match=r"ended with status 1 \(ImportError: libtok.so: cannot open") as error:
        next(stream)
    assert "\n" not in str(error.value) and not loaders()
    (story,) = error.value.__notes__
    assert story.startswith("Traceback") and "data_sources/worker.py" in story


def test_closing_is_quick_and_leaves_nothing(mix: DataConfig) -> None:
    for read in (0, 1):
        stream = opened(mix, 2)
        list(islice(stream, read))
        began = time.monotonic()
        stream.close()
        stream.close()
        assert time.monotonic() - began < 4 and not loaders()
        with pytest.raises(Closed):
            list(islice(stream, 9))


def test_ctrl_c_is_for_the_parent(mix: DataConfig) -> None:
    with opened(mix, 1) as stream:
        before = rows_of(next(stream)[0])
        loaders()[0].send_signal(signal.SIGINT)
        assert before and len(list(islice(stream, 20))) == 20


LEAVING = """
import sys
from itertools import islice
from data_sources import Prefetch, open_stream
from data_sources.stream import Options
from tests.data_sources.streams import byte_tokenizer, data_config, files

data = data_config(files("a", sys.argv[1]), files("b", sys.argv[1], repeat=True))
stream = open_stream(data, byte_tokenizer(), 37, 24, options=Options(2))
ahead = Prefetch(stream, 2) if sys.argv[2] == "prefetch" else stream
print(len(list(islice(ahead, 5))), flush=True)
if sys.argv[2] == "killed":
    import psutil, time
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(100)
"""


def leaving(path: Path, how: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(LEAVING), str(path), how]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": paragraphs(600)}), tmp_path / "a.parquet", row_group_size=50)
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("how", ["plain", "prefetch"])
def test_just_leaving_ends_with_status_0(parquet: Path, how: str) -> None:
    ended = subprocess.run(leaving(parquet, how), capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "5\n", "")


def test_loaders_die_with_a_parent_that_is_killed(parquet: Path) -> None:
    with subprocess.Popen(leaving(parquet, "killed"), stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "5\n"
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2 and all(map(is_alive, children))
        parent.kill()
    until(lambda: not any(map(is_alive, children)))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_loader_needs_neither_torch_nor_transformers(mix: DataConfig) -> None:
    with opened(mix, 1) as stream:
        next(stream)
        (loader,) = loaders()
        mapped = {os.path.basename(file.path) for file in loader.memory_maps()}
    assert not any("torch" in name for name in mapped)
