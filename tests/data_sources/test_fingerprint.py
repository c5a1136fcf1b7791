"""A source that is not what it was is told of: whatever was done to its files, and not where they are the same."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sources import fingerprint as fingerprint_module
from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.fingerprint import PIECE_BYTES, WHOLE_BYTES, change, fingerprint, text_mark
from data_sources.ranges import LocalFile
from data_sources.readers import open_reader
from data_sources.stream import Options, Stream
from tests.data_sources.pdf_builder import built, column
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, write_jsonl
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

OTHER_TEXT, OTHER_FILES = "its files hold other text", "its files are others"


def changes(stream: Stream) -> list[tuple[str, str]]:
    return [(event["source"], event["text"].partition(" than ")[0]) for event in stream.events() if event["event"] == "changed"]


def opened(data: DataConfig, cursor: Any = None, workers: int = 0) -> Stream:
    return open_stream(data, byte_tokenizer(), 37, 48, cursor=cursor, options=Options(workers))


def found(data: DataConfig, cursor: Any, workers: int = 0) -> list[tuple[str, str]]:
    with opened(data, cursor, workers) as stream:
        assert stream.reached(30)
        return changes(stream)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """A folder of files of many kinds, and another source that stays."""
    texts = paragraphs(200)
    for number in range(4):
        write_jsonl(tmp_path / "notes" / f"{number}.jsonl", texts[40 * number : 40 * (number + 1)])
    (tmp_path / "notes" / "deep").mkdir()
    (tmp_path / "notes" / "deep" / "a.txt").write_text("\n\n".join(texts[160:]))
    write_jsonl(tmp_path / "other.jsonl", paragraphs(100, start=300))
    return data_config(files("notes", tmp_path / "notes"), files("other", tmp_path / "other.jsonl"))


def copied(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def of_the_same_size(folder: Path) -> None:
    file = folder / "2.jsonl"
    content = bytearray(file.read_bytes())
    place = content.index(b" the ", len(content) // 2)
    content[place : place + 5] = b" eht "
    file.write_bytes(content)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, ""),
    "copied": (copied, ""),
    "touched": (lambda folder: os.utime(folder / "1.jsonl", (1, 1)), ""),
    "read only": (lambda folder: (folder / "1.jsonl").chmod(0o444), ""),
    "what is not read": (lambda folder: (folder / "picture.png").write_bytes(b"png"), ""),
    "a letter": (of_the_same_size, OTHER_TEXT),
    "grown": (lambda folder: write_jsonl(folder / "1.jsonl", paragraphs(60, start=500)), OTHER_TEXT),
    "emptied": (lambda folder: (folder / "deep" / "a.txt").write_text(""), OTHER_TEXT),
    "swapped": (lambda folder: [(folder / name).rename(folder / to) for name, to in (("0.jsonl", "x"), ("1.jsonl", "0.jsonl"), ("x", "1.jsonl"))], OTHER_TEXT),
    "added": (lambda folder: write_jsonl(folder / "9.jsonl", paragraphs(5)), OTHER_FILES),
    "removed": (lambda folder: (folder / "3.jsonl").unlink(), OTHER_FILES),
    "renamed": (lambda folder: (folder / "3.jsonl").rename(folder / "4.jsonl"), OTHER_FILES),
    "gone": (shutil.rmtree, "it can't be read any more"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_to_the_files_of_a_source(tmp_path: Path, data: DataConfig, kind: str) -> None:
    cursor = global_batches(data, 2)[-1][1]
    work, said = KINDS[kind]
    work(tmp_path / "notes")
    assert found(data, cursor) == ([("notes", said)] if said else [])
    assert found(data, None) == [], "a source that was never read can't have changed"


def test_loaders_and_a_source_that_was_away(tmp_path: Path, data: DataConfig) -> None:
    """Told once whoever reads it, and also of what an earlier mix read; what goes on from there knows the new text."""
    alone = data.model_copy(update={"sources": data.sources[1:]})
    cursor = global_batches(alone, 2, cursor=global_batches(data, 2)[-1][1])[-1][1]
    of_the_same_size(tmp_path / "notes")
    assert found(alone, cursor) == []
    assert found(data, cursor, workers=2) == found(data, cursor) == [("notes", OTHER_TEXT)]
    assert found(data, global_batches(data, 1, cursor=cursor)[-1][1], workers=1) == []


def test_cursors_of_an_older_program_raise_no_alarm(tmp_path: Path, data: DataConfig) -> None:
    whole = global_batches(data, 3)
    cursor = whole[0][1]
    old = cursor | {"sources": [[name, mark.split(" ")[0]] for name, mark in cursor["sources"]]}
    assert found(data, old) == [] and [rows for rows, _ in global_batches(data, 2, cursor=old)] == [rows for rows, _ in whole[1:]]
    write_jsonl(tmp_path / "notes" / "9.jsonl", paragraphs(5))
    assert found(data, old) == [("notes", OTHER_FILES)], "names it knew"
    assert change("", "a text b") == change("a text b", "") == change("a", "a revision b") == ""


def test_pdfs(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    for name, text in (("a", "one two three"), ("b", "four five six")):
        (tmp_path / "papers" / f"{name}.pdf").write_bytes(built([column([text])]))
    source = data_config({"type": "pdf", "path": str(tmp_path / "papers")}).sources[0]

    def content() -> str:
        reader = open_reader(source)
        try:
            return reader.content()
        finally:
            reader.close()

    before = content()
    (tmp_path / "papers" / "b.pdf").write_bytes(built([column(["four five six"])]))
    assert content() == before
    (tmp_path / "papers" / "b.pdf").write_bytes(built([column(["four five sex"])]))
    assert content() != before


def test_a_new_revision_of_a_data_set(hub: LoopbackHub, tmp_path: Path) -> None:
    def publish(texts: list[str]) -> None:
        make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in texts], shards=2)

    publish(paragraphs(100))
    data = data_config({"type": "hf", "name": "remote", "dataset": "some/words"})
    cursor = global_batches(data, 1)[-1][1]
    assert found(data, cursor) == []
    publish(paragraphs(100, start=200))
    assert found(data, cursor) == [("remote", "the data set has a new revision since it was last read")]
    assert fingerprint(["datasets/a/b@1c/d.parquet"]) == fingerprint(["datasets/a/b@2f/d.parquet"]), "the names are the same"


def test_one_that_comes_back_changed(hub: LoopbackHub, tmp_path: Path, impatient: None) -> None:
    """The Hub can't be reached at the start; when it can, the data set is another."""
    texts = [{"text": text} for text in paragraphs(100)]
    make_dataset(tmp_path / "hub", "some/words", texts, shards=2)
    write_jsonl(tmp_path / "local.jsonl", paragraphs(100, start=300))
    data = data_config({"type": "hf", "name": "remote", "dataset": "some/words"}, files("local", tmp_path / "local.jsonl", repeat=True))
    cursor = global_batches(data, 1)[-1][1]

    def refuse(answer: Answer, path: str) -> bool:
        answer.refuse(503)
        return True

    hub._server.fault = refuse
    make_dataset(tmp_path / "hub", "some/words", texts[1:], shards=2)
    with opened(data, cursor) as stream:
        assert changes(stream) == []
        hub._server.fault = None
        told, until = [], time.monotonic() + 20
        while not told and time.monotonic() < until:
            next(stream)
            told = changes(stream)
            time.sleep(0.02)
        assert told == [("remote", "the data set has a new revision since it was last read")]
        next(stream)
        assert changes(stream) == []


def test_little_is_read_of_many_and_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    honest = LocalFile.read

    def counted(self: LocalFile, start: int, end: int) -> bytes:
        nonlocal read
        data = honest(self, start, end)
        read += len(data)
        return data

    monkeypatch.setattr(LocalFile, "read", counted)
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        file.truncate(1 << 36)
    text_mark([str(large)])
    assert read <= 16 * PIECE_BYTES
    (tmp_path / "small").write_bytes(random.Random(0).randbytes(3 * PIECE_BYTES))
    read = 0
    text_mark([str(tmp_path / "small")] * 10_000)
    assert read <= max(WHOLE_BYTES, 10_000 * 2 * PIECE_BYTES)
    monkeypatch.setattr(fingerprint_module, "MOST_OPENED", 20)
    read = 0
    text_mark([str(tmp_path / "small")] * 10_000)
    assert read <= 20 * 2 * PIECE_BYTES


def test_ends_and_size_of_a_large_file(tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    content = random.Random(0).randbytes(WHOLE_BYTES + PIECE_BYTES)
    large.write_bytes(content)
    before = text_mark([str(large)])
    marks = {before}
    for other in (b"x" + content[1:], content[:-1] + b"x", content + content[-PIECE_BYTES:], content[PIECE_BYTES:]):
        large.write_bytes(other)
        marks.add(text_mark([str(large)]))
    assert len(marks) == 5
    large.write_bytes(content)
    assert text_mark([str(large)]) == before


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "nowhere.txt").symlink_to("nothing")
    assert text_mark([str(tmp_path / name) for name in ("pipe.txt", "nowhere.txt", "gone.txt")]).startswith("text ")
