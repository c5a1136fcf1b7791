"""Matrix products in which each row has a matrix of its own choice: the work is that of the rows, however many matrices there are.

Rows are sorted by the matrix that they chose, each matrix multiplies the rows between two ends, and what comes out is put back in order:

    order = by_group(chosen, groups);   y = combined(grouped_linear(dispatched(x, order), weight, order), order)

`dispatched` and `combined` are each other's transpose, so that the way back is sorting again and no scattered sum, and always of one order.

Sizes: N rows, K choices a row, G groups, I inner, O outer.
"""

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Order(NamedTuple):
    """Choices sorted by group. A choice's number is that of its row times K, plus its place among the row's."""

    choice: Tensor  # (N * K,) int64: the choice that stands at each place
    place: Tensor  # (N * K,) int64: the place at which each choice stands
    ends: Tensor  # (G,) int32: where the choices of each group end
    choices: int  # K


def by_group(chosen: Tensor, groups: int) -> Order:
    """The order of `chosen` (N, K), groups from 0 to `groups` - 1. Equal ones stay in order. Asks nothing of the device."""
    group, choice = chosen.flatten().sort(stable=True)
    place = torch.empty_like(choice).scatter_(0, choice, torch.arange(len(choice), device=choice.device))
    ends = torch.searchsorted(group, torch.arange(groups, device=group.device), right=True, out_int32=True)
    return Order(choice, place, ends, chosen.shape[1])


def dispatched(x: Tensor, order: Order) -> Tensor:
    """(N, I) -> (N * K, I): at each place the row that chose it."""
    return _Dispatched.apply(x, order)


def combined(y: Tensor, order: Order) -> Tensor:
    """(N * K, O) -> (N, O): for each row the sum of what stands at its choices' places."""
    return _Combined.apply(y, order)


def grouped_linear(x: Tensor, weight: Tensor, order: Order) -> Tensor:
    """x (N * K, I), weight (G, O, I) -> (N * K, O). The products are in the autocast dtype where autocast is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight = weight.to(x.dtype)
    return F.grouped_mm(x, weight.mT, offs=order.ends) if has_kernel(x, weight) else by_segments(x, weight, order.ends)


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own call is taken: for bfloat16 in rows of whole 16 bytes, on GPUs that compute in it.

    There it multiplies all groups at once and asks nothing of the device, or does as well as it can. For other numbers and on the CPU
    it is a loop over the groups, too, and it knows no float64.
    """
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or not len(x):
        return False
    return weight.shape[1] % 8 == weight.shape[2] % 8 == 0 and torch.cuda.get_device_capability(x.device) >= (8, 0)


def by_segments(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Group after group. Those that nobody chose cost nothing but the zeros of their gradient. Can be differentiated once."""
    stops = ends.tolist()
    return _Segments.apply(x, weight, list(itertools.pairwise([0, *stops])))


class _Segments(torch.autograd.Function):
    """Each product is written where it belongs, forward and back: autograd alone would copy all of them once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bounds = bounds
        y = x.new_empty(len(x), weight.shape[1])
        for matrix, (start, stop) in zip(weight, bounds, strict=True):
            if start < stop:
                torch.mm(x[start:stop], matrix.T, out=y[start:stop])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        for matrix, of_matrix, (start, stop) in zip(weight, of_weight, ctx.bounds, strict=True):
            if start == stop:
                of_matrix.zero_()
                continue
            rows = gradient[start:stop]
            torch.mm(rows, matrix, out=of_x[start:stop])
            torch.mm(rows.T, x[start:stop], out=of_matrix)
        return of_x, of_weight, None


class _Dispatched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order) -> Tensor:
        ctx.order = order
        return x[order.choice // order.choices]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return combined(gradient, ctx.order), None


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Order) -> Tensor:
        ctx.order = order
        return y[order.place].unflatten(0, (-1, order.choices)).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return dispatched(gradient, ctx.order), None
