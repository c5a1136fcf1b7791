"""Pearson's test: whether draws are from a distribution."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

FEWEST = 5.0  # draws expected in a cell; rarer ones are counted together


def statistic(drawn: Sequence[Hashable], expected: Mapping[Hashable, float]) -> tuple[float, int]:
    """Pearson's chi-square of draws against chances that add up to 1, and its degrees of freedom; infinite where what can't be was drawn."""
    found = Counter(drawn)
    if any(expected.get(cell, 0.0) <= 0 for cell in found):
        return float("inf"), 1
    cells: list[tuple[float, float]] = []
    rare = [0.0, 0.0]
    for cell, chance in expected.items():
        if chance * len(drawn) >= FEWEST:
            cells.append((found[cell], chance * len(drawn)))
        else:
            rare = [rare[0] + found[cell], rare[1] + chance * len(drawn)]
    cells += [tuple(rare)] if rare[1] >= FEWEST else []
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in cells), len(cells) - 1


def agrees(drawn: Sequence[Hashable], expected: Mapping[Hashable, float]) -> bool:
    """Within four deviations of what is expected of a true one, which one in some ten thousand is not."""
    found, freedom = statistic(drawn, expected)
    return found <= freedom + 4 * (2 * freedom) ** 0.5
