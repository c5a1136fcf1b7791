"""What tells, in one short text, that a source is another than it was: a mark of its files' names, and one of what they hold.

    "3f2a9c0e11d27b46"                         names only: all that an older program noted
    "3f2a9c0e11d27b46 text 90b1c4d2e8f7a355"   and of what the files of this machine hold
    "3f2a9c0e11d27b46 revision 5c1de0a94b7f"   and of the revision of a data set

Dates are not looked at: a folder that was copied is the same.
"""

import hashlib
from collections.abc import Iterable, Sequence

from data_sources.documents import Unreadable
from data_sources.ranges import LocalFile

WHOLE_BYTES = 16 << 20  # of a source: files of an even share of it, or less, are read whole
PIECE_BYTES = 4096  # of a larger file its size, its beginning and its end are looked at, and pieces between where the files are few
FEWEST_PIECES, MOST_PIECES = 2, 16
ALL_PIECES = 4096
MOST_OPENED = 20_000  # files; of those past them the names have to do
CHANGED = {"text": "its files hold other text than when it was last read", "revision": "the data set has a new revision since it was last read"}
OTHER_FILES = "its files are others than when it was last read"
GONE = "it can't be read any more"


def fingerprint(names: Iterable[str], content: str = "") -> str:
    """Of a source with files of these names, the revision left out, and with what its reader says of their content."""
    return " ".join(filter(None, [_digest(map(_without_revision, names)), content]))


def change(before: str, now: str) -> str:
    """What two fingerprints say of a source, in words; nothing where it is as it was, as far as both tell."""
    (names, *content), (names_now, *content_now) = before.split(" "), now.split(" ")
    if not (before and now):
        return ""
    if names != names_now:
        return OTHER_FILES
    told = len(content) == len(content_now) == 2 and content != content_now
    return CHANGED.get(content_now[0], OTHER_FILES) if told else ""


def text_mark(paths: Sequence[str]) -> str:
    """A mark of what files of this machine hold: quick for however many of whatever size, blind only to what changes inside a large file
    and leaves its size as it was."""
    count = max(1, len(paths))
    share, pieces = WHOLE_BYTES // count, min(max(ALL_PIECES // count, FEWEST_PIECES), MOST_PIECES)
    found = hashlib.blake2b(digest_size=8)
    for path in paths[:MOST_OPENED]:
        for part in _parts(path, share, pieces):
            found.update(len(part).to_bytes(8) + part)
    return f"text {found.hexdigest()}"


def _parts(path: str, share: int, pieces: int) -> Iterable[bytes]:
    try:
        file = LocalFile(path)
    except (OSError, Unreadable):
        return [b"no file"]
    try:
        size = file.size()
        if size <= max(share, pieces * PIECE_BYTES):
            return [file.read(0, size)]
        starts = [(size - PIECE_BYTES) * piece // (pieces - 1) for piece in range(pieces)]
        return [size.to_bytes(8), *(file.read(start, start + PIECE_BYTES) for start in starts)]
    except OSError:
        return [b"unreadable"]
    finally:
        file.close()


def revision_mark(names: Iterable[str]) -> str:
    """A mark of the revisions in the names of a data set's files; nothing where they have none. It may hold the same text as the one before."""
    revisions = {revision for name in names if (revision := _revision(name))}
    return f"revision {_digest(sorted(revisions))}" if revisions else ""


def _digest(words: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(words).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _revision(name: str) -> str:
    """ "5c1d" of "datasets/owner/name@5c1d/a.parquet"."""
    return name.partition("@")[2].partition("/")[0] if name.startswith("datasets/") else ""


def _without_revision(name: str) -> str:
    """A data set's new revision may hold the same files."""
    repository, at, rest = name.partition("@")
    return repository + rest.partition("/")[2] if at and name.startswith("datasets/") else name
