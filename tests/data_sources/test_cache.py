"""What was fetched is not fetched again, also by another process, and without the Hub reading goes on as far as it was fetched."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_sources.config import DataConfig
from data_sources.disk_cache import DiskCache
from data_sources.documents import PassingFault, Reader
from data_sources.readers import open_reader
from tests.data_sources.streams import all_texts, data_config, paragraphs
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

SOURCE = {"type": "hf", "name": "a", "dataset": "some/words"}
ROOT = Path(__file__).parents[2]


def reader(path: Path, dataset: str = "some/words", **options: Any) -> Reader:
    data = data_config({**SOURCE, "dataset": dataset}, cache={"path": str(path), **options})
    return open_reader(data.sources[0], data.cache)


def stored(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in stored(path))


def fetched(hub: LoopbackHub) -> int:
    """Bytes of files that were asked for, without the one that tells a file's size."""
    ranges = [request.range.removeprefix("bytes=").split("-") for request in hub.log if request.range and request.range != "bytes=0-0"]
    return sum(int(end) - int(start) + 1 for start, end in ranges)


def refuse_all(answer: Answer, path: str) -> bool:
    answer.refuse(503)
    return True


# The folder


def test_what_is_kept_comes_back_and_nothing_else(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000, print)
    cache.put("one", b"1" * 100)
    cache.put("one", b"2" * 100)
    cache.put("none", b"")
    assert (cache.get("one"), cache.get("none"), cache.get("two")) == (b"2" * 100, b"", None)
    cache.drop("one")
    assert cache.get("one") is None


@pytest.mark.parametrize("harm", [lambda old: old[:-1], lambda old: b"", lambda old: old + b"x", lambda old: old[:50] + b"y" + old[51:]])
def test_a_harmed_entry_counts_as_absent(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    cache = DiskCache(tmp_path, 10_000, print)
    cache.put("one", b"x" * 100)
    (file,) = stored(tmp_path)
    file.write_bytes(harm(file.read_bytes()))
    assert cache.get("one") is None and stored(tmp_path) == []


def test_one_entry_in_the_place_of_another_counts_as_absent(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000, print)
    cache.put("one", b"1")
    (one,) = stored(tmp_path)
    cache.put("two", b"2")
    (two,) = set(stored(tmp_path)) - {one}
    os.replace(two, one)
    assert cache.get("one") is None and cache.get("two") is None


def test_what_was_not_used_for_longest_goes_first_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    foreign = [tmp_path / "notes.txt", tmp_path / "ab" / "page.html", tmp_path / "lm" / ("a" * 40)]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(5000))
        os.utime(file, (0, 0))
    cache = DiskCache(tmp_path, 10_000, print)
    for number in range(9):
        cache.put(str(number), bytes(1000))
        time.sleep(0.01)
    assert cache.get("0") is not None and cache.get("1") is not None
    cache.touch(["2"])
    cache.put("9", bytes(1000))
    assert [number for number in range(10) if cache.get(str(number)) is None] == [3, 4], "down to nine tenths"
    assert size_of(tmp_path) - sum(file.stat().st_size for file in foreign if file.exists()) <= 10_000
    cache.put("too large", bytes(10_001))
    assert cache.get("too large") is None and all(file.exists() for file in foreign)


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *times: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    cache = DiskCache(tmp_path, 10_000, print)
    cache.put("one", b"1")
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("one") == b"1"


@pytest.mark.slow
def test_all_caches_in_a_folder_keep_to_one_limit(tmp_path: Path) -> None:
    (tmp_path / "same").symlink_to(tmp_path / "cache")
    caches = [DiskCache(tmp_path / ("same" if number % 2 else "cache"), 100_000, print) for number in range(64)]
    largest = 0

    def fill(number: int) -> None:
        nonlocal largest
        for turn in range(12):
            caches[number].put(f"{number} {turn}", bytes(1000))
            largest = max(largest, sum(_size(file) for file in stored(tmp_path / "cache")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(64)))
    assert 80_000 < largest <= 100_000


def test_readers_of_one_folder_count_together(hub: LoopbackHub, tmp_path: Path) -> None:
    texts = [os.urandom(500).hex() for _ in range(200)]
    for name in ("some/words", "other/words"):
        make_dataset(tmp_path / "hub", name, [{"text": text} for text in texts], shards=1, row_group_size=10)
    limit = next((tmp_path / "hub").rglob("*.parquet")).stat().st_size
    readers = [reader(tmp_path / "cache", dataset=name, gigabytes=limit / 1e9) for name in ("some/words", "other/words")]
    for block in range(20):
        for one in readers:
            assert one.read(0, block)
            assert size_of(tmp_path / "cache") <= limit


def test_what_a_lost_process_left_goes(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3000, print)
    cache.put("one", bytes(1000))
    (file,) = stored(tmp_path)
    left = file.with_name(f"{file.name}.1-2.tmp")
    left.write_bytes(bytes(1000))
    os.utime(left, (1, 1))
    DiskCache(tmp_path, 3000, print).put("two", bytes(1000))
    assert not left.exists() and cache.get("one") is not None


FULL = """
    import json, resource, sys
    from data_sources.disk_cache import DiskCache
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    told = []
    cache = DiskCache(sys.argv[1], 1 << 30, told.append)
    for name, size in (("small", 100), ("large", 1000), ("larger", 1100), ("after", 100)):
        cache.put(name, bytes(size))
    sys.stderr.write(json.dumps([told, [name for name in ("small", "large", "larger", "after") if cache.get(name) is not None]]))
"""


def test_a_full_disk_is_told_of_once(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    told, there = json.loads(done.stderr)
    assert there == ["small"] and len(told) == 1 and "can't be written (File too large); reading goes on" in told[0]
    assert len(stored(tmp_path)) == 1, "nothing written aside is left"


def test_a_folder_that_can_not_be_made(hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(50)])
    (tmp_path / "file").write_text("in the way")
    source = reader(tmp_path / "file" / "cache")
    assert all_texts(source) == paragraphs(50)
    assert ["can't be written (Not a directory)" in line for line in source.notices()] == [True]


MANY = """
    import sys
    from data_sources.disk_cache import DiskCache
    told = []
    cache = DiskCache(sys.argv[1], 200_000, told.append)
    for turn in range(400):
        key = str((turn * int(sys.argv[2])) % 97)
        data = cache.get(key)
        assert data is None or data == key.encode() * 1500, key
        if data is None:
            cache.put(key, key.encode() * 1500)
    assert told == [], told
"""


def test_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(MANY), str(tmp_path)]
    working = [subprocess.Popen([*command, step], cwd=ROOT) for step in ("5", "7", "11")]
    largest = 0
    while any(process.poll() is None for process in working):
        largest = max(largest, sum(_size(file) for file in stored(tmp_path)))
    assert [process.wait() for process in working] == [0, 0, 0]
    assert 100_000 < largest < 200_000 * (1 + 3 / 32) + 3 * 3100


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


# The reader

READING = """
    import json, sys
    from data_sources.readers import open_reader
    from tests.data_sources.streams import all_texts, data_config
    for dataset in sys.argv[2:]:
        data = data_config({"type": "hf", "name": "a", "dataset": dataset}, cache={"path": sys.argv[1]})
        source = open_reader(data.sources[0], data.cache)
        print(json.dumps([all_texts(source), source.notices()]))
"""


def test_a_fresh_process_reads_on_without_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    names = {format: f"some/{format}".replace(".", "-") for format in ("parquet", "json.gz")}
    for format, name in names.items():
        make_dataset(tmp_path / "hub", name, [{"text": text} for text in paragraphs(300)], row_group_size=40, format=format)
        assert all_texts(reader(tmp_path / "cache", dataset=name)) == paragraphs(300)
    assert fetched(hub) > 10_000
    del hub.log[:]
    for name in names.values():
        assert all_texts(reader(tmp_path / "cache", dataset=name)) == paragraphs(300)
    assert fetched(hub) == 0 and hub.log
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", textwrap.dedent(READING), str(tmp_path / "cache"), *names.values()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        texts, (notice,) = json.loads(line)
        assert texts == paragraphs(300)
        assert "can't be reached" in notice and notice.endswith("read from the cache as far as that goes")
    assert len(done.stdout.splitlines()) == 2


def test_where_bytes_are_missing_it_waits_and_goes_on(hub: LoopbackHub, tmp_path: Path) -> None:
    texts = paragraphs(200)
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in texts], shards=1, row_group_size=50)
    first = [document.text for document in reader(tmp_path / "cache").read(0, 1) or []]
    hub._server.fault = refuse_all
    source = reader(tmp_path / "cache")
    assert [document.text for document in source.read(0, 1) or []] == first == texts[50:100]
    with pytest.raises(PassingFault, match="busy"):
        source.read(0, 2)
    hub._server.fault = None
    assert all_texts(source) == texts


def test_nothing_kept_and_no_hub(point_at: Callable[[str], None], tmp_path: Path) -> None:
    point_at("http://127.0.0.1:9")
    with pytest.raises(PassingFault, match="can't be reached"):
        reader(tmp_path / "cache").shards()


def test_a_new_revision_fetches_what_is_new(hub: LoopbackHub, tmp_path: Path) -> None:
    home = make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(300)], shards=3)
    assert all_texts(reader(tmp_path / "cache")) == paragraphs(300)
    (home / "CHANGES.md").write_text("Another revision.")
    make_dataset(tmp_path / "new", "some/words", [{"text": text} for text in paragraphs(100, start=400)], shards=1)
    changed = sorted((home / "data").iterdir())[1]
    changed.write_bytes(next((tmp_path / "new").rglob("*.parquet")).read_bytes())
    del hub.log[:]
    assert all_texts(reader(tmp_path / "cache")) == paragraphs(100) + paragraphs(100, start=400) + paragraphs(100, start=200)
    assert 0 < fetched(hub) <= 2 * changed.stat().st_size
    assert {request.path for request in hub.log if request.range and request.range != "bytes=0-0"} == {
        request.path for request in hub.log if request.path.endswith(changed.name) and request.range
    }


def test_a_file_that_changed_under_the_same_revision(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.loopback_hub._commit", lambda repo: "c0ffee")
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(100)], shards=1, row_group_size=50)
    assert len(reader(tmp_path / "cache").read(0, 0) or []) == 50
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(100, start=200)], shards=1, row_group_size=50)
    source = reader(tmp_path / "cache")
    with pytest.raises(PassingFault, match="another than it was"):
        all_texts(source)
    assert all_texts(source) == paragraphs(100, start=200)


def test_harmed_entries_are_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(200)])
    assert all_texts(reader(tmp_path / "cache")) == paragraphs(200)
    for number, file in enumerate(sorted(stored(tmp_path / "cache"))):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if number % 2 else content[:-1] + bytes([content[-1] ^ 1]))
    assert all_texts(reader(tmp_path / "cache")) == paragraphs(200)


def test_a_small_cache_keeps_what_the_rest_is_of_no_use_without(hub: LoopbackHub, tmp_path: Path) -> None:
    """The list of files, their sizes and the descriptions at their ends are not those that go first."""
    texts = [text + os.urandom(500).hex() for text in paragraphs(400)]
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in texts], shards=1, row_group_size=20)
    whole = next((tmp_path / "hub").rglob("*.parquet")).stat().st_size
    source = reader(tmp_path / "cache", gigabytes=whole / 2 / 1e9)
    read = [source.read(0, block) for block in range(source.blocks(0) or 0)]
    assert size_of(tmp_path / "cache") <= whole / 2
    hub._server.fault = refuse_all
    again = reader(tmp_path / "cache", gigabytes=whole / 2 / 1e9)
    assert again.read(0, len(read) - 1) == read[-1] and len(read) == 20
    with pytest.raises(PassingFault):
        again.read(0, 1)


# The preset


@pytest.mark.parametrize(
    ("written", "meant"), [(None, None), (False, None), (True, ("./cache", 10.0)), ({}, ("./cache", 10.0)), ({"path": "c", "gigabytes": 2}, ("c", 2.0))]
)
def test_how_a_preset_says_it(written: Any, meant: tuple[str, float] | None) -> None:
    cache = data_config(SOURCE, cache=written).cache
    assert (cache and (cache.path, cache.gigabytes)) == meant
    again = DataConfig.model_validate(data_config(SOURCE, cache=written).model_dump(mode="json"))
    assert again.cache == cache


@pytest.mark.parametrize("wrong", [1, "yes", {"gigabytes": 0}, {"folder": "c"}, {"path": ""}, {"gigabytes": "10"}])
def test_what_a_preset_may_not_say(wrong: Any) -> None:
    with pytest.raises(ValueError, match="cache"):
        data_config(SOURCE, cache=wrong)
