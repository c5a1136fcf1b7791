"""The documentation inside the Python packages of this machine: real prose that is always there and needs no network.

It is made of docstrings with their signatures, the language reference (`pydoc_data.topics`), and the descriptions, READMEs and
guides that packages carry. Nothing is imported. A shard is a file, with one block; a file without prose gives an empty block.
Shards are named relative to the folder of packages they stand in, so that the same packages give the same order anywhere.
"""

import ast
import email
import os
import re
import string
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_sources.docstrings import docstrings
from data_sources.documents import Documents
from data_sources.text import chunks

# Tests explain nothing, vendored code repeats what stands elsewhere, and another environment's packages are not installed here:
# a third of the files.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "_vendor", "_vendored", "vendor", "licenses", "node_modules"})
GUIDES = (".md", ".rst")
SHORTEST = 25  # characters of a docstring that says something
MOST_SYMBOLS = 0.2  # share of digits and signs above which a text is a table or code
PROSE_BYTES = (string.ascii_letters + " \n.,;:'\"`()-_").encode() + bytes(range(128, 256))
# What a README shows rather than says: badges, pictures, markup on lines of its own, comments.
DECORATION = re.compile(r"(?m)^[ \t]*(?:\[?!\[.*|(?:<[^>\n]*>[ \t]*)+|\.\. (?:image|\|)[^\n]*|:(?:target|alt|width|height|align):[^\n]*)\n|<!--[\s\S]*?-->")


class InstalledDocs:
    """Reader of the documentation below `roots`; without them, of the standard library and of what is installed beside it."""

    def __init__(self, roots: Sequence[Path] | None = None):
        self._roots = package_folders() if roots is None else list(roots)
        self._paths: dict[str, str] = {}

    def shards(self) -> list[str]:
        if not self._paths:
            found: dict[str, str] = {}
            for root in self._roots:
                for name, path in _files(str(root), ""):
                    found.setdefault(name, path)  # the first one is what `import` would find
            self._paths = dict(sorted(found.items()))
        return list(self._paths)

    def blocks(self, shard: int) -> int | None:
        return 1

    def read(self, shard: int, block: int) -> Documents | None:
        if block > 0:
            return None
        name = self.shards()[shard]
        pieces = chunks(_prose(name, self._paths[name]))
        places = [name] if len(pieces) == 1 else [f"{name}, part {part}" for part in range(1, len(pieces) + 1)]
        return Documents(pieces, places, [None] * len(pieces))

    def content(self) -> str:
        return ""  # packages of other versions have folders of other names

    def notices(self) -> list[str]:
        return []  # a file that can't be read is one of thousands, and no one's mistake

    def close(self) -> None:
        pass


def package_folders() -> list[Path]:
    """The standard library and the folders of installed packages; never the project's own, which is on `sys.path` too."""
    installed = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return [Path(sysconfig.get_path("stdlib")), *installed]


def _files(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(name, path) of each file below `folder` that may hold documentation."""
    waiting = [(folder, prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED_FOLDERS:
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
            elif _extractor(entry.name) is not None:
                yield prefix + entry.name, entry.path


def _extractor(file: str) -> Callable[[bytes, str], str] | None:
    """How the prose of a file of this name is got out of it."""
    if file.endswith(".py"):
        return _of_module
    if file in ("METADATA", "PKG-INFO"):
        return _of_metadata
    return _of_guide if file.endswith(GUIDES) or file.upper().startswith("README") else None


def _prose(name: str, path: str) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError:
        return ""
    extract = _of_topics if name == "pydoc_data/topics.py" else _extractor(Path(path).name)
    assert extract is not None, f"{name} was listed as documentation"
    return extract(data, name)


def _of_module(data: bytes, name: str) -> str:
    parts = [f"{found.signature}\n{found.text}".lstrip("\n") for found in docstrings(data) if _is_prose(found.text)]
    if not parts:
        return ""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return "\n\n".join([module, *parts])


def _of_topics(data: bytes, name: str) -> str:
    """The language reference: a module with one dictionary, from a topic to its chapter."""
    try:
        tables = [node.value for node in ast.walk(ast.parse(data)) if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)]
        chapters = [chapter for table in tables for chapter in ast.literal_eval(table).values()]
    except (SyntaxError, ValueError):
        return ""
    return "\n\n".join(chapter.strip() for chapter in chapters)


def _of_metadata(data: bytes, name: str) -> str:
    message = email.message_from_string(data.decode("utf-8", errors="ignore"))
    return _of_guide((message["Description"] or str(message.get_payload())).encode(), name)


def _of_guide(data: bytes, name: str) -> str:
    text = DECORATION.sub("", data.decode("utf-8", errors="ignore").replace("\r\n", "\n").replace("\0", ""))
    return text.strip() if _is_prose(text) else ""


def _is_prose(text: str) -> bool:
    return len(text) >= SHORTEST and len(text.encode().translate(None, PROSE_BYTES)) <= MOST_SYMBOLS * len(text)
