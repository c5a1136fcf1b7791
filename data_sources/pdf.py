"""PDFs: a file, or a folder with all below it. A shard is a file, a block some of its pages, a document a few thousand characters.

What can't be read is named once and passed over: a file may be encrypted, scanned, broken, or made to exhaust its reader, hence
another process opens it (`pdf_worker`), within limits of time and memory. A block is read afresh from the file and depends on
nothing that was read before it.
"""

from bisect import bisect_right
from pathlib import Path

from data_sources.documents import Documents, GivenUp
from data_sources.fingerprint import text_mark
from data_sources.folders import files_below
from data_sources.pdf_process import LIMITS, Extract, Limits, PdfProcess, Refused
from data_sources.pdf_text import Paragraph, paragraphs
from data_sources.rows import Notes, printable, title_of
from data_sources.text import chunks

PAGES = 32  # of a block, at most


class PdfFiles:
    """Reader of the PDF at `path`, or of all below it."""

    def __init__(self, path: Path, limits: Limits = LIMITS, titled: bool = False):
        """titled: the documents of a file tell its title."""
        self._root = path
        self._process = PdfProcess(limits)
        self._files: list[str] = []
        self._pages: dict[int, int] = {}  # of the files opened so far; 0 where none can be read
        self._titled = titled
        self._titles: dict[int, str] = {}  # of the files that were asked for it
        self._named: set[int] = set()
        self._notes = Notes()
        self._last_named = "all were passed over"

    def shards(self) -> list[str]:
        if not self._files:
            self._files = [self._root.name] if self._root.is_file() else files_below(str(self._root), _is_pdf, self._notes)
            if not self._files:
                raise GivenUp(self._nothing_there())
        return self._files

    def blocks(self, shard: int) -> int | None:
        """One at least: that of a file that can't be read is empty."""
        if shard not in self._pages:
            self._extract(shard, 0, 0)
        return max(1, -(-self._pages[shard] // PAGES))

    def read(self, shard: int, block: int) -> Documents | None:
        count = self.blocks(shard)
        if block >= count:
            return None
        pages = self._pages[shard]
        first, last = pages * block // count, pages * (block + 1) // count  # of even size: repeated headers show in the last one too
        if first == last:
            return Documents([], [], [])
        extract = self._extract(shard, first, last)
        texts = [(first + index + 1, page.text) for index, page in enumerate(extract.pages)]
        documents = _documents(Path(self.shards()[shard]).name, paragraphs(texts))
        self._name_faults(shard, first, extract, bool(documents))
        if self._titled and documents:
            documents.titles = [self._title(shard)] * len(documents)
        return documents

    def content(self) -> str:
        return text_mark([str(self._path(shard)) for shard in range(len(self.shards()))])

    def notices(self) -> list[str]:
        return self._notes.take()

    def close(self) -> None:
        self._process.close()

    def _path(self, shard: int) -> Path:
        return self._root if self._root.is_file() else self._root / self.shards()[shard]

    def _extract(self, shard: int, first: int, last: int) -> Extract:
        """Pages of a file that may turn out unreadable, now or in the middle: then it has none."""
        try:
            if not self._path(shard).is_file():  # a link to nowhere, or a pipe, which would never end
                raise Refused("is no file")
            extract = self._process.read(self._path(shard), first, last)
        except Refused as refusal:
            self._name(shard, str(refusal))
            extract = Extract(0, [])
        self._pages.setdefault(shard, extract.count)
        if len(self._pages) == len(self.shards()) and not any(self._pages.values()):
            raise GivenUp(self._nothing_readable())
        return extract

    def _title(self, shard: int) -> str:
        """Asked for by itself, after the pages: a description made to hurt costs the title alone."""
        if shard not in self._titles:
            self._titles[shard] = title_of(self._process.title(self._path(shard)))
        return self._titles[shard]

    def _nothing_there(self) -> str:
        path = printable(str(self._root.absolute()))
        return (
            f"{path} holds no PDF; put some there, or correct the source's path"
            if self._root.is_dir()
            else f"there is no {path}; make it, or correct the source's path"
        )

    def _nothing_readable(self) -> str:
        last = self._last_named
        return f"{printable(str(self._root))}: none of its {len(self._files)} PDFs can be read; the last: {last}" if len(self._files) > 1 else last

    def _name_faults(self, shard: int, first: int, extract: Extract, has_text: bool) -> None:
        faults = [(first + index + 1, page.fault) for index, page in enumerate(extract.pages) if page.fault]
        if faults:
            more = f", and {len(faults) - 1} pages more" * (len(faults) > 1)
            self._name(shard, f"page {faults[0][0]} {faults[0][1]}{more}")
        elif not has_text:
            self._name(shard, "holds no text (scanned?)")

    def _name(self, shard: int, reason: str) -> None:
        """A line for the log, one for each file."""
        if shard not in self._named:
            self._named.add(shard)
            self._last_named = printable(f"{self.shards()[shard]} {reason}; passed over")
            self._notes.say(self._last_named)


def _is_pdf(name: str) -> bool:
    return name.lower().endswith(".pdf")


def _documents(name: str, prose: list[Paragraph]) -> Documents:
    """Chunks, each with the page it begins on."""
    text = "\n\n".join(paragraph.text for paragraph in prose)
    starts, at = [], 0
    for paragraph in prose:
        starts.append(at)
        at += len(paragraph.text) + 2
    pieces, places, at = chunks(text), [], 0
    for piece in pieces:
        at = text.index(piece, at)
        places.append(f"{name}, page {prose[bisect_right(starts, at) - 1].page}")
        at += len(piece)
    return Documents(pieces, places, [None] * len(pieces))
