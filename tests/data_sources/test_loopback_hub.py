"""The loopback Hub against the clients it stands in for: `datasets` and `huggingface_hub`, each in a process of its own."""

import http.client
import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub import Answer, LoopbackHub, make_dataset

ROWS = [{"id": number, "text": f"Row {number} of a small data set, with an é and a 漢."} for number in range(237)]

# The iterator is closed before the interpreter ends: left open, its threads abort the process.
BY_DATASETS = """
    import json, sys
    import datasets
    rows = []
    for name, config in json.loads(sys.argv[1]):
        stream = iter(datasets.load_dataset(name, config, split="train", streaming=True))
        rows.append(list(stream))
        stream.close()
    print(json.dumps(rows))
"""
BY_FILES = """
    import json, sys
    import pyarrow.parquet
    from huggingface_hub import HfFileSystem
    files, rows = HfFileSystem(), []
    for path in sorted(files.glob("datasets/" + sys.argv[1] + "/**/*.parquet")):
        with files.open(path, "rb", block_size=1 << 16) as file:
            table = pyarrow.parquet.ParquetFile(file)
            rows += [row for group in range(table.num_row_groups) for row in table.read_row_group(group).to_pylist()]
    print(json.dumps(rows))
"""


def run(code: str, hub: LoopbackHub, cache: Path, *arguments: str) -> Any:
    """What `code` prints as JSON, in a fresh process that knows no other Hub."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer_of(hub: LoopbackHub, path: str, part: str) -> tuple[int, str]:
    with urllib.request.urlopen(urllib.request.Request(hub.endpoint + path, headers={"Range": part}), timeout=10) as answer:
        return answer.status, answer.headers["Content-Range"]


def get(hub: LoopbackHub, path: str, part: str | None = None) -> bytes:
    request = urllib.request.Request(hub.endpoint + path, headers={"Range": part} if part else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def test_datasets_streams_every_row_of_every_format_and_configuration(tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/parquet", ROWS, config="one", shards=3, row_group_size=17)
    make_dataset(tmp_path / "hub", "some/parquet", ROWS[:11], config="two", shards=1)
    make_dataset(tmp_path / "hub", "some/gz", ROWS, format="json.gz")
    make_dataset(tmp_path / "hub", "some/zst", ROWS, format="jsonl.zst", shards=5)
    wanted = [("some/parquet", "one"), ("some/parquet", "two"), ("some/gz", None), ("some/zst", None)]
    with LoopbackHub(tmp_path / "hub") as hub:
        assert run(BY_DATASETS, hub, tmp_path / "cache", json.dumps(wanted)) == [ROWS, ROWS[:11], ROWS, ROWS]


def test_the_file_system_reads_every_row_by_ranges(tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] * 40 + os.urandom(600).hex()} for row in ROWS]
    make_dataset(tmp_path / "hub", "some/parquet", rows, config="one", shards=2, row_group_size=20)
    with LoopbackHub(tmp_path / "hub") as hub:
        assert run(BY_FILES, hub, tmp_path / "cache", "some/parquet") == rows
        asked = [request.range for request in hub.log if request.method == "GET" and request.path.endswith(".parquet")]
    assert len(asked) >= 4
    assert all(asked)


@pytest.mark.parametrize(("part", "first", "last"), [("bytes=0-0", 0, 0), ("bytes=3-5", 3, 5), ("bytes=7-", 7, 9), ("bytes=-2", 8, 9), ("bytes=8-99", 8, 9)])
def test_ranges(tmp_path: Path, part: str, first: int, last: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/digits").write_bytes(b"0123456789")
    path = "/datasets/a/b/resolve/main/digits"
    with LoopbackHub(tmp_path) as hub:
        assert get(hub, path, part) == b"0123456789"[first : last + 1]
        assert get(hub, path) == b"0123456789"
        assert answer_of(hub, path, part) == (206, f"bytes {first}-{last}/10")
        assert [tuple(request) for request in hub.log] == [("GET", path, part), ("GET", path, None), ("GET", path, part)]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/datasets/no/such", 404, "RepoNotFound"),
        ("/datasets/a/b/resolve/main/missing", 404, "EntryNotFound"),
        ("/api/datasets/a/b/tree/main/missing", 404, "EntryNotFound"),
        ("/api/datasets/a/b/revision/other", 404, "RevisionNotFound"),
        ("/somewhere/else", 404, None),
    ],
)
def test_what_is_missing_is_named_as_the_hub_names_it(tmp_path: Path, path: str, status: int, code: str | None) -> None:
    make_dataset(tmp_path, "a/b", ROWS)
    with LoopbackHub(tmp_path) as hub, pytest.raises(urllib.error.HTTPError) as refused:
        get(hub, path)
    assert (refused.value.code, refused.value.headers["X-Error-Code"]) == (status, code)


def test_a_fault_refuses_cuts_and_stalls(tmp_path: Path) -> None:
    home = make_dataset(tmp_path, "a/b", ROWS, shards=1)
    whole = next(home.rglob("*.parquet")).read_bytes()
    plan = iter(["refuse", "cut", "stall", "nothing"])

    def fault(answer: Answer, path: str) -> bool:
        step = next(plan)
        if step == "refuse":
            answer.refuse(429, retry_after=2)
        elif step == "cut":
            answer.cut(after=100)
        elif step == "stall":
            answer.stall(0.3)
        return step in ("refuse", "cut")

    path = "/datasets/a/b/resolve/main/data/train-00000-of-00001.parquet"
    with LoopbackHub(tmp_path, fault) as hub:
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(hub, path)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (429, "2")
        with pytest.raises(Exception, match=r"IncompleteRead\(100 bytes read"):
            get(hub, path)
        started = time.monotonic()
        assert get(hub, path) == whole
        assert time.monotonic() - started >= 0.3
        assert get(hub, path) == whole


def test_a_hub_that_stops_is_gone_and_comes_back_on_its_port(tmp_path: Path) -> None:
    make_dataset(tmp_path, "a/b", ROWS)
    with LoopbackHub(tmp_path) as hub:
        kept_open = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
        kept_open.request("GET", "/api/datasets/a/b")
        assert json.loads(kept_open.getresponse().read())["id"] == "a/b"
    with pytest.raises((http.client.HTTPException, OSError)):
        kept_open.request("GET", "/api/datasets/a/b")
        kept_open.getresponse()
    with pytest.raises(urllib.error.URLError):
        get(hub, "/api/datasets/a/b")
    with LoopbackHub(tmp_path, port=int(hub.endpoint.rsplit(":")[-1])) as again:
        assert json.loads(get(again, "/api/datasets/a/b"))["id"] == "a/b"
