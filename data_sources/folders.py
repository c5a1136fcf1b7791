"""A folder with all below it, and a line about what of it is passed over."""

import os
from collections.abc import Callable

from data_sources.rows import Notes


def files_below(root: str, wanted: Callable[[str], bool], notes: Notes) -> list[str]:
    """Files below `root` whose names are `wanted`, relative to it, with "/", sorted. Links are followed, and a folder is read once.

    What begins with a dot is passed over, and so is a folder that can't be opened: `notes` hears of both.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    hidden = 0

    def closed(error: OSError) -> None:
        notes.say(f"{os.path.relpath(error.filename, root)} is passed over: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=closed, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        hidden += sum(name.startswith(".") for name in folders) + sum(name.startswith(".") and wanted(name) for name in files)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.relpath(folder, root)
        found += [os.path.normpath(os.path.join(here, name)) for name in files if wanted(name) and not name.startswith(".")]
    notes.count("files or folders have names that begin with a dot and are passed over", hidden)
    return sorted(name.replace(os.sep, "/") for name in found)
