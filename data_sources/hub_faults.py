"""What can go wrong on the way to the Hub, sorted into what passes and what stays, each in a line that says what to do."""

import email.utils
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

from data_sources.documents import GivenUp, PassingFault, Stopped, one_line

CONTACT_SECONDS = 3.0  # a name server that never answers knows no timeout of its own
LONGEST_ASKED = 3600.0  # seconds that a server may ask to wait for
TOKEN_HELP = "set HF_TOKEN to a token that may read it, after asking for access on its page where it is gated"
POLL = 0.1

Result = TypeVar("Result")


class Offline(GivenUp):
    """HF_HUB_OFFLINE keeps this process from the Hub."""


def explained(call: Callable[[], Result]) -> Result:
    """What `call` gives. Its failures become GivenUp or PassingFault."""
    try:
        return call()
    except GatedRepoError:
        raise GivenUp(f"access is restricted; {TOKEN_HELP}") from None
    except HFValidationError as error:
        raise GivenUp(f"not the name of a repository: {one_line(error)}") from None
    except RepositoryNotFoundError:
        raise GivenUp(f"the Hub has no such data set or model, or it is private; check the name, or {TOKEN_HELP}") from None
    except HfHubHTTPError as error:
        raise _by_status(error.response) from None
    except OfflineModeIsEnabled:
        raise Offline("HF_HUB_OFFLINE is set; unset it to read from the Hub") from None
    except json.JSONDecodeError:
        raise PassingFault("the Hub can't be reached: something else answers in its place") from None
    except httpx2.TimeoutException:
        raise PassingFault("the Hub did not answer in time") from None
    except (httpx2.HTTPError, httpx2.StreamError, ConnectionError) as error:
        raise PassingFault(f"the Hub can't be reached: {one_line(error)}") from None


def _by_status(answer: httpx2.Response) -> GivenUp | PassingFault:
    status = answer.status_code
    if status in (401, 403):
        return GivenUp(f"the Hub refused access ({status}); {TOKEN_HELP}")
    if status in (404, 410):
        return GivenUp(f"the Hub has no {answer.url.path} ({status})")
    if status in (408, 425, 429) or status >= 500:
        return PassingFault(f"the Hub is busy ({status})", _asked_to_wait(answer))
    return GivenUp(f"the Hub answered {status} to {answer.url.path}")


def _asked_to_wait(answer: httpx2.Response) -> float | None:
    """Seconds, from Retry-After (a number or a date) or the Hub's own limit of requests."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return min(float(asked), LONGEST_ASKED)
    date = email.utils.parsedate_tz(asked)
    if date is not None:
        return min(max(0.0, email.utils.mktime_tz(date) - time.time()), LONGEST_ASKED)
    limit = parse_ratelimit_headers(answer.headers)
    return min(float(limit.reset_in_seconds), LONGEST_ASKED) if limit is not None else None


def within(seconds: float, call: Callable[[], Result], should_stop: Callable[[], bool] = lambda: False) -> Result:
    """What `call` gives or raises; PassingFault after `seconds`, Stopped when `should_stop`. The call is then left to end by itself."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # handed on below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
        thread.join(min(POLL, left))
        if should_stop():
            raise Stopped
    if errors:
        raise errors[0]
    if not results:
        raise PassingFault(f"the Hub did not answer in {seconds:.0f} seconds")
    return results[0]


def hush() -> None:
    """The screen belongs to the trainer: faults are told once, in its own words."""
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    disable_progress_bars()
