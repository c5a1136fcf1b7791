"""The reading order of a page set in two columns.

The plain text of a page comes in the order in which it was drawn, which mostly is the order of reading. Some programs draw line by
line across both columns; then each line of the text holds half a sentence of each. That is told from a second extraction that
keeps the layout: the rows are cut at the gutter, and where the plain text runs on across it, the columns are put one after
the other. Any other page keeps its plain text, so that this never makes it worse.
"""

import re
from typing import NamedTuple

GUTTER = re.compile(r"(?<=\S) {3,}(?=\S)")
FEWEST_ROWS = 10  # with text on both sides
FEWEST_LETTERS = 20  # on average on a side; a table's cells are shorter
SEAM = 6  # letters on each side of the gutter that are looked for in the plain text


class Row(NamedTuple):
    """A line of the page. `right` is None where it runs through, as a title does."""

    left: str
    right: str | None


def in_reading_order(plain: str, layout: str) -> str:
    """`plain`, or the columns of `layout` one after the other where `plain` reads across them."""
    rows = _rows([line.rstrip() for line in layout.split("\n") if line.strip()])
    both = [row for row in rows if row.right and row.left]
    if len(both) < max(FEWEST_ROWS, len(rows) // 2):
        return plain
    if min(sum(len(row.left) for row in both), sum(len(row.right or "") for row in both)) < FEWEST_LETTERS * len(both):
        return plain
    drawn = _solid(plain)
    across = sum(_solid(row.left)[-SEAM:] + _solid(row.right or "")[:SEAM] in drawn for row in both)
    return "\n".join(_column_by_column(rows)) if across > 0.6 * len(both) else plain


def _rows(lines: list[str]) -> list[Row]:
    """Lines cut at the gutter: the widest gap of each, where it lies in the middle of the page."""
    width = max((len(line) for line in lines), default=0)
    gaps = [max(GUTTER.finditer(line), key=lambda gap: gap.end() - gap.start(), default=None) for line in lines]
    middle = [gap.end() for gap in gaps if gap is not None and 0.25 * width < gap.end() < 0.75 * width]
    if not middle:
        return [Row(line, None) for line in lines]
    gutter = sorted(middle)[len(middle) // 2]
    slack = width // 10  # the layout is made of characters of one width, the page was not
    return [_row(line, gap, gutter, slack) for line, gap in zip(lines, gaps, strict=True)]


def _row(line: str, gap: re.Match[str] | None, gutter: int, slack: int) -> Row:
    if gap is not None and abs(gap.end() - gutter) <= slack:
        return Row(line[: gap.start()].strip(), line[gap.end() :].strip())
    indent = len(line) - len(line.lstrip())
    if indent >= gutter - slack:
        return Row("", line.strip())
    return Row(line.strip(), "" if len(line) <= gutter and indent < gutter // 4 else None)


def _column_by_column(rows: list[Row]) -> list[str]:
    """All of the left, then all of the right, between one line that runs through and the next."""
    text: list[str] = []
    left: list[str] = []
    right: list[str] = []
    for row in [*rows, Row("", None)]:
        if row.right is None:
            text += [*left, *right, row.left]
            left, right = [], []
            continue
        left += [row.left] if row.left else []
        right += [row.right] if row.right else []
    return text


def _solid(text: str) -> str:
    return "".join(text.split())
