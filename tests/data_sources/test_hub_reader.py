"""Data sets of the Hub: which files, which columns, which rows, and what is said when there are none."""

import email.utils
import json
import os
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.utils import close_session

from data_sources import hub as hub_module
from data_sources import lines
from data_sources import rows as rows_module
from data_sources.config import DataConfig
from data_sources.documents import GivenUp, PassingFault, Reader
from data_sources.ranges import LocalFile
from data_sources.readers import open_reader
from data_sources.rows import Notes, RowFormat
from data_sources.shards import ParquetShard
from tests.data_sources.streams import all_texts, paragraphs
from tests.loopback_hub import Answer, LoopbackHub, make_dataset


def reader(dataset: str, **options: Any) -> Reader:
    source = {"type": "hf", "name": "a", "dataset": dataset, **options}
    return open_reader(DataConfig.model_validate({"sources": [source]}).sources[0])


def rows(texts: list[str], name: str = "text") -> list[dict[str, Any]]:
    return [{name: text, "id": number} for number, text in enumerate(texts)]


@pytest.mark.parametrize("format", ["parquet", "json.gz", "jsonl.zst"])
def test_every_row_of_each_kind_of_file(hub: LoopbackHub, tmp_path: Path, format: str) -> None:
    texts = paragraphs(300)
    make_dataset(tmp_path / "hub", "some/words", rows(texts), format=format, shards=3)
    source = reader("some/words")
    assert all_texts(source) == texts
    assert [source.blocks(shard) for shard in range(3)] == ([1, 1, 1] if format == "parquet" else [None] * 3)
    assert source.read(0, 99) is None


def test_one_reader_does_not_close_the_connections_of_another(hub: LoopbackHub, tmp_path: Path) -> None:
    """What huggingface_hub does with its session when one of its calls finds no connection, while a range is on its way."""
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))

    def fault(answer: Answer, path: str) -> bool:
        close_session()
        return False

    hub._server.fault = fault
    assert all_texts(reader("some/words")) == paragraphs(30)


def test_only_the_needed_column_is_fetched_by_row_group(hub: LoopbackHub, tmp_path: Path) -> None:
    texts = [text * 20 for text in paragraphs(200)]
    table = [{"text": text, "ballast": os.urandom(5000).hex()} for text in texts]
    make_dataset(tmp_path / "hub", "some/words", table, shards=1, row_group_size=50)
    source = reader("some/words")
    assert source.blocks(0) == 4
    assert [document.text for document in source.read(0, 2) or []] == texts[100:150]
    lengths = [int(end) - int(start) for request in hub.log if request.range for start, end in [request.range.removeprefix("bytes=").split("-")]]
    assert sum(lengths) < 400_000 < (tmp_path / "hub/some/words/data/train-00000-of-00001.parquet").stat().st_size


def test_the_network_is_not_waited_for_inside_pyarrow(tmp_path: Path) -> None:
    """A thread that waits there aborts the process when the interpreter ends."""
    table = pyarrow.table({"text": [text * 9 for text in paragraphs(700)], "more": [["a", "b"]] * 700})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    inside = []

    class Watched(LocalFile):
        def read(self, start: int, end: int) -> bytes:
            inside.append(any("pyarrow" in frame.filename for frame in traceback.extract_stack()))
            return super().read(start, end)

    source = DataConfig.model_validate({"sources": [{"type": "files", "path": "a", "fields": ["text", "more"]}]}).sources[0]
    shard = ParquetShard(Watched(str(tmp_path / "a.parquet")), RowFormat(source, Notes()))
    assert [len((shard.passages(block) or ([],))[0]) for block in range(7)] == [100] * 7
    assert len(inside) > 14 and not any(inside)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_text_that_is_no_utf8_is_mended(tmp_path: Path, kind: pyarrow.DataType) -> None:
    """Arrow does not look when it writes, and refuses when it reads."""
    cells = pyarrow.array(
        [b"whole", b"\xff half \xc3\xa4", None, b" ", b"last"], pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary()
    )
    texts = pyarrow.Array.from_buffers(kind, len(cells), cells.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "title": ["a", "b", "c", "d", None]}), tmp_path / "a.parquet")
    read = open_reader(DataConfig.model_validate({"sources": [{"type": "files", "path": str(tmp_path)}]}).sources[0])
    assert [document.text for document in read.read(0, 0) or []] == ["whole", "\ufffd half ä", "last"]
    assert read.notices() == ["2 rows held no text and were passed over"]
    read = open_reader(DataConfig.model_validate({"sources": [{"type": "files", "path": str(tmp_path), "fields": ["title", "text"]}]}).sources[0])
    assert [document.text for document in read.read(0, 0) or []] == ["a\nwhole", "b\n\ufffd half ä"]


def test_rows_that_are_too_long_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LONGEST", 20)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["ä" * 20, "b" * 21, "c"], "title": ["d", "e", "f"]}), tmp_path / "a.parquet")
    for options, texts in (({}, ["ä" * 20, "c"]), ({"fields": ["title", "text"]}, ["f\nc"])):
        read = open_reader(DataConfig.model_validate({"sources": [{"type": "files", "path": str(tmp_path), **options}]}).sources[0])
        assert [document.text for document in read.read(0, 0) or []] == texts
        assert [line.split(" ")[0] for line in read.notices()] == [str(3 - len(texts))]


def test_files_of_a_repository_without_a_card(hub: LoopbackHub, tmp_path: Path) -> None:
    """The layout of monology/pile-uncopyrighted: splits are told by names alone."""
    folder = make_dataset(tmp_path / "hub", "some/pile", rows(paragraphs(30)), format="jsonl.zst", shards=2)
    (folder / "README.md").unlink()
    (folder / "train").mkdir()
    for number, file in enumerate(sorted((folder / "data").iterdir())):
        file.rename(folder / "train" / f"{number:02}.jsonl.zst")
    assert all_texts(reader("some/pile")) == paragraphs(30)


def test_an_alias_is_taken_and_said(hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/pairs", [{"query": "Why?", "answers": ["Because.", "Else."]}, {"query": "How?", "answers": []}], shards=1)
    source = reader("some/pairs", fields=["question", "answer"], format="Q: {question}\nA: {answer}")
    assert all_texts(source) == ["Q: Why?\nA: Because."]
    assert sorted(source.notices()) == [
        "1 rows held no text and were passed over",
        'no column "answer"; "answers" is read in its place',
        'no column "question"; "query" is read in its place',
    ]


@pytest.mark.parametrize("format", ["parquet", "json.gz"])
def test_an_absent_column_lists_those_there_are(hub: LoopbackHub, tmp_path: Path, format: str) -> None:
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(10), "stuff"), format=format)
    with pytest.raises(GivenUp, match='no column "text"; there are: stuff, id'):
        all_texts(reader("some/words"))


def test_rows_without_text_are_counted(hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/words", [{"text": "one"}, {"text": None}, {"text": "  \n"}, {"text": "two"}], shards=1)
    source = reader("some/words")
    assert all_texts(source) == ["one", "two"]
    assert source.notices() == ["2 rows held no text and were passed over"] and source.notices() == []


@pytest.mark.parametrize(
    ("options", "said"), [({"config": "nope"}, r"nope.*\['first', 'second'\]"), ({}, r"first.*second"), ({"config": "first", "split": "tset"}, "tset.*train")]
)
def test_an_absent_configuration_or_split_lists_those_there_are(hub: LoopbackHub, tmp_path: Path, options: dict[str, str], said: str) -> None:
    for config in ("first", "second"):
        make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(10)), config=config)
    with pytest.raises(GivenUp, match=said) as error:
        reader("some/words", **options).shards()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["some/nothing", "nothing", "a--b/c"])
def test_a_wrong_name(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(GivenUp) as error:
        reader(name).shards()
    assert "\n" not in str(error.value)


def test_a_data_set_without_data(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "hub/some/words").mkdir(parents=True)
    (tmp_path / "hub/some/words/README.md").write_text("Nothing yet.")
    with pytest.raises(GivenUp, match="can't be read"):
        reader("some/words").shards()


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (401, None, GivenUp, "HF_TOKEN"),
        (403, "GatedRepo", GivenUp, "HF_TOKEN"),
        (404, "RepoNotFound", GivenUp, "no such data set"),
        (429, None, PassingFault, "busy"),
        (500, None, PassingFault, "busy"),
        (503, None, PassingFault, "busy"),
    ],
)
@pytest.mark.parametrize("at", ["/api/datasets/some/words", ".parquet"])
def test_refusals(hub: LoopbackHub, tmp_path: Path, at: str, status: int, code: str | None, kind: type[Exception], said: str) -> None:
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))

    def fault(answer: Answer, path: str) -> bool:
        if path.endswith(at):
            answer.refuse(status, code, retry_after=7)
        return path.endswith(at)

    hub._server.fault = fault
    source = reader("some/words")
    with pytest.raises(kind, match=said) as error:
        all_texts(source)
    assert getattr(error.value, "retry_after", 7.0) == 7.0 and "\n" not in str(error.value)
    hub._server.fault = None
    assert all_texts(source) == paragraphs(30)


@pytest.mark.parametrize("format", ["parquet", "json.gz"])
def test_a_connection_cut_in_the_middle_of_a_file(hub: LoopbackHub, tmp_path: Path, format: str) -> None:
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(200)), format=format, shards=1, row_group_size=40)
    source = reader("some/words")
    read: list[str] = []
    cuts = iter([False, True, True, False, True, False, True])

    def fault(answer: Answer, path: str) -> bool:
        if path.endswith(format) and next(cuts, False):
            answer.cut(200)
            return True
        return False

    hub._server.fault = fault
    block, faults = 0, 0
    while block < 5:
        try:
            documents = source.read(0, block)
        except PassingFault:
            faults += 1
            continue
        read += [document.text for document in documents or []]
        block += 1
    assert read == paragraphs(200) and faults >= 1


def test_an_answer_shorter_than_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    """HTTP allows it, and taken for the whole it would be a damaged file."""
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(50)), shards=1)

    def fault(answer: Answer, path: str) -> bool:
        short = path.endswith(".parquet") and answer.headers["Range"] != "bytes=0-0"
        if short:
            answer._send(206, {"Content-Range": "bytes 0-9/5000"}, iter([b"x" * 10]), 10)
        return short

    hub._server.fault = fault
    with pytest.raises(PassingFault, match="cut at 10 of"):
        all_texts(reader("some/words"))


def only_files(act: Callable[[Answer], None]) -> Callable[[Answer, str], bool]:
    """A fault that does `act` in place of sending a part of a parquet file."""

    def fault(answer: Answer, path: str) -> bool:
        if path.endswith(".parquet"):
            act(answer)
        return path.endswith(".parquet")

    return fault


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda answer: answer.say(200, b"x" * 4096), "a whole file where a part was asked for"),
        (lambda answer: answer.say(206, b"x"), "does not say which part"),
        (lambda answer: answer.say(206, b"x", Content_Range="bytes 7-7/9999"), "another part"),
        (lambda answer: answer.say(206, b"xx", Content_Range="bytes 0-0/9999"), "another part"),
        (lambda answer: answer.refuse(502), "busy"),
        (lambda answer: answer.lead_on(answer.path), "can't be reached"),
    ],
)
def test_answers_that_are_not_what_was_asked_for(hub: LoopbackHub, tmp_path: Path, act: Callable[[Answer], None], said: str) -> None:
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))
    source = reader("some/words")
    hub._server.fault = only_files(act)
    with pytest.raises(PassingFault, match=said) as error:
        all_texts(source)
    assert "\n" not in str(error.value)
    hub._server.fault = None
    assert all_texts(source) == paragraphs(30)


def test_a_whole_file_in_place_of_a_part_is_not_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = []

    def endless(answer: Answer, path: str) -> bool:
        if path.endswith(".parquet"):
            answer.send_response(200)
            answer.send_header("Content-Length", str(1 << 40))
            answer.end_headers()
            while answer.wfile.write(bytes(1 << 20)):
                sent.append(1)
        return path.endswith(".parquet")

    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))
    hub._server.fault = endless
    with pytest.raises(PassingFault, match="whole file"):
        all_texts(reader("some/words"))
    assert len(sent) < 20


def test_another_page_in_the_place_of_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    """The network of a hotel: every question is answered by the same page."""
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))

    def page(answer: Answer, path: str) -> bool:
        answer.say(200, b"<html>Please sign in</html>", Content_Type="text/html")
        return True

    hub._server.fault = page
    source = reader("some/words")
    with pytest.raises(PassingFault, match="something else answers"):
        source.shards()
    hub._server.fault = None
    assert all_texts(source) == paragraphs(30)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [({"Retry_After": "7"}, 7), ({"Retry_After": "{date}"}, 90), ({"RateLimit": '"api";r=0;t=55'}, 55), ({"Retry_After": "99999999"}, 3600), ({}, None)],
)
def test_how_long_a_busy_server_asks_to_wait(hub: LoopbackHub, tmp_path: Path, asked: dict[str, str], seconds: float | None) -> None:
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    hub._server.fault = only_files(lambda answer: answer.say(429, b"", **{name: value.format(date=date) for name, value in asked.items()}))
    with pytest.raises(PassingFault, match="busy") as error:
        all_texts(reader("some/words"))
    assert error.value.retry_after == pytest.approx(seconds, abs=2)


def test_slow_servers(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing, and one that never stops saying a little."""
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(300)), shards=1)
    monkeypatch.setattr(hub_module, "TIMEOUT", httpx2.Timeout(0.3))
    monkeypatch.setattr(hub_module, "SLOW_SECONDS", 0.3)
    source = reader("some/words")
    for act, said in ((lambda answer: answer.stall(5), "did not answer in time"), (lambda answer: answer.drip(0.15), "less than 1000 bytes a second")):
        hub._server.fault = only_files(act)
        began = time.monotonic()
        with pytest.raises(PassingFault, match=said):
            all_texts(source)
        assert time.monotonic() - began < 3
    hub._server.fault = None
    assert all_texts(source) == paragraphs(300)


def test_files_in_a_store_elsewhere(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Hub does with large ones. The token is for the Hub alone, and the store's own marks may differ from copy to copy."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(200)), row_group_size=30)
    told: dict[str, set[str | None]] = {"hub": set(), "store": set()}
    marks = iter(range(10_000))

    def store_fault(answer: Answer, path: str) -> bool:
        told["store"].add(answer.headers["Authorization"])
        marked = answer.send_header
        answer.send_header = lambda name, value: marked(name, f'"{next(marks)}"' if name == "ETag" else value)
        return False

    with LoopbackHub(tmp_path / "hub", store_fault) as store:

        def lead_on(answer: Answer, path: str) -> bool:
            if path.endswith(".parquet"):
                told["hub"].add(answer.headers["Authorization"])
                answer.lead_on(store.endpoint + answer.path, X_Linked_ETag='"0123"', X_Linked_Size="1", X_Xet_Hash="4567", X_Xet_Refresh_Route="/api/xet")
            return path.endswith(".parquet")

        hub._server.fault = lead_on
        assert all_texts(reader("some/words")) == paragraphs(200)
        assert told == {"hub": {"Bearer hf_test"}, "store": {None}}
        assert any(request.range for request in store.log) and all(request.range for request in store.log)


@pytest.mark.parametrize("format", ["parquet", "json.gz"])
def test_a_file_that_changes_while_it_is_read_is_opened_anew(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Under the same revision, as on a mirror: never half of one and half of the other."""
    before, after = paragraphs(200), paragraphs(200, start=300)
    monkeypatch.setattr(lines, "FETCH_BYTES", 4000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4000)
    monkeypatch.setattr("tests.loopback_hub._commit", lambda repo: "c0ffee")
    make_dataset(tmp_path / "hub", "some/words", rows(before), shards=1, row_group_size=40, format=format)
    source = reader("some/words")
    read = [document.text for block in (0, 1) for document in source.read(0, block) or []]
    assert read == before[: len(read)]
    make_dataset(tmp_path / "hub", "some/words", rows(after), shards=1, row_group_size=40, format=format)
    with pytest.raises(PassingFault, match="another than it was"):
        [source.read(0, block) for block in range(2, 9)]
    assert all_texts(source) == after
    assert [line.partition(" was changed")[0][-len(format) :] for line in source.notices()] == [format]


def test_a_broken_card_gives_the_source_up(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(30)))
    (folder / "README.md").write_text("---\nconfigs: [{]: 7\n---\n")
    with pytest.raises(GivenUp) as error:
        reader("some/words").shards()
    assert "\n" not in str(error.value)


def test_a_truncated_parquet_is_named_and_passed_over(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(90)), shards=3)
    damaged = sorted((folder / "data").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    source = reader("some/words")
    assert all_texts(source) == paragraphs(30) + paragraphs(30, start=60)
    (line,) = source.notices()
    assert damaged.name in line and "passed over" in line


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_no_network(point_at: Callable[[str], None], endpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    point_at(endpoint)
    with pytest.raises(PassingFault, match="can't be reached|did not answer"):
        reader("some/words").shards()
    assert capfd.readouterr() == ("", "")


LEAVING = """
    import sys
    from itertools import islice
    from data_sources import open_stream
    from data_sources.prefetch import Prefetch
    from tests.data_sources.streams import byte_tokenizer, data_config

    data = data_config({"type": "hf", "name": "words", "dataset": "some/words"})
    stream = open_stream(data, byte_tokenizer(), 64, 8)
    ahead = Prefetch(stream, 3) if sys.argv[1] == "prefetch" else stream
    print(len(list(islice(ahead, 5))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "prefetch"])
def test_leaving_in_the_middle_ends_with_status_0(tmp_path: Path, how: str) -> None:
    """Streaming readers of parquet are known to abort the interpreter on its way out. And nothing is printed, also of a fault."""
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(600)), row_group_size=50)
    faults = iter([True])

    def fault(answer: Answer, path: str) -> bool:
        busy = "/tree/" in path and next(faults, False)
        if busy:
            answer.refuse(503)
        return busy

    with LoopbackHub(tmp_path / "hub", fault) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", textwrap.dedent(LEAVING), how]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "5\n", "")
    assert not next(faults, False), "the fault was met"


def test_the_token_is_sent(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    make_dataset(tmp_path / "hub", "some/words", rows(paragraphs(10)))
    seen = set()

    def fault(answer: Answer, path: str) -> bool:
        if path.endswith((".parquet", "some/words")):
            seen.add((path.rpartition(".")[2], answer.headers["Authorization"]))
        return False

    hub._server.fault = fault
    assert len(all_texts(reader("some/words"))) == 10
    assert {authorization for _, authorization in seen} == {"Bearer hf_test"} and len(seen) >= 2


def test_json_texts_round_trip(hub: LoopbackHub, tmp_path: Path) -> None:
    texts = ["line\nbreak \u2028 and 🙂", json.dumps({"text": "nested"})]
    make_dataset(tmp_path / "hub", "some/words", rows(texts), format="json.gz", shards=1)
    assert all_texts(reader("some/words")) == texts
