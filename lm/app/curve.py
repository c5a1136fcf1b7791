"""A curve drawn in characters: the loss over the tokens, the tokens on a logarithmic axis, since most is learned early.

A braille character holds 2 x 4 dots, so W x H characters show 2W x 4H dots. Each column of dots is the mean of its points.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lm.app.words import counted

Point = tuple[float, float]
FINENESS = 1000  # points kept for each factor of e

# The bit of each dot in a braille character, by column and row.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Curve:
    """Points in order of x. Those nearer to each other than a logarithmic axis can show are one point, their mean."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float, int]] = {}

    @property
    def points(self) -> list[Point]:
        return [(x / count, y / count) for x, y, count in self._sums.values()]

    def add(self, x: float, y: float) -> None:
        """A new point at the right end. One that is no number is left out."""
        if math.isfinite(y):
            place = int(math.log(max(x, 1.0)) * FINENESS)
            sum_x, sum_y, count = self._sums.get(place, (0.0, 0.0, 0))
            self._sums[place] = (sum_x + x, sum_y + y, count + 1)


class Drawing(NamedTuple):
    """A drawn curve, in rows of equal width."""

    labels: list[str]  # left of each row of the curve: a value and its tick
    rows: list[str]
    axis: str
    below: str


def draw(points: Sequence[Point], width: int, height: int) -> Drawing:
    """The curve of `points` in `width` x `height` characters, labels and the two lines of the axis included."""
    rows = max(height - 2, 1)
    low, high = _span([y for _, y in points])
    labels = _labels(low, high, rows)
    across = max(width - len(labels[0]), 2)
    scale = _Scale(points[0][0] if points else 1.0, points[-1][0] if points else 10.0, 2 * across)
    means = _means(points, scale)
    axis, below = _axis(scale, across, len(labels[0]))
    return Drawing(labels, _dotted(means, low, high, across, rows), axis, below)


def _span(values: Sequence[float]) -> Point:
    """The values shown, from lowest to highest, never of no height."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = max((high - low) * 0.04, 0.02)
    return low - room, high + room


class _Scale:
    """Places of x among `columns`, logarithmic."""

    def __init__(self, first: float, last: float, columns: int) -> None:
        self.columns = columns
        self.first, self.last = max(first, 1.0), max(last, first * 1.01, 2.0)

    def column(self, x: float) -> int:
        share = math.log(max(x, self.first) / self.first) / math.log(self.last / self.first)
        return min(int(share * self.columns), self.columns - 1)


def _means(points: Sequence[Point], scale: _Scale) -> list[float | None]:
    """The mean of the points of each column; between columns with points a straight line, since few points are many columns early."""
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = scale.column(x)
        total, count = sums.get(column, (0.0, 0))
        sums[column] = (total + y, count + 1)
    means: list[float | None] = [None] * scale.columns
    before: tuple[int, float] | None = None
    for column, (total, count) in sums.items():
        mean = total / count
        if before is not None:
            start, value = before
            for between in range(start + 1, column):
                means[between] = value + (mean - value) * (between - start) / (column - start)
        means[column] = mean
        before = (column, mean)
    return means


def _dotted(means: Sequence[float | None], low: float, high: float, width: int, height: int) -> list[str]:
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column, mean in enumerate(means):
        if mean is None:
            continue
        dot = min(int((high - mean) / (high - low) * 4 * height), 4 * height - 1)
        start = dot if before is None else before + (dot > before) - (dot < before)
        for place in range(min(start, dot), max(start, dot) + 1):
            cells[place // 4][column // 2] |= DOTS[column % 2][place % 4]
        before = dot
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row) for row in cells]


def _labels(low: float, high: float, rows: int) -> list[str]:
    """Round values at their rows, as "4.5 ┤"."""
    step = _round_step((high - low) / max(rows / 2.5, 3))
    digits = max(0, -math.floor(math.log10(step)))
    by_row: dict[int, str] = {}
    value = math.ceil(low / step) * step
    while value <= high:
        by_row.setdefault(min(int((high - value) / (high - low) * rows), rows - 1), f"{value:.{digits}f}")
        value += step
    wide = max(map(len, by_row.values()), default=1)
    return [f"{by_row[row]:>{wide}} ┤" if row in by_row else f"{'':>{wide}} │" for row in range(rows)]


def _round_step(least: float) -> float:
    size = 10 ** math.floor(math.log10(least))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= least)


def _axis(scale: _Scale, across: int, margin: int) -> tuple[str, str]:
    """The line below the curve with a tick at each power of ten, and the words below that: the ticks' and the newest count."""
    line, words = ["─"] * across, [" "] * (margin + across)
    newest = counted(int(scale.last))
    end = max(margin + across - len(newest), 0)
    words[end:] = newest
    free = margin - 1
    for power in range(math.ceil(math.log10(scale.first)), math.floor(math.log10(scale.last)) + 1):
        column = scale.column(10.0**power) // 2
        word = counted(10**power)
        start = max(margin + column - len(word) // 2, 0)
        line[column] = "┴"
        if start >= free and start + len(word) < end:
            words[start : start + len(word)] = word
            free = start + len(word) + 1
    return " " * (margin - 1) + "└" + "".join(line), "".join(words)
