"""Sorted rows: in their order and back, and products by group that equal a loop over rows, by torch's call for groups and without it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.ops import grouped
from lm.ops.grouped import by_group, by_segments, combined, dispatched, grouped_linear

N, K, G, INNER, OUTER = 29, 3, 5, 16, 24


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


CHOICES = {
    "any": torch.randint(G, (N, K), generator=torch.Generator().manual_seed(1)),
    "all one": torch.full((N, K), 2),
    "some never": torch.tensor([[1, 3, 3]]).expand(N, K),
    "the first and the last": torch.tensor([[0, 4, 0]]).expand(N, K),
    "none": torch.zeros(0, K, dtype=torch.int64),
}
choices = pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES.keys())


def products_one_by_one(x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """(N, O): for each row the sum of what its choices make of it."""
    rows = [sum(weight[group] @ row for group in groups) for row, groups in zip(x, chosen.tolist(), strict=True)]
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1])


@choices
def test_rows_stand_by_group_and_come_back(chosen: Tensor) -> None:
    order, x = by_group(chosen, G), drawn(len(chosen), INNER, seed=2)
    stands = chosen.flatten()[order.choice]
    assert torch.equal(stands, chosen.flatten().sort().values)
    assert order.ends.tolist() == [int((chosen <= group).sum()) for group in range(G)] and order.ends.dtype == torch.int32
    assert torch.equal(order.choice[order.place], torch.arange(chosen.numel()))
    torch.testing.assert_close(combined(dispatched(x, order), order), K * x)


@choices
def test_products_and_gradients_equal_a_loop_over_rows(chosen: Tensor) -> None:
    order, x, weight = by_group(chosen, G), drawn(len(chosen), INNER, seed=2).requires_grad_(), drawn(G, OUTER, INNER, seed=3).requires_grad_()
    found = combined(grouped_linear(dispatched(x, order), weight, order), order)
    wanted = products_one_by_one(x, weight, chosen)
    torch.testing.assert_close(found, wanted)
    if not len(chosen):
        return
    read = drawn(*found.shape, seed=4)
    ours, theirs = (torch.autograd.grad((y * read).sum(), [x, weight]) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_differences() -> None:
    order = by_group(CHOICES["any"][:4], G)
    both = drawn(4, 3, seed=2).requires_grad_(), drawn(G, 2, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: combined(grouped_linear(dispatched(x, order), weight, order), order), both)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [name for name in CHOICES if name != "none"])
def test_torchs_call_for_groups_gives_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is called on GPUs; here on the CPU's form of it."""
    order = by_group(CHOICES[name], G)
    x, weight = drawn(N * K, INNER, seed=2, dtype=dtype).requires_grad_(), drawn(G, OUTER, INNER, seed=3, dtype=dtype).requires_grad_()
    read = drawn(N * K, OUTER, seed=4, dtype=dtype)
    wanted = by_segments(x, weight, order.ends)
    monkeypatch.setattr(grouped, "has_kernel", lambda x, weight: True)
    found = grouped_linear(x, weight, order)
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, wanted, **tolerance)
    ours, theirs = (torch.autograd.grad((y * read).sum(), [x, weight]) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, **tolerance)


def test_the_kernel_is_asked_on_gpus_alone_and_autocast_is_heard() -> None:
    order, x, weight = by_group(CHOICES["any"], G), drawn(N * K, INNER, seed=2), drawn(G, OUTER, INNER, seed=3)
    assert not grouped.has_kernel(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_linear(x.float(), weight.float(), order).dtype == torch.bfloat16
        assert F.linear(x, weight[0]).dtype == grouped_linear(x, weight, order).dtype == torch.float64
