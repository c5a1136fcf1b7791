"""Rows of documents are handed to a kernel that reads documents one behind the other, and come back as rows."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lm.ops.fused import by_documents, fused_kernel, installed
from lm.ops.linear_attention import decaying_recurrence
from tests.units.recurrences import STARTS, B, Starts, T, context_of, drawn

H, K, V = 3, 5, 7


def read_documents(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, initial_state: Tensor, output_final_state: bool, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As flash-linear-attention's gla kernel takes and gives: with `cu_seqlens` a single row, and a memory for each document."""
    assert scale == 1.0 and output_final_state
    if cu_seqlens is None:
        return decaying_recurrence(q, k, v, g, initial_state)
    assert len(q) == 1 and len(initial_state) == len(cu_seqlens) - 1
    found = []
    for number, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        found.append(decaying_recurrence(*(each[:, start:end] for each in (q, k, v, g)), initial_state[number, None]))
    return torch.cat([y for y, _ in found], 1), torch.cat([memory for _, memory in found])


@pytest.mark.parametrize("starts", [[], STARTS, [(0, 0)], [(row, at) for row in range(B) for at in range(T)]], ids=["none", "some", "the first", "all"])
def test_documents_are_those_of_the_rows(starts: Starts) -> None:
    """Values, and gradients of all that went in."""
    given = [drawn(B, T, H, K, seed=0), drawn(B, T, H, K, seed=1), drawn(B, T, H, V, seed=2), -drawn(B, T, H, K, seed=3).exp(), drawn(B, H, K, V, seed=4)]
    query, key, value, log_decay, memory = (each.requires_grad_() for each in given)
    context = context_of(query[..., 0].detach(), starts)
    restart = context.restart if context.any_restart else None
    wanted = decaying_recurrence(query, key, value, log_decay, memory, restart=restart)
    found = by_documents(read_documents, {"q": query, "k": key, "v": value, "g": log_decay}, memory, restart, context.cu_seqlens)
    gradients = [torch.autograd.grad(sum(part.square().sum() for part in each), given) for each in (found, wanted)]
    for left, right in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(left, right)


class OnGpu(NamedTuple):
    """As much of a tensor on a GPU as is looked at."""

    shape: tuple[int, ...]
    device: torch.device = torch.device("cuda")


@pytest.mark.parametrize(
    ("x", "dtype", "taken"),
    [
        (OnGpu((2, 8, 4)), torch.bfloat16, True),
        (OnGpu((2, 8, 4)), torch.float32, False),
        (OnGpu((2, 1, 4)), torch.bfloat16, False),
        (OnGpu((2, 0, 4)), torch.bfloat16, False),
        (torch.zeros(2, 8, 4), torch.bfloat16, False),
    ],
    ids=["rows in bfloat16", "float32", "one token", "nothing", "on the CPU"],
)
def test_only_what_a_kernel_is_for_goes_there(x: Any, dtype: torch.dtype, taken: bool) -> None:
    assert (fused_kernel("torch.relu", x, dtype) is torch.relu) == taken


def test_a_kernel_that_is_not_installed_is_none() -> None:
    assert installed("torch.relu") is torch.relu
    assert installed("no_such_package.kernel") is None and installed("torch.no_such_function") is None
