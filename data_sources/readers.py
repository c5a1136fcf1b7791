"""The table from a source's type to its reader. A new kind of source is one function and one row.

Each function imports its reader, and what that needs, when it is called and not before.
"""

from collections.abc import Callable
from pathlib import Path

from data_sources.config import AnySource, CacheConfig, FilesSource, HubSource, InstalledDocsSource, PastSource, PdfSource
from data_sources.documents import Reader


def _hub(source: HubSource, cache: CacheConfig | None, titled: bool) -> Reader:
    from data_sources.hub import hub_reader

    return hub_reader(source, cache, titled)


def _files(source: FilesSource, cache: CacheConfig | None, titled: bool) -> Reader:
    from data_sources.files import files_reader

    return files_reader(source, titled)


def _pdf(source: PdfSource, cache: CacheConfig | None, titled: bool) -> Reader:
    from data_sources.pdf import PdfFiles

    return PdfFiles(Path(source.path), titled=titled)


def _installed_docs(source: InstalledDocsSource, cache: CacheConfig | None, titled: bool) -> Reader:
    from data_sources.installed_docs import InstalledDocs

    return InstalledDocs()


def _past(source: PastSource, cache: CacheConfig | None, titled: bool) -> Reader:
    from data_sources.past import PastReader

    return PastReader(source)


READERS: dict[str, Callable[..., Reader]] = {"hf": _hub, "files": _files, "pdf": _pdf, "installed_docs": _installed_docs, "past": _past}


def open_reader(source: AnySource | PastSource, cache: CacheConfig | None = None, titled: bool = False) -> Reader:
    """The reader of a source of the `data` section. `cache` is that section's, for what comes over the network. titled: the documents tell
    their titles, where they have any; else none are looked for."""
    return READERS[source.type](source, cache, titled)
