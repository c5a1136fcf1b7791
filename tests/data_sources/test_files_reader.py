"""Files and folders of every kind, and what is wrong with them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_sources import SourcesFailed, lines, open_stream
from data_sources.config import DataConfig
from data_sources.documents import GivenUp, Reader
from data_sources.lines import PackedLines, PlainLines
from data_sources.ranges import LocalFile
from data_sources.readers import open_reader
from data_sources.rows import as_text
from data_sources.text import chunks
from tests.data_sources.streams import all_texts, byte_tokenizer, data_config, files, paragraphs, write_jsonl


def reader(path: Path, **options: Any) -> Reader:
    return open_reader(DataConfig.model_validate({"sources": [files("a", path, **options)]}).sources[0])


def packed(path: Path, content: bytes) -> None:
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}[path.suffix](content))


def test_every_kind_in_a_deep_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.MD").write_text("# marked")
    write_jsonl(tmp_path / "c.jsonl", ["a line"])
    packed(tmp_path / "deep" / "d.txt.gz", b"packed")
    packed(tmp_path / "deep" / "e.jsonl.zst", b'{"text": "rows"}\n{"text": "more"}')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["parquet"], "other": [1]}), tmp_path / "deep" / "er" / "f.parquet")
    for ignored in (".hidden/x.txt", ".y.txt", "z.png", "deep/w.parquet.gz"):
        (tmp_path / ignored).write_text("never")
    os.symlink(tmp_path, tmp_path / "deep" / "loop")
    os.symlink(tmp_path / "nowhere.txt", tmp_path / "deep" / "dangling.txt")
    source = reader(tmp_path)
    assert sorted(all_texts(source)) == sorted(["plain", "# marked", "a line", "packed", "rows", "more", "parquet"])
    assert source.notices() == [
        "2 files or folders have names that begin with a dot and are passed over",
        "deep/dangling.txt is passed over: No such file or directory",
    ]


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    source = reader(tmp_path / "a.txt")
    assert source.shards() == ["a.txt"] and all_texts(source) == ["plain"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "picture.png"])
def test_nothing_to_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(GivenUp) as error:
        reader(tmp_path / name).shards()
    assert name in str(error.value) and "\n" not in str(error.value)


def test_broken_files_are_named_and_passed_over(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "good.jsonl", ["good"])
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    packed(tmp_path / "cut.txt.gz", os.urandom(30).hex().encode() * 1000)
    damaged = bytearray((tmp_path / "cut.txt.gz").read_bytes())
    damaged[40:60] = bytes(20)
    (tmp_path / "cut.txt.gz").write_bytes(damaged)
    (tmp_path / "other.jsonl").write_text('{"words": "a row without the column"}\n')
    (tmp_path / "torn.jsonl").write_bytes(b'{"text": "whole"}\n{"te\n[1, 2]\n\n{"text": "inv\xffalid"}\n')
    source = reader(tmp_path)
    texts = all_texts(source)
    assert {"good", "whole", "inv\ufffdalid"} <= set(texts)
    lines = "\n".join(source.notices())
    assert all(name in lines for name in ("bad.parquet", "cut.txt.gz", "other.jsonl")) and "2 lines were no JSON objects" in lines


@pytest.mark.parametrize("content", ['{"a": {"text": 1}, "b": {"text": 2}}', '{\n "a": {},\n "b": {}\n}', "", "\n\n", '{"text": null}'])
def test_a_source_without_text_is_given_up(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with open_stream(data_config(files("a", tmp_path)), byte_tokenizer(), 8, 8) as stream, pytest.raises(SourcesFailed, match="a: holds no text"):
        next(stream)


def test_short_prose_is_passed_over_and_a_short_answer_is_not(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps({"question": f"{n}?", "answer": "y"}) + "\n" for n in range(60)))
    write_jsonl(tmp_path / "prose.jsonl", ["short", "long enough for once", "tiny", "and another long one"])
    pairs = files("qa", tmp_path / "qa.jsonl", fields=["question", "answer"], format="{question} {answer}")
    data = data_config(pairs, files("prose", tmp_path / "prose.jsonl"), min_text_length=10)
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        list(stream)
        counted = {source.name: source.documents for source in stream.sources}
        held_out = [name for name, _ in stream.held_out.take_new()]
    assert counted == {"qa": 60 - held_out.count("qa"), "prose": 1} and held_out.count("prose") == 1


@pytest.mark.parametrize("block_bytes", [1, 7, 50, 333, 10_000])
@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_lines_of_blocks_are_the_lines_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, end: bytes, ending: str) -> None:
    wanted = [b"", b"a", b"x" * 400, b"", *(text.encode() for text in paragraphs(20)), b"\xff\xfe", b"last"]
    wanted = [line.replace(b"\n", b" ") for line in wanted]
    content = b"\n".join(wanted) + end
    (tmp_path / "a").write_bytes(content)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(lines, "FETCH_BYTES", 64)
    if ending:
        half = len(content) // 2
        (tmp_path / f"a{ending}").write_bytes(b"".join(PACKERS[ending](part) for part in (content[:half], content[half:])))
        found = PackedLines(LocalFile(str(tmp_path / f"a{ending}")), ending)
        blocks = [block for number in range(10_000) if (block := found.read(number)) is not None]
        again = [found.read(number) for number in reversed(range(len(blocks)))]
        assert again[::-1] == blocks
    else:
        found = PlainLines(LocalFile(str(tmp_path / "a")))
        blocks = [found.read(number) or [] for number in range(found.blocks() or 0)]
        assert found.read(len(blocks)) is None
    assert [line for block in blocks for line in block] == wanted


PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}


def test_a_long_text_file_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n\n".join(paragraphs(700))
    (tmp_path / "a.md").write_text(text)
    texts = all_texts(reader(tmp_path))
    assert texts == chunks(text) and max(map(len, texts)) <= 5000
    assert "".join("".join(texts).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (["b", "c"], "b"),
        ([], None),
        (None, None),
        (" ", None),
        (7, "7"),
        (True, None),
        ({"text": ["d"], "answer_start": [3]}, "d"),
        ([None, "e"], "e"),
    ],
)
def test_cells(value: Any, text: str | None) -> None:
    assert as_text(value) == text


def test_where_a_row_stands(tmp_path: Path) -> None:
    """Rows without text count, too; where only reading through would tell, they are counted within their block."""
    texts = [text if number % 3 else None for number, text in enumerate(paragraphs(60))]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=25)
    source = reader(tmp_path / "a.parquet")
    for block in range(3):
        for document in source.read(0, block) or []:
            assert document.place == f"a.parquet, row {texts.index(document.text) + 1}"
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert {document.text: document.place for document in reader(tmp_path / "b.jsonl").read(0, 0) or []}[texts[4]] == "b.jsonl, row 5"
