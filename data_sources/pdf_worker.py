"""The process that opens PDFs, apart from the trainer: a hostile file can take its time and its memory, and nothing else.

    {"path", "first", "last", "seconds", "memory"}  ->  {"pages": 137} or {"refused": "why"}, then {"text"} or {"fault": "why"} for each page
    {"title_of": path, "seconds", "memory"}  ->  {"title"}, or {"refused": "why"}

Requests come as lines of JSON on standard input, answers go out as such. Each page has its seconds of processor time, after which
the system ends this process, wherever it is; the reader then starts another for the pages that are left. It ends when its
input does, hence with the process that started it.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pypdf import PageObject, PdfReader, errors
from pypdf.generic import TextStringObject

from data_sources.pdf_columns import in_reading_order
from data_sources.text import OPENING

MOST_CHARACTERS = 1_000_000  # on a page; a printed one has a few thousand
TWO_COLUMNS = 1_000  # characters below which a page has no two columns worth the time to tell
LOOKS = 4  # pages without such columns, after which a request looks for no more: one document is drawn by one program

# The first that fits. RecursionError: objects nested without end; LimitReachedError: pypdf's own guards against bombs.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (errors.EmptyFileError, "is empty"),
    (errors.FileNotDecryptedError, "is encrypted with a password"),
    (errors.WrongPasswordError, "is encrypted with a password"),
    (errors.DependencyError, "is encrypted with AES, which needs: pip install 'pypdf[crypto]'"),
    (errors.LimitReachedError, "unpacks to more than a PDF of text would"),
    (MemoryError, "needs more memory than a PDF may"),
    (RecursionError, "is nested without end"),
    (OSError, "can't be opened"),
    (errors.PyPdfError, "is no PDF, or a broken one"),
)


def main() -> None:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not stand between the answers
    for line in sys.stdin:
        request = json.loads(line)
        limit_memory(request["memory"])
        for answer in answered(request):
            print(json.dumps(answer), file=answers, flush=True)


def answered(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers to a request, each as soon as it is known."""
    if "title_of" in request:
        return title(request["title_of"], request["seconds"])
    return read(request["path"], request["first"], request["last"], request["seconds"])


def title(path: str, seconds: int) -> Iterator[dict[str, Any]]:
    """The beginning of the title in a file's document information (ISO 32000-1, 14.3.3); empty where it is no text, or not there."""
    limit_time(seconds)
    try:
        with open(path, "rb") as file:
            found = (_opened(file).metadata or {}).get("/Title")
            found = found and found.get_object()
            yield {"title": found[:OPENING] if isinstance(found, TextStringObject) else ""}
    except Exception as error:
        yield {"refused": _reason(error)}


def read(path: str, first: int, last: int, seconds: int) -> Iterator[dict[str, Any]]:
    """The number of pages of a file, then its pages `first` to `last` (not included)."""
    limit_time(seconds)
    try:
        with open(path, "rb") as file:
            pages = _opened(file).pages
            yield {"pages": len(pages)}
            layout = Layout()
            for number in range(first, min(last, len(pages))):
                limit_time(seconds)
                yield _page(pages, number, layout)
    except Exception as error:  # a broken file may raise anything; it is one file, and it is named
        yield {"refused": _reason(error)}


def _opened(file: IO[bytes]) -> PdfReader:
    """ValueError without the mark of a PDF where readers look for it: pypdf would search a whole disk image for objects."""
    start = file.read(1024)
    if not start:
        raise errors.EmptyFileError
    if b"%PDF-" not in start:
        raise errors.PdfReadError
    return PdfReader(file)


def _page(pages: Sequence[PageObject], number: int, layout: "Layout") -> dict[str, str]:
    try:
        page = pages[number]
        return {"text": layout.ordered(page, page.extract_text())[:MOST_CHARACTERS]}
    except Exception as error:
        return {"fault": _reason(error)}


class Layout:
    """Looks at the layout of the first long pages, which doubles their time, and goes on where it found columns drawn across."""

    def __init__(self) -> None:
        self._looks_left = LOOKS

    def ordered(self, page: PageObject, plain: str) -> str:
        if len(plain) < TWO_COLUMNS or self._looks_left == 0:
            return plain
        try:
            layout = page.extract_text(extraction_mode="layout", layout_mode_space_vertically=False)
        except (errors.PyPdfError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return plain  # the layout is experimental in pypdf; the text is there without it
        ordered = in_reading_order(plain, layout)
        self._looks_left = LOOKS if ordered != plain else self._looks_left - 1
        return ordered


def limit_time(seconds: int) -> None:
    """The system kills this process after so many more seconds of processor time. A clock on the wall would make the text depend on the load."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)


def limit_memory(size: int) -> None:
    if sys.platform == "linux":  # elsewhere the limit exists and is not kept
        import resource

        _limit(resource.RLIMIT_AS, size)


def _limit(kind: int, value: int) -> None:
    import resource

    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _reason(error: Exception) -> str:
    return next((reason for kind, reason in REASONS if isinstance(error, kind)), f"can't be read ({type(error).__name__})")


if __name__ == "__main__":
    main()
