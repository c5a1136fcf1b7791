"""How much of a text stood in what a memory handed in with it."""

import numpy as np
import pytest
import torch

from data_sources.batch import Arrivals
from lm.memory.lookup import NOT_HANDED, longest_run, overlaps_in


def runs_of(text: list[int]) -> list[tuple[int, ...]]:
    return [tuple(text[start:end]) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_run_is_the_longest_slice_that_both_have(seed: int) -> None:
    draw = np.random.default_rng(seed)
    text, others, length = draw.integers(3, size=9), draw.integers(3, size=(2, 12)), draw.integers(13, size=2)
    had = {run for other, count in zip(others.tolist(), length.tolist(), strict=True) for run in runs_of(other[:count])}
    assert longest_run(text, others, length) == max((len(run) for run in runs_of(text.tolist()) if run in had), default=0)


def test_each_stretch_is_compared_with_what_was_handed_in_last() -> None:
    """Rows of 6. In the first a document begins at 0, is answered at 2 and 4; in the second one goes on, is answered at 0, and another begins at 3."""
    targets = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]])
    restart = torch.tensor([[True, False, False, False, False, False], [False, False, False, True, False, False]])
    handed = torch.tensor([[[3, 0, 4, 0]], [[9, 5, 6, 9]], [[0, 8, 9, 7]]])
    found = overlaps_in(targets, restart, Arrivals(torch.tensor([2, 4, 6]), handed, torch.tensor([[4], [4], [2]])))
    no = NOT_HANDED
    torch.testing.assert_close(found, torch.tensor([[no, no, 1 / 2, 1 / 2, 1, 1], [1 / 3, 1 / 3, 1 / 3, no, no, no]]))


def test_where_no_neighbour_is_there_nothing_was_handed_in() -> None:
    arrivals = Arrivals(torch.tensor([1]), torch.zeros(1, 2, 4, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    assert overlaps_in(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool), arrivals).unique().tolist() == [NOT_HANDED]
