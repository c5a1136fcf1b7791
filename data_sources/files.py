"""The reader of `files` sources: a file, or a folder with all below it."""

import os
from collections.abc import Sequence

from data_sources.config import FilesSource
from data_sources.documents import GivenUp
from data_sources.fingerprint import text_mark
from data_sources.folders import files_below
from data_sources.ranges import LocalFile
from data_sources.rows import Notes, RowFormat, printable
from data_sources.shards import KINDS, FileReader, kind_of


def files_reader(source: FilesSource, titled: bool = False) -> FileReader:
    """Reader of the text, JSON lines and parquet files at `source.path`. titled: with titles."""
    notes = Notes()
    folder = os.path.dirname(source.path) if os.path.isfile(source.path) else source.path

    def path(name: str) -> str:
        return os.path.join(folder, name)

    def marked(names: Sequence[str]) -> str:
        return text_mark([path(name) for name in names])

    return FileReader(lambda: _listed(source.path, notes), lambda name: LocalFile(path(name)), marked, RowFormat(source, notes, titled), notes, strict=False)


def _listed(path: str, notes: Notes) -> list[str]:
    if not os.path.exists(path):
        raise GivenUp(printable(f"there is no {os.path.abspath(path)}; make it, or correct the source's path"))
    names = files_below(path, lambda name: kind_of(name) is not None, notes) if os.path.isdir(path) else [os.path.basename(path)] if kind_of(path) else []
    if not names:
        raise GivenUp(printable(f"{os.path.abspath(path)} is or holds no file that can be read ({', '.join(KINDS)}; the text kinds also as .gz or .zst)"))
    return names
