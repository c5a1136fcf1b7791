"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): a matrix moves along the orthogonal one that is nearest to
the mean of its gradients G.

    M <- m M + (1 - m) G;    W <- (1 - rate decay) W - 0.2 rate sqrt(max(O, I)) orthogonal(m M + (1 - m) G)

so that its entries move by 0.2 of the rate in the root mean square, as AdamW's usually do (Liu et al. 2025, "Muon is scalable for LLM training").

torch.optim.Muon takes parameters of two dimensions, each as one matrix. Here a parameter is a list of matrices: a stack of them is as many, and
one whose rows are those of several maps of the same input (query, key and value) is those maps. As one matrix, their steps would be made orthogonal
to each other, too, and what one of them has to learn would take from what the others may.

Sizes: O outputs and I inputs of a matrix, N matrices.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values from nearly 0 to 1 come to between 0.7 and 1.2
STEPS, LEAST_NORM = 5, 1e-7
AT_ONCE = 2**22  # numbers of the matrices that are made orthogonal in one call, and one matrix more


class Muon(torch.optim.Optimizer):
    """What is remembered of a parameter is "momentum_buffer", of its shape, as in torch's own."""

    def __init__(self, groups: Iterable[dict], momentum: float, rows: Mapping[nn.Parameter, Sequence[int]], dtype: torch.dtype | None = None) -> None:
        """groups: of parameters (..., O, I), with "lr" and "weight_decay". rows: of those parameters that are several matrices, one below another,
        how many rows each has. dtype: in which steps are made orthogonal; None: the parameters' own."""
        super().__init__(groups, {"momentum": momentum})
        self._rows, self._dtype = rows, dtype

    @torch.no_grad()
    def step(self) -> None:
        waiting: dict[tuple[torch.Size, torch.device], list[Update]] = {}
        for update in self._updates():
            alike = waiting.setdefault((update.direction.shape[-2:], update.direction.device), [])
            alike.append(update)
            if sum(each.direction.numel() for each in alike) >= AT_ONCE:
                apply(alike)
                alike.clear()
        for alike in filter(None, waiting.values()):
            apply(alike)

    def _updates(self) -> Iterator["Update"]:
        """Remember the gradients and let the weights decay; what is to become of each matrix."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(mean, group["momentum"]).to(self._dtype or parameter.dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows = list(self._rows.get(parameter, parameter.shape[-2:-1]))
                yield from (Update(*pair, group["lr"]) for pair in zip(parameter.split(rows, -2), direction.split(rows, -2), strict=True))


class Update(NamedTuple):
    """Of matrices of one shape."""

    matrix: Tensor  # (..., O, I), a part of a parameter
    direction: Tensor  # the same shape; not orthogonal yet
    rate: float


def apply(updates: Sequence[Update]) -> None:
    """Move matrices of one shape, in one call: small ones take longer to be called for than to be turned."""
    stacks = [update.direction.reshape(-1, *update.direction.shape[-2:]) for update in updates]
    for update, turned in zip(updates, orthogonal(torch.cat(stacks)).split(list(map(len, stacks))), strict=True):
        update.matrix.add_(turned.view_as(update.matrix), alpha=-0.2 * update.rate * max(update.matrix.shape[-2:]) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to each of `matrices` (..., O, I), nearly, by Newton-Schulz steps: of U S V^T about U V^T."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonal(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x_NOI = matrices.reshape(-1, *matrices.shape[-2:])
    x_NOI = x_NOI / x_NOI.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(STEPS):
        gram_NOO = x_NOI @ x_NOI.mT
        x_NOI = torch.baddbmm(x_NOI, torch.baddbmm(gram_NOO, gram_NOO, gram_NOO, beta=b, alpha=c), x_NOI, beta=a)
    return x_NOI.view_as(matrices)
