"""The reader of `hf` sources: `datasets` finds a data set's files, ranges of them are read over HTTP.

`datasets` itself can't go to a place in a stream, so only its knowledge of README, configurations and splits is used. The
ranges come straight from huggingface_hub's session (endpoint, token and proxy are its own): its file system sleeps and tries
again inside for half a minute, silently, where the stream must know of a fault at once and of how long the server asks to wait.
"""

import atexit
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NamedTuple
from urllib.parse import unquote

import httpx2
from huggingface_hub import HfApi, hf_hub_url, is_offline_mode, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from data_sources.config import CacheConfig, HubSource
from data_sources.disk_cache import DiskCache
from data_sources.documents import GivenUp, PassingFault, one_line
from data_sources.fingerprint import revision_mark
from data_sources.hub_faults import CONTACT_SECONDS, Offline, explained, hush, within
from data_sources.ranges import Changed
from data_sources.rows import Notes, RowFormat
from data_sources.shards import FileReader, kind_of

RESOLVE_SECONDS = 20.0  # the others begin without a source whose files take longer to find
LONGEST_RESOLVE = 600.0  # seconds after which nothing more is hoped of finding them
TIMEOUT = httpx2.Timeout(10.0, connect=CONTACT_SECONDS)
SLOW_SECONDS, SLOWEST = 30.0, 1000  # bytes a second on the whole, past so many seconds; a server may drip for ever
IMPORTING = threading.Lock()  # sources are reached in threads, and a package half imported by another thread breaks
atexit.register(IMPORTING.acquire, timeout=5.0)  # and one inside compiled code when the interpreter ends aborts the process
FIRST_RANGES = 2  # of a file: they hold the description of a parquet file, without which the others are of no use


class Session(httpx2.Client):
    """What huggingface_hub and `datasets` ask by, and we. It ends with the last who uses it.

    huggingface_hub closes it, and takes another, when one of its calls finds no connection: those of all other sources, under way in
    other threads, would then fail with a bad file descriptor.
    """

    def __init__(self) -> None:
        super().__init__(event_hooks={"request": [_refuse_offline]}, follow_redirects=True, timeout=None)

    def close(self) -> None:
        pass


def _refuse_offline(request: httpx2.Request) -> None:
    if is_offline_mode():
        raise OfflineModeIsEnabled


set_client_factory(Session)


def hub_reader(source: HubSource, cache: CacheConfig | None = None, titled: bool = False) -> FileReader:
    """Reader of one configuration and split of a data set of the Hub, by way of `cache` where there is one. titled: with titles."""
    notes = Notes()
    rows, splits = RowFormat(source, notes, titled), Pending(lambda: explained(lambda: _splits(source)))
    if cache is None:
        return FileReader(lambda: _listed(source, splits, notes), RemoteFile, revision_mark, rows, notes, strict=True)
    kept = DiskCache(cache.path, int(cache.gigabytes * 1e9), notes.say)
    listed, opened = lambda: _listed_or_kept(source, splits, kept, notes), lambda name: CachedFile(name, kept, _listing_key(source))
    return FileReader(listed, opened, revision_mark, rows, notes, strict=True)


class About(NamedTuple):
    """What a server says of a file: its bytes, and a mark that changes with them."""

    size: int
    etag: str


class RemoteFile:
    """A file of the Hub, `datasets/owner/name@revision/path`, read by ranges. `about`: what is known of it already."""

    def __init__(self, name: str, about: About | None = None):
        repo, _, place = name.removeprefix("datasets/").partition("@")
        revision, _, path = place.partition("/")
        self._url = hf_hub_url(repo, path, repo_type="dataset", revision=unquote(revision))
        self._about = about

    def about(self) -> About:
        if self._about is None:
            self._about = self._fetch(0, 1)[1]
        return self._about

    def size(self) -> int:
        return self.about().size

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self.size())
        if end <= start:
            return b""
        data, about = self._fetch(start, end)
        if about != self._about:
            raise Changed("the file is another than it was when it was opened")
        return data

    def _fetch(self, start: int, end: int) -> tuple[bytes, About]:
        # Packed on the way, ranges would be those of what is packed.
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        return explained(lambda: self._answered(headers, start, end))

    def _answered(self, headers: dict[str, str], start: int, end: int) -> tuple[bytes, About]:
        with get_session().stream("GET", self._url, headers=headers, timeout=TIMEOUT) as answer:
            if answer.is_error and answer.status_code != 416:
                answer.read()
                hf_raise_for_status(answer)
            size = _whole_size(answer)
            if size == 0 or answer.status_code == 416:  # no such byte: the file is empty, or shorter than it was
                return b"", About(size, _etag(answer))
            return _body(answer, start, end), About(size, _etag(answer))

    def close(self) -> None:
        pass  # the session is shared by all


def _whole_size(answer: httpx2.Response) -> int:
    """Bytes of the file that a part was asked of."""
    if answer.status_code == 200:
        if answer.headers.get("Content-Length") == "0":
            return 0
        raise PassingFault("the server sent a whole file where a part was asked for")
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if not (size.isascii() and size.isdigit()):
        raise PassingFault(f"the server's answer ({answer.status_code}) does not say which part of the file it is")
    return int(size)


def _etag(answer: httpx2.Response) -> str:
    """The mark of the content: where the Hub leads on to a store of its own, what it said itself, which no store's copy changes."""
    linked = [step.headers["X-Linked-ETag"] for step in answer.history if "X-Linked-ETag" in step.headers]
    return (linked or [answer.headers.get("ETag", "")])[0].removeprefix("W/").strip('"')


def _body(answer: httpx2.Response, start: int, end: int) -> bytes:
    pieces, size, began = [], 0, time.monotonic()
    for piece in answer.iter_bytes():
        pieces.append(piece)
        size += len(piece)
        seconds = time.monotonic() - began
        if seconds > SLOW_SECONDS and size < SLOWEST * seconds:
            raise PassingFault(f"the Hub sends less than {SLOWEST} bytes a second")
        if size > end - start:
            break
    if size < end - start:
        raise PassingFault(f"the answer was cut at {size} of {end - start} bytes")
    if size > end - start or not answer.headers["Content-Range"].startswith(f"bytes {start}-{end - 1}/"):
        raise PassingFault("the server sent another part of the file than was asked for")
    return b"".join(pieces)


class CachedFile:
    """A RemoteFile whose parts are kept on disk, under the mark of its content: a new revision with the same file finds them."""

    def __init__(self, name: str, cache: DiskCache, listing: str):
        repository, _, rest = name.partition("@")
        self._name, self._place = name, f"{repository}/{rest.partition('/')[2]}"
        self._cache, self._about_key = cache, f"about {name}"
        self._in_use = [listing, self._about_key]  # goes no earlier than what needs it
        self._file = RemoteFile(name, self._kept_about())

    def _kept_about(self) -> About | None:
        kept = self._cache.get(self._about_key)
        return None if kept is None else About(*json.loads(kept))

    def _about(self) -> About:
        about = self._file.about()
        if self._cache.get(self._about_key) is None:
            self._cache.put(self._about_key, json.dumps(about).encode())
        return about

    def size(self) -> int:
        return self._about().size

    def read(self, start: int, end: int) -> bytes:
        about = self._about()
        end = min(end, about.size)
        if end <= start:
            return b""
        key = f"bytes {start}-{end} of {self._place} {about.etag or self._name}"
        data = self._cache.get(key)
        if data is None:
            data = self._fetched(start, end)
            self._cache.put(key, data)
        if len(self._in_use) < 2 + FIRST_RANGES:
            self._in_use.append(key)
        self._cache.touch(self._in_use)
        return data

    def _fetched(self, start: int, end: int) -> bytes:
        try:
            return self._file.read(start, end)
        except Changed:
            self._cache.drop(self._about_key)
            raise

    def close(self) -> None:
        self._file.close()


def _listing_key(source: HubSource) -> str:
    return f"files of {json.dumps([source.dataset, source.config, source.split])}"


def _listed_or_kept(source: HubSource, splits: "Pending", cache: DiskCache, notes: Notes) -> list[str]:
    """The names that the Hub gives, or those that it gave last where it can't be reached."""
    try:
        names = _listed(source, splits, notes)
    except (PassingFault, Offline) as fault:
        kept = cache.get(_listing_key(source))
        if kept is None:
            raise
        notes.say(f"{fault}; read from the cache as far as that goes")
        return json.loads(kept)
    cache.put(_listing_key(source), json.dumps(names).encode())
    return names


def _listed(source: HubSource, pending: "Pending", notes: Notes) -> list[str]:
    """Names of the files of `source`, in the order that the data set gives them."""
    hush()
    within(CONTACT_SECONDS, lambda: explained(lambda: HfApi().dataset_info(source.dataset, timeout=CONTACT_SECONDS)))
    splits = pending.result()
    if source.split not in splits:
        raise GivenUp(f'no split "{source.split}" in {source.dataset}; there are: {", ".join(splits) or "none"}')
    names = [name.removeprefix("hf://") for name in splits[source.split]]
    readable = [name for name in names if kind_of(name)]
    if not readable:
        raise GivenUp(f"{source.dataset} holds no file that can be read; it has {names[0] if names else 'none'}")
    notes.count("files of a kind that can't be read were passed over", len(names) - len(readable))
    return readable


class Pending:
    """What a slow call gives. It goes on by itself while nobody waits, and who asks again hears what it brought."""

    def __init__(self, call: Callable[[], dict[str, list[str]]]):
        self._call = call
        self._outcome: Future[dict[str, list[str]]] | None = None
        self._until = 0.0

    def result(self) -> dict[str, list[str]]:
        """PassingFault where it takes longer than RESOLVE_SECONDS. For one thread at a time."""
        if self._outcome is None or time.monotonic() > self._until:
            self._outcome, self._until = Future(), time.monotonic() + LONGEST_RESOLVE
            threading.Thread(target=self._work, args=[self._outcome], daemon=True).start()
        outcome = self._outcome
        if not wait([outcome], RESOLVE_SECONDS).done:
            raise PassingFault(f"the Hub did not answer in {RESOLVE_SECONDS:.0f} seconds")
        self._outcome = None
        return outcome.result()

    def _work(self, outcome: Future[dict[str, list[str]]]) -> None:
        try:
            outcome.set_result(self._call())
        except BaseException as error:  # handed to the one who asks
            outcome.set_exception(error)


def _splits(source: HubSource) -> dict[str, list[str]]:
    with IMPORTING:
        import datasets
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source.dataset, source.config)
    except FileNotFoundError as error:  # no data files
        raise GivenUp(f"{source.dataset} can't be read: {one_line(error)}") from None
    except (OSError, httpx2.HTTPError, json.JSONDecodeError):  # of the way there
        raise
    except ValueError as error:  # "BuilderConfig 'x' not found. Available: [...]", "Config name is missing. ..."
        raise GivenUp(f"{source.dataset}: {one_line(error)}") from None
    except Exception as error:  # a data set that is a script, or a card that `datasets` does not understand
        raise GivenUp(f"{source.dataset} can't be read: {one_line(error)}") from None
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
