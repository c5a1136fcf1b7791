"""The reader of `files` sources: a file, or a folder with all below it."""

import os

from data_sources.config import FilesSource
from data_sources.documents import GivenUp
from data_sources.ranges import LocalFile
from data_sources.rows import Notes, RowFormat
from data_sources.shards import KINDS, FileReader, kind_of, readable_files


def files_reader(source: FilesSource) -> FileReader:
    """Reader of the text, JSON lines and parquet files at `source.path`."""
    notes = Notes()
    folder = os.path.dirname(source.path) if os.path.isfile(source.path) else source.path
    return FileReader(lambda: _listed(source.path), lambda name: LocalFile(os.path.join(folder, name)), RowFormat(source, notes), notes, strict=False)


def _listed(path: str) -> list[str]:
    if not os.path.exists(path):
        raise GivenUp(f"there is no {os.path.abspath(path)}; make it, or correct the source's path")
    names = readable_files(path) if os.path.isdir(path) else [os.path.basename(path)] if kind_of(path) else []
    if not names:
        raise GivenUp(f"{os.path.abspath(path)} is or holds no file that can be read ({', '.join(KINDS)}; the text kinds also as .gz or .zst)")
    return names
