"""The docstrings of a Python file, each with the signature it belongs to, without importing anything.

`parsed` is the definition: the syntax tree, exact and slow. `docstrings` is what is used: it splits the source at its triple
quotes and looks at the code just before each string, many times as fast, and hands a file to `parsed` where a split could go
wrong. A test holds the two to each other on the installed packages.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple


class Docstring(NamedTuple):
    """What a module, class or function says about itself. `signature` is its `def` or `class` line, empty for a module."""

    signature: str
    text: str


QUOTES = '"""'
COMMENTS = r"\s*+(?:\#[^\n]*+\s*+)*+"
ROUND = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*+\))*+\))*+\))*+\)"  # brackets go four deep, and nothing is tried twice
OPENING = re.compile(rf"{COMMENTS}([rRuU]?)")
HEADER = re.compile(rf"[ \t]*+((?:async[ \t]+)?(?:def|class)[ \t]+\w+[ \t]*(?:{ROUND})?[ \t]*(?:->[^:\n]++)?):{COMMENTS}([rRuU]?)")
SHORT = re.compile(r""":[ \t]*(?:\#[^\n]*)?\n\s*[rRuU]?(["'])(?!\1)[^\n]*\1[ \t]*\n""")  # a line of single quotes, first of what a colon begins
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def docstrings(source: bytes) -> list[Docstring]:
    """All docstrings of a file, in the order of their lines; none where it isn't Python of this version."""
    if source.count(b'"""') < 2 and source.count(b"'''") < 2:
        return []  # what stands between single quotes is a few words long
    text = source.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    ambiguous = text.count(QUOTES) % 2 or "'''" in text or '\\"""' in text or '""""' in text or "\ufffd" in text or SHORT.search(text)
    return parsed(source) if ambiguous else list(_split(text))


def parsed(source: bytes) -> list[Docstring]:
    """The same from the syntax tree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody else's file
            tree = ast.parse(source)
        return list(_visit(tree, source.decode("utf-8-sig", errors="replace").splitlines()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # not Python, NUL bytes, nested too deep
        return []


def _split(text: str) -> Iterator[Docstring]:
    pieces = text.split(QUOTES)
    for index in range(0, len(pieces) - 1, 2):
        owner = _owner(pieces[index], first=index == 0)
        if owner is not None:
            signature, prefix = owner
            yield Docstring(_one_line(signature), inspect.cleandoc(_evaluated(pieces[index + 1], prefix)))


def _owner(code: str, first: bool) -> tuple[str, str] | None:
    """(signature, prefix of the string) where the string that follows `code` is a docstring."""
    if first and (opening := OPENING.fullmatch(code)):
        return "", opening[1]
    keyword = max(code.rfind("def "), code.rfind("class "))
    header = HEADER.fullmatch(code, code.rfind("\n", 0, keyword) + 1) if keyword >= 0 else None
    return (header[1], header[2]) if header else None


def _evaluated(inside: str, prefix: str) -> str:
    if "\\" not in inside or prefix in ("r", "R"):
        return inside
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(QUOTES + inside + QUOTES)
    except (SyntaxError, ValueError):
        return inside


def _visit(node: ast.AST, lines: list[str]) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text is not None:
            yield Docstring(_signature(node, lines), text)
    for block in BLOCKS:
        for child in getattr(node, block, None) or ():
            yield from _visit(child, lines)


def _signature(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """From `def` or `class` to the colon, as it is written."""
    if isinstance(node, ast.Module):
        return ""
    header = HEADER.match("\n".join([*lines[node.lineno - 1 : node.body[0].lineno]]))
    return _one_line(header[1]) if header else f"{'class' if isinstance(node, ast.ClassDef) else 'def'} {node.name}"


def _one_line(signature: str) -> str:
    return " ".join(signature.split()).replace("( ", "(").replace(", )", ")")
