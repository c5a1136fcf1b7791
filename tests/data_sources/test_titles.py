"""Titles travel with their documents into the chunks that a memory takes in, and nothing that is read, nor its order, depends on them."""

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pypdf
import pytest
from pypdf.generic import ByteStringObject, DictionaryObject, NameObject, NumberObject, TextStringObject

from data_sources import open_stream
from data_sources import titles as titles_module
from data_sources.config import DataConfig
from data_sources.documents import Reader
from data_sources.pdf import PAGES, PdfFiles
from data_sources.pdf_process import Limits
from data_sources.readers import open_reader
from data_sources.rows import title_of
from data_sources.stream import Options
from data_sources.text import HEADING
from tests.data_sources.pdf_builder import built, column
from tests.data_sources.streams import all_texts, byte_tokenizer, data_config, files, paragraphs, rows_of
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

TITLES = pyarrow.field("title", pyarrow.string())
EVIL = "\x1b]0;owned\x07 \x1b[2J [red]and[/]\r\n\u2028 \u202e" + "longword" * 5000 + "\ud800"


def titled(path: Path | str, **options: Any) -> Reader:
    return open_reader(data_config(files("a", path, **options)).sources[0], titled=True)


def told(source: Reader, shard: int = 0) -> list[tuple[str, str]]:
    """Each document's text and title."""
    documents = [document for block in range(source.blocks(shard) or 1) for document in source.read(shard, block) or ()]
    return [(document.text, document.title) for document in documents]


def write_table(path: Path, titles: Any, texts: Sequence[str | None], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "title": titles}), path, **options)
    return path


def mixed(folder: Path, **options: Any) -> DataConfig:
    """Two sources, of parquet and of JSON lines."""
    return data_config(files("table", folder / "table", **options), files("lines", folder / "lines.jsonl", repeat=True, **options))


def write_mixed(folder: Path) -> list[str]:
    """The files of `mixed`, in which every tenth document has no title. All texts, in their order."""
    texts = paragraphs(460)
    titles = [None if number % 10 == 0 else f"Chapter {number}" for number in range(len(texts))]
    for shard in range(2):
        part = slice(150 * shard, 150 * (shard + 1))
        write_table(folder / "table" / f"{shard}.parquet", titles[part], texts[part], row_group_size=40)
    lines = [{"text": text, "title": title} for text, title in zip(texts[300:], titles[300:], strict=True)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return texts


def read(data: DataConfig, batches: int = 12, world_size: int = 1, **options: Any) -> list[list[Any]]:
    """Batches with their cursors, of each rank."""
    found = []
    for rank in range(world_size):
        with open_stream(data, byte_tokenizer(), 37, 48 // world_size, rank, world_size, options=Options(**options)) as stream:
            found.append(list(islice(stream, batches)))
    return found


# In what a memory is told


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_a_passage_tells_its_title_or_its_first_line(tmp_path: Path, world_size: int, workers: int) -> None:
    texts = write_mixed(tmp_path)
    abouts = {
        about for rank in read(mixed(tmp_path), 30, world_size, chunk_size=8, workers=workers) for batch, _ in rank for about in batch.chunks.about.values()
    }
    seen = [0, 0]
    for about in abouts:
        place, _, title = about.place.partition(": ")
        name, _, row = place.partition(", row ")
        number = int(row) - 1 + {"0.parquet": 0, "1.parquet": 150, "lines.jsonl": 300}[name]
        line = " ".join(texts[number].splitlines()[0].split())
        wanted = f"Chapter {number}" if number % 10 else line if len(line) <= HEADING else f"{line[:HEADING].rstrip()}..."
        assert title == wanted
        seen[number % 10 > 0] += 1
    assert seen[0] > 10 and seen[1] > 100


def test_the_same_is_read_with_titles_and_without(tmp_path: Path) -> None:
    """Rows, cursors and chunks, whether titles are looked for or not, and the same rows from files that have none."""
    write_mixed(tmp_path)
    (with_titles,) = read(mixed(tmp_path), chunk_size=8)
    (without,) = read(mixed(tmp_path, title_field=None), chunk_size=8)
    (unasked,) = read(mixed(tmp_path))
    for (batch, cursor), (same, same_cursor), (bare, bare_cursor) in zip(with_titles, without, unasked, strict=True):
        assert rows_of(batch) == rows_of(same) == rows_of(bare) and cursor == same_cursor == bare_cursor
        *columns, about = batch.chunks
        *same_columns, same_about = same.chunks
        assert all((one == other).all() for one, other in zip(columns, same_columns, strict=True)) and list(about) == list(same_about)
        assert about != same_about
    for path in sorted((tmp_path / "table").iterdir()):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path, columns=["text"]), path, row_group_size=40)
    (of_bare_files,) = read(mixed(tmp_path), chunk_size=8)
    for (batch, cursor), (bare, bare_cursor) in zip(with_titles, of_bare_files, strict=True):
        assert rows_of(batch) == rows_of(bare) and cursor["lanes"] == bare_cursor["lanes"]


# Tables


@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
    ids=str,
)
def test_titles_of_a_table(tmp_path: Path, kind: pyarrow.DataType) -> None:
    """Of the rows that hold text, over row groups, however the titles are kept; blank ones are none."""
    titles = pyarrow.array(["one", None, "lost", "", " \n", "\u200b", "  two\nlines ", "one"]).cast(kind)
    texts = ["a", "b", None, "c", "d", "e", "f", "g"]
    write_table(tmp_path / "a.parquet", titles, texts, row_group_size=5)
    expected = [("a", "one"), ("b", ""), ("c", ""), ("d", ""), ("e", ""), ("f", "two lines"), ("g", "one")]
    assert told(titled(tmp_path)) == expected
    assert told(open_reader(data_config(files("a", tmp_path)).sources[0])) == [(text, "") for text, _ in expected], "nobody asked"


@pytest.mark.parametrize("plain", [False, True])
def test_titles_that_are_no_utf8_are_mended(tmp_path: Path, plain: bool) -> None:
    cells = pyarrow.array([b"whole", b"half \xff \xc3\xa4"])
    write_table(tmp_path / "a.parquet", pyarrow.Array.from_buffers(pyarrow.string(), 2, cells.buffers()), ["a", "b"], use_dictionary=not plain)
    assert told(titled(tmp_path)) == [("a", "whole"), ("b", "half \ufffd ä")]


@pytest.mark.parametrize(
    ("name", "cell", "options", "title"),
    [
        ("title", "one", {}, "one"),
        ("Title", "one", {}, ""),
        ("Title", "one", {"title_field": "Title"}, "one"),
        ("title", "one", {"title_field": None}, ""),
        ("title", 1, {}, ""),
        ("title", ["one"], {}, ""),
        ("title", {"text": "one"}, {}, ""),
        ("title", "one", {"fields": ["title", "text"]}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
def test_which_column_is_a_title(tmp_path: Path, name: str, cell: Any, options: dict[str, Any], title: str, ending: str) -> None:
    """A text of that very name, that is not read already."""
    row = {"text": "words", name: cell}
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    else:
        (tmp_path / f"a.{ending}").write_text(json.dumps([row] if ending == "json" else row))
    ((text, found),) = told(titled(tmp_path, **options))
    assert text in ("words", "one\nwords") and found == title


def test_damaged_titles_cost_no_text(tmp_path: Path) -> None:
    texts = paragraphs(300)
    path = write_table(tmp_path / "a.parquet", [f"Chapter {number}" for number in range(300)], texts, row_group_size=100)
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(1)
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    held = bytearray(path.read_bytes())
    held[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(held)
    source = titled(tmp_path)
    found = told(source)
    assert [text for text, _ in found] == texts and source.notices() == []
    assert [title for _, title in found] == [f"Chapter {number}" for number in range(100)] + [""] * 200


def test_nothing_more_is_fetched_unasked(hub: LoopbackHub, tmp_path: Path) -> None:
    """One range more for each row group, and the others as they are without titles."""
    rows = [{"text": text, "title": f"Chapter {number}"} for number, text in enumerate(paragraphs(200))]
    make_dataset(tmp_path / "hub", "some/words", rows, shards=1, row_group_size=50)
    data = data_config({"type": "hf", "name": "a", "dataset": "some/words"})
    asked = []
    for way in ({}, {"chunk_size": 8}):
        hub.log.clear()
        ((*_, (batch, _)),) = read(data, **way)
        assert (batch.chunks is not None) == bool(way)
        asked.append([request.range for request in hub.log if request.range])
    assert len(asked[1]) == len(asked[0]) + 4 and [part for part in asked[1] if part in asked[0]] == asked[0]


def test_what_the_cache_holds_is_read_where_titles_can_not_be_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    rows = [{"text": text, "title": f"Chapter {number}"} for number, text in enumerate(paragraphs(200))]
    make_dataset(tmp_path / "hub", "some/words", rows, shards=1, row_group_size=50)
    data = data_config({"type": "hf", "name": "a", "dataset": "some/words"}, cache={"path": str(tmp_path / "cache")})
    assert len(all_texts(open_reader(data.sources[0], data.cache))) == 200

    def refuse_files(answer: Answer, path: str) -> bool:
        if path.endswith(".parquet"):
            answer.refuse(503)
        return path.endswith(".parquet")

    hub._server.fault = refuse_files
    hub.log.clear()
    assert told(open_reader(data.sources[0], data.cache, titled=True)) == [(row["text"], "") for row in rows]
    assert len([request for request in hub.log if request.path.endswith(".parquet")]) == 1, "after the first trouble nobody asks again"
    hub._server.fault = None
    assert told(open_reader(data.sources[0], data.cache, titled=True)) == [(row["text"], row["title"]) for row in rows]


# Made to hurt


def test_a_hostile_title_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "words", "title": EVIL}))
    write_table(tmp_path / "b.parquet", [EVIL[:-1]], ["words"])
    source = titled(tmp_path)
    for shard in range(2):
        ((_, title),) = told(source, shard)
        assert title.startswith("\x1b]0;owned\x07 \x1b[2J [red]and[/] \u202elongword") and len(title) == HEADING + 3
        assert title.splitlines() == [title] and title.encode()
    assert [title_of(cell) for cell in ("\ud800", "\x1b\x07", "\u202e \u200b", b"bytes", 7, None, "!?")] == ["\ufffd", "", "", "", "", "", "!?"]


LONG = """
    import resource, sys
    from data_sources.config import DataConfig
    from data_sources.readers import open_reader
    source = DataConfig.model_validate({"sources": [{"type": "files", "path": sys.argv[1]}]}).sources[0]
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    found = open_reader(source, titled=True).read(0, 0)
    print(len(found), len({document.title for document in found}), found[0].title)
"""


def test_one_long_title_of_many_rows_is_held_once(tmp_path: Path) -> None:
    """60 GB, were it written out row by row."""
    titles = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), pyarrow.array(["x" * 3_000_000]))
    write_table(tmp_path / "a.parquet", titles, ["words"] * 20_000, compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    command = [sys.executable, "-c", textwrap.dedent(LONG), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["20000", "1", "x" * HEADING + "..."], done.stderr


def test_more_titles_than_anybody_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(titles_module, "MOST_BYTES", 1_000_000)
    write_table(tmp_path / "a.parquet", ["x" * 1_000_000, "short"], ["a", "b"], compression="zstd", row_group_size=1)
    assert told(titled(tmp_path)) == [("a", ""), ("b", "")]
    write_table(tmp_path / "a.parquet", ["x" * 900_000, "short"], ["a", "b"], row_group_size=1)
    assert told(titled(tmp_path)) == [("a", "x" * HEADING + "..."), ("b", "short")]


# PDFs


def write_pdf(path: Path, title: Any, pages: int = 2, words: str = "These are the words") -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(built([column([f"{words} of page {page}."]) for page in range(pages)])))
    if title is not None:
        writer._info = DictionaryObject({NameObject("/Title"): title})
    writer.write(path)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        (None, ""),
        (TextStringObject("A Guide to Rivers"), "A Guide to Rivers"),
        (TextStringObject("川の案内"), "川の案内"),
        (TextStringObject(" \r\n"), ""),
        (TextStringObject("Two\nlines"), "Two lines"),
        (TextStringObject("word " * 20_000), f"{'word ' * 12}".rstrip() + "..."),
        (NumberObject(7), ""),
        (ByteStringObject(b"\x9f\x9f"), ""),
        (DictionaryObject(), ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_titles_of_pdfs(tmp_path: Path, title: Any, shown: str) -> None:
    write_pdf(tmp_path / "a.pdf", title)
    for way, expected in ((True, shown), (False, "")):
        reader = PdfFiles(tmp_path, titled=way)
        ((text, found),) = told(reader)
        assert text == "These are the words of page 0.\n\nThese are the words of page 1." and found == expected
        reader.close()


def test_the_passages_of_a_pdf_tell_its_title(tmp_path: Path) -> None:
    for number in range(60):
        write_pdf(tmp_path / f"{number}.pdf", TextStringObject(f"Volume {number}"), 1, f"Words of volume {number}")
    data = data_config({"type": "pdf", "name": "a", "path": str(tmp_path)})
    (with_titles,), (unasked,) = read(data, 3, chunk_size=8), read(data, 3)
    places = {about.place for batch, _ in with_titles for about in batch.chunks.about.values()}
    assert len(places) > 30 and places < {f"{number}.pdf, page 1: Volume {number}" for number in range(60)}
    assert [(rows_of(batch), cursor) for batch, cursor in with_titles] == [(rows_of(batch), cursor) for batch, cursor in unasked]


def test_a_description_that_takes_too_long_costs_the_title_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is lost over the title is another's when the next pages are asked for."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text("import pypdf\ndef title(self):\n    while True: pass\npypdf.PdfReader.metadata = property(title)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    write_pdf(tmp_path / "a.pdf", TextStringObject("A Guide"), pages=PAGES + 1)
    found = []
    for way in (True, False):
        reader = PdfFiles(tmp_path / "a.pdf", Limits(seconds=1, memory=400 << 20), titled=way)
        found.append((reader.blocks(0), told(reader), reader.notices()))
        reader.close()
    assert found[0] == found[1] and found[0][0] == 2 and found[0][1] and not found[0][2]
