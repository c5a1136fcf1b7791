"""S5's fast form equals its definition, scipy's exact discretisation of the whole real system, and s5-pytorch with the same weights."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from s5 import S5 as TheirS5
from torch import Tensor

from lm.ops import scan
from lm.preset import Preset
from lm.units.s5 import S5, S5State, System, hippo_normal, s5_parallel, s5_step
from lm.units.unit import Context

B, T, D, P = 2, 37, 5, 12


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def preset_of(size: int = D, **switches: float) -> Preset:
    return Preset.model_validate({"model": {"hidden_size": size, "num_heads": 1, "position": "learned"}, "s5": switches, "data": {"sources": ["c4"]}})


def first_unit(size: int = D, **switches: float) -> S5:
    """As it begins, but writing into the residual stream."""
    torch.manual_seed(0)
    unit = S5(preset_of(size, **switches))
    unit.initialise()
    torch.nn.init.normal_(unit.output.weight, std=0.5)
    return unit


def system_of(unit: S5) -> System:
    return System(*(tensor.detach() for tensor in unit.system()))


def fresh(x: Tensor, restart: Tensor | None = None, carry: bool = False) -> Context:
    return Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry=carry)


@pytest.mark.parametrize("chunk", [2, 3, 16, 64])
@pytest.mark.parametrize("time", [1, T])
@pytest.mark.parametrize("starts", [[], [(0, 3), (1, 0), (1, 29), (1, 30)], [(0, 0), (1, 0)]], ids=["one document", "restarts", "all anew"])
def test_parallel_equals_the_definition(starts: list[tuple[int, int]], time: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", chunk)
    unit = first_unit(state_size=P, blocks=3, dt_min=0.05, dt_max=0.5).double()
    u, state = drawn(B, time, D, seed=1), S5State(drawn(B, P // 2, 2, seed=2))
    restart = torch.zeros(B, time, dtype=torch.bool)
    for row, at in starts:
        restart[row, at % time] = True
    fast, after = s5_parallel(u, state, system_of(unit), fresh(u, restart, carry=True))
    steps = []
    for t in range(time):
        y, state = s5_step(u[:, t], state, system_of(unit), restart[:, t])
        steps.append(y)
    torch.testing.assert_close(fast, torch.stack(steps, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after.hidden, state.hidden, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [2, 6, 16])
def test_first_states_are_those_of_hippo(size: int) -> None:
    """The matrix HiPPO-LegS, written out, plus p p^T is what they diagonalise; with their conjugates they are a unitary basis."""
    n = np.arange(size)
    hippo = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
    normal = hippo + np.outer(np.sqrt(n + 0.5), np.sqrt(n + 0.5))
    eigenvalue, vectors = (tensor.numpy() for tensor in hippo_normal(size))
    np.testing.assert_allclose(normal @ vectors, vectors * eigenvalue, atol=1e-9)
    basis = np.concatenate([vectors, vectors.conj()], 1)
    np.testing.assert_allclose(basis.conj().T @ basis, np.eye(size), atol=1e-9)


@pytest.mark.parametrize("blocks", [1, 3])
def test_equals_scipys_discretisation_of_the_real_system(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it begins the unit is a real system of P states: the block-diagonal HiPPO matrix, and B and C as drawn. scipy discretises and runs that."""
    randn, drawn_matrices = torch.randn, []
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: drawn_matrices.append(randn(*shape, **options)) or drawn_matrices[-1])
    step = 0.3
    unit = first_unit(state_size=P, blocks=blocks, dt_min=step, dt_max=step).double()
    monkeypatch.undo()
    real_input, real_readout = drawn_matrices[0].flatten(0, 1) / D**0.5, drawn_matrices[1].flatten(1) / P**0.5
    root = np.sqrt(np.arange(P // blocks) + 0.5)
    normal = np.triu(np.outer(root, root), 1) - np.tril(np.outer(root, root), -1) - np.eye(P // blocks) / 2
    continuous = (scipy.linalg.block_diag(*[normal] * blocks), real_input.numpy(), real_readout.numpy(), np.diag(unit.skip.data.numpy()))
    a, b, c, d, _ = scipy.signal.cont2discrete(continuous, step, method="zoh")
    u = drawn(1, T, D, seed=3)
    # scipy reads out before a token enters and we after: C h_t = (C A) h_{t-1} + (C B) u_t.
    _, expected, _ = scipy.signal.dlsim((a, b, c @ a, c @ b + d, step), u[0].numpy())
    found, _ = s5_parallel(u, S5State(torch.zeros(1, P // 2, 2, dtype=u.dtype)), system_of(unit), fresh(u))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-5)  # the first weights were rounded to float32
    assert np.abs(expected).max() > 0.1


def test_equals_s5_pytorch() -> None:
    unit, length = first_unit(state_size=P, dt_min=0.01, dt_max=1.0), 300
    theirs = TheirS5(D, state_width=P // 2)
    system = system_of(unit)
    for name, value in (("Lambda", system.eigenvalue.to(torch.complex64)), ("C", 2 * system.readout), ("D", system.skip)):
        getattr(theirs.seq, name).data.copy_(value)
    theirs.seq.B.data.copy_(unit.input.data)
    theirs.seq.log_step.data.copy_(unit.log_step.data)
    u = drawn(B, length, D, seed=4, dtype=torch.float32)
    found, _ = s5_parallel(u, unit.initial_state(B), system, fresh(u))
    torch.testing.assert_close(found, theirs(u).detach(), rtol=1e-4, atol=1e-4)


def test_first_steps_lie_where_they_should() -> None:
    unit = first_unit(state_size=400, blocks=100, dt_min=0.02, dt_max=0.3)
    step = unit.log_step.exp()
    assert 0.02 <= step.min() < 0.03 and 0.2 < step.max() <= 0.3
    assert 0.06 < step.median() < 0.1  # uniform in the logarithm: about sqrt(0.02 * 0.3)


def loss_of(unit: S5, x: Tensor, restart: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    x = x.requires_grad_()
    y = unit(x, unit.initial_state(len(x)), fresh(x, restart)).y
    return y, list(torch.autograd.grad(y.float().square().mean(), [x, *unit.parameters()]))


def test_autocast_stays_near_float32() -> None:
    unit, x = first_unit(64, state_size=P), drawn(B, 200, 64, seed=5, dtype=torch.float32)
    exact, exact_gradients = loss_of(unit, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered, gradients = loss_of(unit, x)
    assert (lowered.float() - exact).norm() < 2e-2 * exact.norm()
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert (gradient - exact_gradient).norm() < 5e-2 * exact_gradient.norm()


ADVERSARIAL = {
    "one token over and over": lambda: torch.ones(B, 300, D),
    "huge": lambda: 1e12 * drawn(B, 300, D, seed=6, dtype=torch.float32),
    "nothing": lambda: torch.zeros(B, 300, D),
    "one token": lambda: drawn(B, 1, D, seed=7, dtype=torch.float32),
    "no token": lambda: torch.zeros(B, 0, D),
}


@pytest.mark.parametrize("every", [None, 1, 7], ids=["one document", "restarts everywhere", "many restarts"])
@pytest.mark.parametrize("make", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_always_finite(make: Callable[[], Tensor], every: int | None) -> None:
    x = make()
    restart = None if every is None else (torch.arange(x.shape[1]) % every == 0).expand(B, -1)
    y, gradients = loss_of(first_unit(state_size=P), x, restart)
    assert y.isfinite().all()
    assert x.shape[1] == 0 or all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("rate", [-30.0, 0.0, 5.0])
def test_no_eigenvalue_can_grow(rate: float) -> None:
    """Over 100,000 equal tokens, whatever was learned, values and gradients stay finite."""
    unit = first_unit(3, state_size=4)
    unit.log_rate.data.fill_(rate)
    unit.frequency.data.copy_(torch.tensor([0.0, 700.0]))
    y, gradients = loss_of(unit, torch.ones(1, 100_000, 3))
    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)
    assert math.isfinite(float(unit(torch.ones(1, 1, 3), S5State(torch.full((1, 2, 2), 1e30)), fresh(torch.ones(1, 1, 3))).y.detach().sum()))
