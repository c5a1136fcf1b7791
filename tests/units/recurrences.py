"""What the tests of all recurrences share: reading a row, and what each of them is held to."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lm.ops.fused import Kernel, installed
from lm.units import Context, Mixed, State, Unit

Starts = Sequence[tuple[int, int]]  # rows and places where documents begin
B, T = 2, 37
STARTS: Starts = [(0, 3), (0, 4), (1, 0), (1, 36)]
TEXTS = ("random", "constant", "huge", "zeros")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_weights(unit: Unit, std: float) -> Unit:
    generator = torch.Generator().manual_seed(1)
    for parameter in unit.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return unit


def context_of(x: Tensor, starts: Starts = ()) -> Context:
    restart = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    for row, at in starts:
        restart[row, at] = True
    return Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64, device=x.device), carry=True)


def mixed(unit: Unit, x: Tensor, starts: Starts = (), state: State | None = None) -> Mixed:
    return unit(x, unit.initial_state(len(x)) if state is None else state, context_of(x, starts))


def read(unit: Unit, x: Tensor, starts: Starts = ()) -> Tensor:
    return mixed(unit, x, starts).y


def stays_finite(unit: Unit, text: str, size: int, huge: float = 1e4) -> None:
    """Values and gradients, of a row of 111 tokens, of one and of none, as one document and with one beginning at each token."""
    x = {
        "random": drawn(B, 3 * T, size, seed=7),
        "constant": drawn(B, 1, size, seed=7).expand(B, 3 * T, size),
        "huge": huge * drawn(B, 3 * T, size, seed=7),
        "zeros": torch.zeros(B, 3 * T, size),
    }[text].float()
    for length in (0, 1, 3 * T):
        for starts in ([], [(row, at) for row in range(B) for at in range(length)]):
            piece = x[:, :length].clone().requires_grad_()
            y = read(unit, piece, starts)
            assert y.isfinite().all()
            for gradient in torch.autograd.grad(y.sum(), [piece, *unit.parameters()], allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


def stays_finite_for_long(unit: Unit, size: int) -> Mixed:
    """100,000 times the same token."""
    x = drawn(1, 1, size, seed=7).float().expand(1, 100_000, size).clone().requires_grad_()
    out = mixed(unit, x)
    out.y.square().mean().backward()
    assert out.y.isfinite().all() and x.grad.isfinite().all()
    return out


def is_near_in_bfloat16(unit: Unit, size: int) -> None:
    """Under autocast close to float32, with a state in float32; and a unit in bfloat16 answers in it."""
    x = drawn(B, T, size, seed=7).float()
    exact = read(unit, x, STARTS)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = mixed(unit, x, STARTS)
    assert (lowered.y - exact).norm() < 2e-2 * exact.norm()
    assert {leaf.dtype for leaf in tree_leaves(lowered.state)} == {torch.float32}
    assert read(unit.bfloat16(), x.bfloat16()).dtype == torch.bfloat16


def fused_equals_chunks(unit: Unit, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that has fla: outputs, state and gradients by its kernel and by our chunks, as one document and as several, after a state."""
    pytest.importorskip("fla")
    x = drawn(B, 200, size, seed=7).float().cuda()
    before = mixed(unit.cuda(), x[:, :50]).state
    for starts in ([], STARTS):
        found = []
        for fused in (True, False):
            asked: list[str] = []
            monkeypatch.setattr("lm.ops.fused.installed", _counted(asked) if fused else lambda name: None)
            unit.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                out = mixed(unit, x, starts, tree_map(torch.detach, before))
            (out.y.float().square().sum() + out.state.memory.square().sum()).backward()
            assert bool(asked) == fused, "this version of the package lacks the kernel" if fused else "a kernel was taken"
            found.append([out.y.float(), out.state.memory, *(parameter.grad for parameter in unit.parameters())])
        for left, right in zip(*found, strict=True):
            assert (left - right).norm() < 3e-2 * right.norm()


def _counted(asked: list[str]) -> Callable[[str], Kernel | None]:
    """What finds kernels, noting those that it found."""

    def find(name: str) -> Kernel | None:
        kernel = installed(name)
        asked.extend([name] * (kernel is not None))
        return kernel

    return find
