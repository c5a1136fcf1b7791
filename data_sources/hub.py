"""The reader of `hf` sources: `datasets` finds a data set's files, ranges of them are read over HTTP.

`datasets` itself can't go to a place in a stream, so only its knowledge of README, configurations and splits is used. The
ranges come straight from huggingface_hub's session (endpoint, token and proxy are its own): its file system sleeps and tries
again inside for half a minute, silently, where the stream must know of a fault at once and of how long the server asks to wait.
"""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status

from data_sources.config import HubSource
from data_sources.documents import GivenUp, PassingFault
from data_sources.rows import Notes, RowFormat
from data_sources.shards import FileReader, kind_of

CONTACT_SECONDS = 3.0  # a name server that never answers knows no timeout of its own
RESOLVE_SECONDS = 60.0
TIMEOUT = httpx2.Timeout(10.0, connect=CONTACT_SECONDS)
TOKEN_HELP = "set HF_TOKEN to a token that may read it, after asking for access on its page where it is gated"
IMPORTING = threading.Lock()  # sources are reached in threads, and a package half imported by another thread breaks

Result = TypeVar("Result")


def hub_reader(source: HubSource) -> FileReader:
    """Reader of one configuration and split of a data set of the Hub."""
    notes = Notes()
    return FileReader(lambda: _listed(source, notes), RemoteFile, RowFormat(source, notes), notes, strict=True)


class RemoteFile:
    """A file of the Hub, `datasets/owner/name@revision/path`, read by ranges."""

    def __init__(self, name: str):
        repo, _, place = name.removeprefix("datasets/").partition("@")
        revision, _, path = place.partition("/")
        self._url = hf_hub_url(repo, path, repo_type="dataset", revision=unquote(revision))
        self._size: int | None = None

    def size(self) -> int:
        if self._size is None:
            answer = self._get(0, 1)
            self._size = int(answer.headers["Content-Range"].rpartition("/")[2]) if answer.status_code == 206 else 0
        return self._size

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self.size())
        if end <= start:
            return b""
        data = self._get(start, end).content
        if len(data) != end - start:
            raise PassingFault(f"the answer was cut at {len(data)} of {end - start} bytes")
        return data

    def _get(self, start: int, end: int) -> httpx2.Response:
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
        answer = _explained(lambda: _answered(get_session().get(self._url, headers=headers, timeout=TIMEOUT)))
        if answer.status_code == 200 and int(answer.headers.get("Content-Length", 0)) > 0:
            raise PassingFault("the server sent a whole file where a part was asked for")
        return answer

    def close(self) -> None:
        pass  # the session is shared by all


def _answered(answer: httpx2.Response) -> httpx2.Response:
    if answer.status_code != 416:  # the first byte of an empty file
        hf_raise_for_status(answer)
    return answer


def _listed(source: HubSource, notes: Notes) -> list[str]:
    """Names of the files of `source`, in the order that the data set gives them."""
    _hush()
    _within(CONTACT_SECONDS, lambda: _explained(lambda: HfApi().dataset_info(source.dataset, timeout=CONTACT_SECONDS)))
    splits = _within(RESOLVE_SECONDS, lambda: _explained(lambda: _splits(source)))
    if source.split not in splits:
        raise GivenUp(f'no split "{source.split}" in {source.dataset}; there are: {", ".join(splits) or "none"}')
    names = [name.removeprefix("hf://") for name in splits[source.split]]
    readable = [name for name in names if kind_of(name)]
    if not readable:
        raise GivenUp(f"{source.dataset} holds no file that can be read; it has {names[0] if names else 'none'}")
    notes.count("files of a kind that can't be read were passed over", len(names) - len(readable))
    return readable


def _splits(source: HubSource) -> dict[str, list[str]]:
    with IMPORTING:
        import datasets
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source.dataset, source.config)
    except ValueError as error:  # "BuilderConfig 'x' not found. Available: [...]", "Config name is missing. ..."
        raise GivenUp(f"{source.dataset}: {_one_line(error)}") from None
    except (FileNotFoundError, RuntimeError) as error:  # no data files, or a data set that is a script
        raise GivenUp(f"{source.dataset} can't be read: {_one_line(error)}") from None
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def _explained(call: Callable[[], Result]) -> Result:
    """What `call` gives, its failures sorted into those that pass and those that stay."""
    try:
        return call()
    except GatedRepoError:
        raise GivenUp(f"access is restricted; {TOKEN_HELP}") from None
    except HFValidationError as error:
        raise GivenUp(f"not the name of a data set: {_one_line(error)}") from None
    except RepositoryNotFoundError:
        raise GivenUp(f"the Hub has no such data set, or it is private; check the name, or {TOKEN_HELP}") from None
    except HfHubHTTPError as error:
        raise _by_status(error.response) from None
    except OfflineModeIsEnabled:
        raise GivenUp("HF_HUB_OFFLINE is set; unset it to read from the Hub") from None
    except httpx2.TimeoutException:
        raise PassingFault("the Hub did not answer in time") from None
    except (httpx2.TransportError, ConnectionError) as error:
        raise PassingFault(f"the Hub can't be reached: {_one_line(error)}") from None


def _by_status(answer: httpx2.Response) -> GivenUp | PassingFault:
    status = answer.status_code
    if status in (401, 403):
        return GivenUp(f"the Hub refused access ({status}); {TOKEN_HELP}")
    if status in (404, 410):
        return GivenUp(f"the Hub has no {answer.url.path} ({status})")
    if status in (408, 429) or status >= 500:
        asked = answer.headers.get("Retry-After", "")
        return PassingFault(f"the Hub is busy ({status})", float(asked) if asked.isdigit() else None)
    return GivenUp(f"the Hub answered {status} to {answer.url.path}")


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call` gives or raises, or PassingFault after `seconds`; the call is then left to end by itself."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # handed on below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise PassingFault(f"the Hub did not answer in {seconds:.0f} seconds")
    return results[0]


def _hush() -> None:
    """The screen belongs to the trainer: faults are told once, in its own words."""
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    disable_progress_bars()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
