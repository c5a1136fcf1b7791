"""Files that hurt, and files with odd names: each is read as far as it goes, or named in a line, within bounds of memory."""

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_sources import lines, open_stream, rows
from data_sources.config import DataConfig
from data_sources.documents import GivenUp, Reader
from data_sources.lines import Damage, Either, Elements, PackedLines
from data_sources.pdf import PdfFiles
from data_sources.ranges import LocalFile
from data_sources.readers import open_reader
from tests.data_sources.pdf_builder import built, column
from tests.data_sources.streams import all_texts, byte_tokenizer, data_config, files, paragraphs

PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}


def reader(path: Path, **options: Any) -> Reader:
    return open_reader(DataConfig.model_validate({"sources": [files("a", path, **options)]}).sources[0])


def read(path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """Texts and notices."""
    source = reader(path, **options)
    return all_texts(source), source.notices()


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


# Packed files


@pytest.mark.parametrize("ending", PACKERS)
def test_a_file_that_ends_in_the_middle_is_read_so_far(tmp_path: Path, ending: str) -> None:
    written = [f"{text} {os.urandom(500).hex()}" for text in paragraphs(700)]
    whole = PACKERS[ending](jsonl(written))
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole[: len(whole) * 3 // 4])
    texts, notices = read(tmp_path)
    assert 300 < len(texts) < len(written) and texts == written[: len(texts)]
    assert notices[0] == f"a.jsonl{ending} ends in the middle"
    assert [line for line in notices[1:] if "1 lines were no JSON objects" not in line] == []


@pytest.mark.parametrize("ending", PACKERS)
def test_garbage_after_the_end_is_said_and_zeros_are_not(tmp_path: Path, ending: str) -> None:
    whole = PACKERS[ending](jsonl(paragraphs(30)))
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole + b"garbage")
    texts, notices = read(tmp_path)
    assert texts == paragraphs(30)
    assert len(notices) == 1 and notices[0].startswith(f"a.jsonl{ending} is damaged, and passed over past the damage")
    if ending == ".gz":
        (tmp_path / "a.jsonl.gz").write_bytes(whole + bytes(3000))
        assert read(tmp_path) == (paragraphs(30), [])


@pytest.mark.parametrize("ending", PACKERS)
def test_files_one_after_the_other(tmp_path: Path, ending: str) -> None:
    parts = [jsonl(paragraphs(10, start=10 * number)) for number in range(5)]
    skipped = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello" if ending == ".zst" else b""  # a frame that holds no text, as pzstd writes
    (tmp_path / f"a.jsonl{ending}").write_bytes(skipped + b"".join(map(PACKERS[ending], parts)))
    assert read(tmp_path) == (paragraphs(50), [])


def test_a_wrong_checksum_at_the_end_is_said(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(jsonl(paragraphs(30))))
    whole[-6] ^= 1
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    texts, notices = read(tmp_path)
    assert len(texts) > 20 and texts == paragraphs(len(texts)) and "is damaged" in notices[0]


def test_a_window_too_large_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(jsonl(["a"])) + packer.flush())
    texts, notices = read(tmp_path)
    assert texts == [] and "requires too much memory" in notices[0]


# Lines without end

BOMBS = """
    import resource, sys
    from data_sources import lines
    from data_sources.config import DataConfig
    from data_sources.readers import open_reader
    from tests.data_sources.streams import files
    sources = [open_reader(DataConfig.model_validate({"sources": [files("a", path)]}).sources[0]) for path in sys.argv[1:]]
    lines.SLACK = 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in sources:
        block, characters = 0, 0
        while (documents := source.read(0, block)) is not None:
            block, characters = block + 1, characters + sum(len(document.text) for document in documents)
        print(characters, *source.notices(), sep="|")
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
def test_bombs_are_bounded_in_memory(tmp_path: Path) -> None:
    """Half a gigabyte of zeros without a line end, of line ends, and of one row again and again; a plain line of 100 MB."""
    zeros, ends, row = bytes(1 << 20), b"\n" * (1 << 20), jsonl(["x" * 50_000]) * 20
    (tmp_path / "0.jsonl.gz").write_bytes(_packed(zeros, 100, gzip_=True))
    (tmp_path / "1.jsonl.zst").write_bytes(_packed(zeros, 500))
    (tmp_path / "2.jsonl.zst").write_bytes(_packed(ends, 300))
    (tmp_path / "3.jsonl.zst").write_bytes(_packed(row, 300))
    (tmp_path / "4.jsonl").write_bytes(jsonl(["before"]) + b'{"text": "' + b"x" * 100_000_000 + b'"}\n' + jsonl(["after"]))
    command = [sys.executable, "-c", textwrap.dedent(BOMBS), *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *said, megabytes = done.stdout.splitlines()
    bomb = "unpacks to more than 250 times its size, and is passed over past that"
    long, torn = "1 lines were longer than 64 million characters and were passed over", "1 lines were no JSON objects and were passed over"
    assert said[:3] == [f"0|0.jsonl.gz {bomb}|{torn}", f"0|1.jsonl.zst {bomb}|{torn}", f"0|2.jsonl.zst {bomb}"]
    assert f"|3.jsonl.zst {bomb}|{torn}" in said[3] and 4_000_000 < int(said[3].split("|")[0]) < 20_000_000
    assert said[4] == f"11|{long}"
    assert int(megabytes) < 400


def _packed(piece: bytes, times: int, gzip_: bool = False) -> bytes:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31) if gzip_ else zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [10, 50])
def test_one_rule_for_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block_bytes: int) -> None:
    monkeypatch.setattr(lines, "LONGEST", 60)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(lines, "FETCH_BYTES", 16)
    content = jsonl(["a", "x" * 48, "b", "y" * 49, "z" * 500, "c"])
    assert [len(line) for line in content.split(b"\n")] == [13, 60, 13, 61, 512, 13, 0]
    (tmp_path / f"a.jsonl{ending}").write_bytes(PACKERS.get(ending, bytes)(content))
    texts, notices = read(tmp_path)
    assert texts == ["a", "x" * 48, "b", "c"]
    assert notices[-1].startswith("2 lines were longer") or sum("lines were longer" in line for line in notices) == 2


def test_a_long_text_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST", 60)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "x" * 61, "y" * 60]}), tmp_path / "a.parquet")
    assert read(tmp_path) == (["a", "y" * 60], ["1 texts were longer than 64 million characters and were passed over"])


def test_one_value_for_a_million_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of parquet that are gigabytes of text."""
    column_ = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["x" * 100_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": column_}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    monkeypatch.setattr("data_sources.shards.LARGEST_GROUP", 50_000_000)
    texts, (line,) = read(tmp_path)
    assert texts == [] and line.startswith("a.parquet is passed over: its row group 0 unpacks to more than")


def test_no_flipped_bit_ends_the_process(tmp_path: Path) -> None:
    """pyarrow lets exceptions of C++ out where a column's statistics are damaged; of lists they are long."""
    path, whole = tmp_path / "a.parquet", pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": [["one word", "two"], ["three words"]], "title": [["a"], ["b", "c"]]})
    pyarrow.parquet.write_table(table, whole, compression="none", store_schema=False, use_dictionary=False)
    content, outcomes = whole.getvalue().to_pybytes(), set()
    for place in range(4, len(content) - 8):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        texts, notices = read(tmp_path)
        outcomes.add((len(texts), notices[0].partition(":")[0] if notices else ""))
    assert {(2, ""), (0, "a.parquet is passed over"), (0, "a part of a.parquet is damaged and passed over")} <= outcomes


def when(microseconds: int) -> Any:
    kind = pyarrow.struct([("text", pyarrow.string()), ("when", pyarrow.timestamp("us"))])
    return pyarrow.table({"text": pyarrow.array([{"text": "a text", "when": microseconds}], kind)})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], ["text", "text"]), "odd.parquet is passed over: "),
        (when(2**62), "a part of odd.parquet is damaged and passed over: "),
    ],
    ids=["two columns of one name", "a time that Python has none for"],
)
def test_a_whole_file_that_cannot_be_read_is_named_and_the_others_are_read(table: Any, said: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table, tmp_path / "odd.parquet")
    (tmp_path / "good.jsonl").write_bytes(jsonl(["good"]))
    texts, (line,) = read(tmp_path)
    assert texts == ["good"] and line.startswith(said)


def test_a_description_as_large_as_its_file_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_sources.shards.LARGEST_FOOTER", 1000)
    (tmp_path / "a.parquet").write_bytes(bytes(5000) + (4000).to_bytes(4, "little") + b"PAR1")
    (tmp_path / "b.parquet").write_bytes(bytes(5000))
    said = ["a.parquet is passed over: its description has more than 0 MB", "b.parquet is passed over: it is no parquet file, or its end is missing"]
    assert read(tmp_path) == ([], said)


def test_rows_of_which_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "same", f"key {number}": 1}) + "\n" for number in range(500)))
    source = reader(tmp_path)
    assert all_texts(source) == ["same"] * 500
    (shard,) = source._open.values()
    assert len(shard._columns) == 1


# Lines that are no rows


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a\\u0000b"}', "a\0b"),
        (b'{"text": "a\x00b"}', None),
        (b'{"text": "a\\ud800b"}', "a\ufffdb"),
        (b'{"text": "\\ud83d\\ude42"}', "\U0001f642"),
        (b'{"text": "inv\xffalid"}', "inv\ufffdalid"),
        (b'\xef\xbb\xbf{"text": "marked"}', "marked"),
        (b'{"text": ["first", "second"]}', "first"),
        (b'{"text": [["first"], "second"]}', "first"),
        (b'{"text": [{"text": "first"}]}', "first"),
        (b'{"text": 7}', "7"),
        (b'{"text": NaN}', None),
        (b'{"text": true}', None),
        (b'{"text": null}', None),
        (b'{"text": ' + b"[" * 900 + b'"deep"' + b"]" * 900 + b"}", None),
        (b"[" * 100_000, None),
        (b'{"text": ' + b"9" * 5000 + b"}", None),
        (b'["a list"]', None),
        (b'"a string"', None),
        (b"null", None),
        (b"{", None),
    ],
)
def test_lines_that_are_odd(tmp_path: Path, line: bytes, text: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["before"]) + line + b"\n" + jsonl(["after"]))
    texts, notices = read(tmp_path)
    assert texts == ["before", *([] if text is None else [text]), "after"]
    assert len(notices) == (text is None)


def test_odd_texts_reach_the_batches(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b\\u0000c"}\n' * 3)
    with open_stream(data_config(files("a", tmp_path)), byte_tokenizer(), 16, 48) as stream:
        (batch,) = [batch for batch, _ in stream]
    assert batch.valid == 3 * (1 + len("a\ufffdb\0c".encode()))


def test_a_first_row_without_the_field_does_not_speak_for_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"other": "x"}\n' + jsonl(["there"]))
    assert read(tmp_path) == (["there"], ["1 rows held no text and were passed over"])


# Arrays


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("sizes", [(7, 5), (100, 64), (10_000, 1 << 20)])
def test_an_array_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, ending: str, sizes: tuple[int, int]) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", sizes[0])
    monkeypatch.setattr(lines, "FETCH_BYTES", sizes[1])
    texts = [*paragraphs(20), 'quotes " and \\ and [brackets], {braces}', "é \u2028 \n ]"]
    content = b"\xef\xbb\xbf \n" + json.dumps([{"text": text, "more": [1, {"a": []}]} for text in texts], indent=indent).encode() + b"\n"
    (tmp_path / f"a.json{ending}").write_bytes(PACKERS.get(ending, bytes)(content))
    source = reader(tmp_path)
    assert all_texts(source) == texts and source.notices() == []
    blocks = [source.read(0, block) for block in range(3)]
    assert [source.read(0, block) for block in (2, 0, 1)] == [blocks[2], blocks[0], blocks[1]]


@pytest.mark.parametrize(
    ("content", "elements"),
    [
        ("[]", []),
        ('[1, [2, 3], "a,]", {"b": "\\\\"}]', ["1", "[2, 3]", '"a,]"', '{"b": "\\\\"}']),
        ("[{}, ", ["{}"]),
        ("[1]2", ["1", "2"]),
    ],
)
def test_elements(tmp_path: Path, content: str, elements: list[str]) -> None:
    (tmp_path / "a").write_text(content)
    for cutter in (Elements, Either):
        found = PackedLines(LocalFile(str(tmp_path / "a")), "", cutter).read(0) or []
        assert [element.decode().strip() for element in found if element.strip()] == elements


def test_an_array_that_is_cut_and_an_element_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "x" * 100}, {"text": "two"}, {"text": "cut"}])[:-5])
    texts, notices = read(tmp_path)
    assert texts == ["one", "two"]
    assert [line.split(" ")[:3] for line in notices] == [["1", "lines", "were"]] * 2


@pytest.mark.parametrize("content", ['{"a": {"text": "x"}, "b": {"text": "y"}}', '{\n "a": {"text": "x"},\n "b": {"text": "y"}\n}'])
def test_one_object_of_objects_holds_no_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert read(tmp_path) == ([], ["a.json is passed over: it holds no rows, but one object; write one object a line, or a list of objects"])


# Prose


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "said"),
    [("words".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"), (b"MZ\0\0\1", "it is no text, since it holds zero bytes")],
)
def test_what_is_no_prose(tmp_path: Path, ending: str, content: bytes, said: str) -> None:
    (tmp_path / f"a.txt{ending}").write_bytes(PACKERS.get(ending, bytes)(content))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked\r\nand \xff")
    assert read(tmp_path) == (["marked\nand \ufffd"], [f"a.txt{ending} is passed over: {said}"])


# Parquet

TABLE = {
    "answers": [{"text": ["a", "b"], "start": [1, 2]}],
    "nested": [{"body": "x"}],
    "pairs": [[{"q": "x"}]],
    "flag": [True],
    "raw": [b"bytes"],
    "number": [1.5],
    "many": [["x", "y"]],
}


@pytest.mark.parametrize("name", ["nested", "pairs", "flag", "absent"])
def test_a_column_that_holds_no_text_lists_those_there_are(tmp_path: Path, name: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(TABLE), tmp_path / "a.parquet")
    texts, (line,) = read(tmp_path, text_field=name)
    assert texts == [] and line.startswith("a.parquet is passed over: ") and "there are: answers" in line and "many" in line


@pytest.mark.parametrize(("name", "text"), [("answers", "a"), ("raw", "bytes"), ("number", "1.5"), ("many", "x")])
def test_columns_that_hold_text_in_other_forms(tmp_path: Path, name: str, text: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(TABLE), tmp_path / "a.parquet")
    assert read(tmp_path, text_field=name) == ([text], [])


def test_a_question_with_nested_answers(tmp_path: Path) -> None:
    table = pyarrow.table({"question": ["Why?", "How?", "Who?"], "answers": [{"text": ["So.", "Else."]}, {"text": []}, None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    options = {"fields": ["question", "answers"], "format": "Q: {question}\nA: {answers}"}
    assert read(tmp_path, **options) == (["Q: Why?\nA: So."], ["2 rows held no text and were passed over"])


# Names


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, which no permission stops."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_folders_in_folders(tmp_path: Path) -> None:
    """More of them than Python has calls within calls."""
    deep = str(tmp_path)
    for _ in range(1_010):
        deep += "/d"
        os.mkdir(deep)
    Path(deep, "a.txt").write_text("deep")
    try:
        assert read(tmp_path) == (["deep"], [])
    finally:  # which is more than shutil removes
        os.unlink(f"{deep}/a.txt")
        while deep != str(tmp_path):
            os.rmdir(deep)
            deep = os.path.dirname(deep)


ODD = ["with space", "ünï 漢字 🙂", "back\\slash", "new\nline", "tab\t", "-dash", "%41", "a" * 200, b"not\xffunicode".decode("utf-8", "surrogateescape")]


@pytest.mark.parametrize(("ending", "content"), [("txt", b"text"), ("pdf", built([column(["A line of text."])]))])
def test_odd_names(open_folder: Path, ending: str, content: bytes) -> None:
    for name in ODD:
        (open_folder / f"{name}.{ending}").write_bytes(content)
    for hidden in (f".hidden.{ending}", f".folder/a.{ending}", f"._fork.{ending}"):
        (open_folder / hidden).parent.mkdir(exist_ok=True)
        (open_folder / hidden).write_bytes(content)
    (open_folder / "deep").mkdir()
    (open_folder / "deep" / "up").symlink_to(open_folder)
    (open_folder / f"loop.{ending}").symlink_to(open_folder / f"loop.{ending}")
    os.mkfifo(open_folder / f"pipe\n.{ending}")
    (open_folder / "locked").mkdir(mode=0)
    with nobody():
        source = PdfFiles(open_folder) if ending == "pdf" else reader(open_folder)
        assert sorted(source.shards()) == source.shards()
    assert len(all_texts(source)) == len(ODD)
    source.close()
    notices = source.notices()
    assert len(notices) == 4 and all(line.isprintable() for line in notices)
    said = {"3 files or folders have names that begin with a dot", f"loop.{ending} is", "locked is passed over: Permission denied", f"pipe\ufffd.{ending} is"}
    assert {found for line in notices for found in said if line.startswith(found)} == said


def test_a_file_that_may_not_be_read(open_folder: Path) -> None:
    for name in ("shut.txt", "open.txt"):
        (open_folder / name).write_text(name)
    (open_folder / "shut.txt").chmod(0)
    with nobody():
        assert read(open_folder) == (["open.txt"], ["shut.txt is passed over: Permission denied"])


def test_an_odd_name_in_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(GivenUp) as error:
        reader(tmp_path / "no\nwhere").shards()
    assert "\n" not in str(error.value)


def test_damage_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b"a\nb\n")[:-3])
    found: Callable[[int], list[bytes] | None] = PackedLines(LocalFile(str(tmp_path / "a")), ".gz").read
    with pytest.raises(Damage, match="ends in the middle"):
        found(0)
    assert found(0) == [b"a", b"b"] and found(1) is None
