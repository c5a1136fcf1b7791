"""A Hugging Face Hub of one's own on 127.0.0.1, made of folders: root/owner/name/... is the data set, or the model, owner/name.

It speaks what `datasets` and `huggingface_hub` ask when they stream: the description of a data set and of a revision, the tree, the
properties of paths, and the files with ranges. With HF_ENDPOINT set to `hub.endpoint` before they are imported, both work
unchanged. A `fault` sees each request first and may answer in the hub's place, with the means that `Answer` has for it:

    def fault(answer: Answer, path: str) -> bool:
        if path.endswith(".parquet"):
            answer.refuse(429, retry_after=1)
            return True
        return False

    with LoopbackHub(root, fault) as hub:
        ...  # hub.endpoint, hub.log
"""

import contextlib
import gzip
import hashlib
import io
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow
import pyarrow.parquet
import yaml

API = re.compile(r"/api/(?:datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<kind>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?")
FILE = re.compile(r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
PIECE = 1 << 18

Fault = Callable[["Answer", str], bool]


class Request(NamedTuple):
    """A line of the hub's log."""

    method: str
    path: str
    range: str | None


class LoopbackHub:
    """Serves the data sets below `root` from entering to leaving; then all connections are cut, and the port is free again."""

    def __init__(self, root: Path, fault: Fault | None = None, port: int = 0):
        self._server = _Server(root, fault, port)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.log = self._server.log

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # five would leave some of many readers at once waiting for a second try
    daemon_threads = True

    def __init__(self, root: Path, fault: Fault | None, port: int):
        super().__init__(("127.0.0.1", port), Answer)
        self.root, self.fault = root, fault
        self.log: list[Request] = []
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        """A client that leaves in the middle is everyday life for a hub that is streamed from."""

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):  # kept alive, they would be served on by their threads
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Answer(BaseHTTPRequestHandler):
    """One connection. What a fault may call: `refuse`, `cut`, `stall`, `drip`, `lead_on`, `say`."""

    protocol_version = "HTTP/1.1"
    server: _Server
    _pause = 0.0  # seconds between pieces of a file

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal; the hub has its own log."""

    def refuse(self, status: int, error_code: str | None = None, retry_after: float | str | None = None) -> None:
        """An answer without a body. `error_code` as the Hub names it: RepoNotFound, GatedRepo, EntryNotFound, RevisionNotFound."""
        headers = {"X-Error-Code": error_code, "Retry-After": retry_after}
        self._send(status, {name: str(value) for name, value in headers.items() if value is not None})

    def cut(self, after: int) -> None:
        """The file that was asked for, with all headers but only its first `after` bytes; then the connection breaks."""
        file = FILE.fullmatch(self._path)
        assert file is not None, f"{self._path} is no file"
        self._send_file(self.server.root / file["repo"] / file["path"], after)
        self.close_connection = True

    def drip(self, seconds: float) -> None:
        """The file that was asked for, with all headers, in pieces of 100 bytes with so many seconds between them."""
        file = FILE.fullmatch(self._path)
        assert file is not None, f"{self._path} is no file"
        self._pause = seconds
        self._send_file(self.server.root / file["repo"] / file["path"])

    def lead_on(self, location: str, **headers: str) -> None:
        """Answer that the file is to be had elsewhere. `headers`: with "_" for "-"."""
        self._send(302, {"Location": location, **{name.replace("_", "-"): value for name, value in headers.items()}})

    def say(self, status: int, body: bytes, **headers: str) -> None:
        """Any answer at all."""
        self._send(status, {name.replace("_", "-"): value for name, value in headers.items()}, [body], len(body))

    def stall(self, seconds: float) -> None:
        """Say nothing for so long, or until the hub stops."""
        self.server.stopped.wait(seconds)

    @property
    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _answer(self) -> None:
        self.server.log.append(Request(self.command, self._path, self.headers.get("Range")))
        if self.server.fault is not None and self.server.fault(self, self._path):
            return
        asked = API.fullmatch(self._path) or FILE.fullmatch(self._path)
        if asked is None:
            return self.refuse(404)
        repo, path = self.server.root / asked["repo"], asked["path"]
        if not repo.is_dir():
            return self.refuse(404, "RepoNotFound")
        if asked["revision"] not in (None, "main", _commit(repo)):
            return self.refuse(404, "RevisionNotFound")
        if asked.re is FILE:
            return self._send_file(repo / asked["path"])
        if asked["kind"] == "tree":
            return self._send_tree(repo, repo / (path or ""))
        if asked["kind"] == "paths-info":
            return self._send_json([_properties(repo, repo / path) for path in self._asked_paths() if (repo / path).exists()])
        self._send_json(_description(repo, asked["repo"]))

    def _asked_paths(self) -> list[str]:
        if self.headers.get_content_type() == "application/json":
            return json.loads(self._body)["paths"]
        return urllib.parse.parse_qs(self._body).get("paths", [])

    def _send_tree(self, repo: Path, folder: Path) -> None:
        if not folder.is_dir():
            return self.refuse(404, "EntryNotFound")
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        self._send_json([_properties(repo, path) for path in sorted(folder.rglob("*") if recursive else folder.iterdir())])

    def _send_file(self, path: Path, cut_after: int | None = None) -> None:
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        repo = self.server.root / FILE.fullmatch(self._path)["repo"]
        size = path.stat().st_size
        headers = {"ETag": f'"{_identity(path)}"', "X-Repo-Commit": _commit(repo), "Accept-Ranges": "bytes"}
        part = _requested_part(self.headers.get("Range"), size)
        if part is None:
            return self._send(416, {"Content-Range": f"bytes */{size}"})
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        self._send(206 if "Range" in self.headers else 200, headers, self._slowly(_pieces(path, part, cut_after)), len(part))

    def _slowly(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            for start in range(0, len(piece), 100) if self._pause else ():
                self.server.stopped.wait(self._pause)
                yield piece[start : start + 100]
            if not self._pause:
                yield piece

    def _send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self._send(200, {"Content-Type": "application/json"}, [body], len(body))

    def _send(self, status: int, headers: Mapping[str, str], body: Iterable[bytes] = (), length: int = 0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.writelines(body)


def _requested_part(header: str | None, size: int) -> range | None:
    """Positions of the bytes that a Range header asks for; None where the file has none of them."""
    if header is None:
        return range(size)
    first, last = RANGE.fullmatch(header).groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    return range(start, stop) if start < stop else None


def _pieces(path: Path, part: range, cut_after: int | None) -> Iterator[bytes]:
    left = len(part) if cut_after is None else min(cut_after, len(part))
    with path.open("rb") as file:
        file.seek(part.start)
        while left > 0:
            piece = file.read(min(PIECE, left))
            left -= len(piece)
            yield piece


def _description(repo: Path, name: str) -> dict[str, Any]:
    files = [{"rfilename": str(path.relative_to(repo))} for path in sorted(repo.rglob("*")) if path.is_file()]
    return {"id": name, "sha": _commit(repo), "private": False, "gated": False, "disabled": False, "tags": [], "siblings": files}


def _properties(repo: Path, path: Path) -> dict[str, Any]:
    kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
    return {"type": kind, "path": str(path.relative_to(repo)), "size": size, "oid": _identity(path)}


def _identity(path: Path) -> str:
    """Changes with the file, as the Hub's content hashes do; made of its size and date, so that a request stays cheap."""
    state = path.stat()
    return hashlib.sha1(f"{path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()


def _commit(repo: Path) -> str:
    return hashlib.sha1("".join(_identity(path) for path in sorted(repo.rglob("*")) if path.is_file()).encode()).hexdigest()


def make_dataset(
    root: Path,
    repo: str,
    rows: Sequence[Mapping[str, Any]],
    config: str | None = None,
    split: str = "train",
    shards: int = 2,
    row_group_size: int = 100,
    format: str = "parquet",
) -> Path:
    """Write the data set `repo`, or one more configuration or split of it. `format`: parquet, json.gz or jsonl.zst. Its folder is returned."""
    home, folder = root / repo, config or "data"
    (home / folder).mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        (home / folder / f"{split}-{shard:05}-of-{shards:05}.{format}").write_bytes(WRITERS[format](part, row_group_size))
    _announce(home / "README.md", config or "default", split, f"{folder}/{split}-*")
    return home


def _announce(readme: Path, config: str, split: str, path: str) -> None:
    """Add to the card what `datasets` reads there: which files belong to which configuration and split."""
    card = yaml.safe_load(readme.read_text().split("---")[1]) if readme.exists() else {"configs": []}
    known = {entry["config_name"]: entry for entry in card["configs"]}
    files = {entry["split"]: entry for entry in known.get(config, {"data_files": []})["data_files"]} | {split: {"split": split, "path": path}}
    known[config] = {"config_name": config, "data_files": list(files.values())}
    readme.write_text(f"---\n{yaml.safe_dump({'configs': list(known.values())}, sort_keys=False)}---\n")


def _parquet(rows: Sequence[Mapping[str, Any]], row_group_size: int) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), file, row_group_size=row_group_size)
    return file.getvalue()


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _json_gz(rows: Sequence[Mapping[str, Any]], row_group_size: int) -> bytes:
    return gzip.compress(_jsonl(rows), mtime=0)


def _jsonl_zst(rows: Sequence[Mapping[str, Any]], row_group_size: int) -> bytes:
    import zstandard  # only this format needs it

    return zstandard.compress(_jsonl(rows))


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]], int], bytes]] = {"parquet": _parquet, "json.gz": _json_gz, "jsonl.zst": _jsonl_zst}
