"""Files that are there as a whole or not at all."""

import contextlib
import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk, as fsync does for what stands in a file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(path: Path) -> None:
    """Delete an unfinished file, if it is there. What made it fail, as a disk that became read-only, may hold here too."""
    with contextlib.suppress(OSError):
        path.unlink()
