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

    waiting = [root]  # and no call within a call: os.walk of Python 3.11 ends a thousand folders down
    while waiting:
        folder = waiting.pop()
        try:
            state, entries = os.stat(folder), list(os.scandir(folder))
        except OSError as error:
            notes.say(f"{os.path.relpath(folder, root)} is passed over: {error.strerror}")
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        folders = sorted(entry.name for entry in entries if _is_folder(entry))
        files = [name for name in {entry.name for entry in entries}.difference(folders) if wanted(name)]
        hidden += sum(name.startswith(".") for name in (*folders, *files))
        waiting += [os.path.join(folder, name) for name in reversed(folders) if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if not name.startswith(".")]
    notes.count("files or folders have names that begin with a dot and are passed over", hidden)
    return sorted(name.replace(os.sep, "/") for name in found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
