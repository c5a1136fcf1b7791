"""Hyena's fast form equals its definition, and the paper's equations summed by numpy; it stays finite whatever it reads."""

import numpy
import pytest
import torch
from torch import Tensor

from lm.preset import Preset
from lm.units.hyena import Filters, Hyena, HyenaState, hyena_parallel, hyena_step
from lm.units.unit import Context, Mixed

B, D, N, K = 2, 5, 3, 4
STARTS = {"one document": [], "restarts": [(0, 3), (0, 4), (0, 19), (1, 0), (1, 36)], "all anew": [(0, 0), (1, 0)], "late": [(1, 30)]}
STARTS["lengths alike"] = [(0, 0), (0, 9), (0, 22), (1, 6), (1, 15), (1, 25)]  # read together, with padding


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hyena(hidden_size: int = 12, seq_length: int = 16, **switches: int) -> Hyena:
    model = {"hidden_size": hidden_size, "num_heads": 1, "seq_length": seq_length}
    torch.manual_seed(0)
    unit = Hyena(Preset.model_validate({"model": model, "hyena": switches, "data": {"sources": ["c4"]}}))
    unit.initialise()
    torch.nn.init.normal_(unit.output.weight)
    return unit


def read(unit: Hyena, x: Tensor, restart: Tensor | None = None, state: HyenaState | None = None) -> Mixed:
    context = Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry=True)
    return unit(x, state or unit.initial_state(len(x)), context)


def marked(time: int, starts: list[tuple[int, int]]) -> Tensor:
    restart = torch.zeros(B, time, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    return restart


@pytest.mark.parametrize("cuts", [[37], [1, 1, 35], [20, 0, 17]], ids=str)
@pytest.mark.parametrize("length", [1, 2, 6, 50])
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_parallel_equals_the_definition(starts: list[tuple[int, int]], length: int, cuts: list[int]) -> None:
    streams, restart = drawn(B, (N + 1) * D, 37, seed=1), marked(37, starts)
    filters = Filters(drawn((N + 1) * D, K, seed=2), drawn(N, D, length, seed=3) / length, drawn(N, D, seed=4))
    state = first = HyenaState(drawn(B, (N + 1) * D, K - 1, seed=5), drawn(B, N, D, length - 1, seed=6))
    slow = []
    for t in range(37):
        z, state = hyena_step(streams[..., t], filters, state, restart[:, t])
        slow.append(z)
    fast, after, start = [], first, torch.full((B,), length + K)
    for piece, begins in zip(streams.split(cuts, -1), restart.split(cuts, -1), strict=True):
        context = Context(restart=begins).derived(begins, start, carry=True)
        z, after = hyena_parallel(piece, filters, after, context)
        start = context.position[:, -1] + 1 if piece.shape[-1] else start
        fast.append(z)
    torch.testing.assert_close(torch.cat(fast, -1), torch.stack(slow, -1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after, state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("order", "length", "time"), [(1, 9, 40), (2, 16, 61), (3, 50, 23)])
def test_equals_the_papers_equations_by_numpy(order: int, length: int, time: int) -> None:
    unit = hyena(order=order, filter_length=length, filter_order=6, embedding_dim=5).double()
    x = drawn(1, time, 12, seed=7)
    weights = {name: parameter.detach().numpy() for name, parameter in unit.named_parameters()}
    place = numpy.arange(length) / length
    features = numpy.stack([place, *(wave(2 * numpy.pi * k * place) for wave in (numpy.cos, numpy.sin) for k in (1, 2))], 1)
    for layer in range(3):
        features = numpy.sin(14 * (features @ weights[f"filter.hidden.{layer}.weight"].T + weights[f"filter.hidden.{layer}.bias"]))
    taps = (features @ weights["filter.taps.weight"].T).T.reshape(order, 12, length)
    rates = numpy.linspace(numpy.log(100) / 0.3, numpy.log(100) / 1.5, 12)
    taps = taps * (numpy.exp(-rates[:, None] * place) + 0.05)
    streams = [
        numpy.convolve(stream, kernel[::-1])[:time] for stream, kernel in zip((x[0].numpy() @ weights["streams.weight"].T).T, weights["kernel"], strict=True)
    ]
    z, *gates = numpy.stack(streams).reshape(order + 1, 12, time)
    for gate, order_taps, skip in zip(gates, taps, weights["skip"].reshape(order, 12, 1), strict=True):
        z = gate * (numpy.stack([numpy.convolve(row, row_taps)[:time] for row, row_taps in zip(z, order_taps, strict=True)]) + skip * z)
    numpy.testing.assert_allclose(read(unit, x).y[0].detach(), z.T @ weights["output.weight"].T, rtol=1e-9, atol=1e-9)


def test_gradients_equal_differences() -> None:
    unit = hyena(hidden_size=2, filter_length=4, filter_order=2, embedding_dim=3).double()
    x, restart = drawn(B, 7, 2, seed=8).requires_grad_(), marked(7, [(0, 2), (1, 5)])
    parameters = dict(unit.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        context = Context(restart=restart).derived(x[..., 0], torch.zeros(B, dtype=torch.int64), carry=False)
        return torch.func.functional_call(unit, dict(zip(parameters, values, strict=True)), (x, unit.initial_state(B), context)).y

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_the_filter_does_not_know_how_long_the_text_is() -> None:
    unit = hyena(filter_length=9)
    x = drawn(1, 200, 12, seed=9).float()
    torch.testing.assert_close(read(unit, x).y[:, :50], read(unit, x[:, :50]).y, rtol=1e-4, atol=1e-5)
    assert read(unit, x).state.long.shape == unit.initial_state(1).long.shape == (1, 2, 12, 8)


def test_a_filter_that_is_kept_is_made_again_when_a_parameter_changes() -> None:
    unit, other, x = hyena(), hyena(), drawn(B, 30, 12, seed=14).float()
    with torch.no_grad():
        before = read(unit, x).y
        assert unit.filter(torch.float32) is unit.filter(torch.float32)
    for parameter, same in zip(unit.filter.parameters(), other.filter.parameters(), strict=True):
        parameter.data[-1] += 0.5
        same.data.copy_(parameter.data)
        with torch.no_grad():
            after = read(unit, x).y
        torch.testing.assert_close(after, read(other, x).y)
        assert not torch.allclose(after, before)
        before = after
    with torch.no_grad():
        assert read(unit.double(), x.double()).y.dtype == torch.float64


def test_all_parameters_learn_from_the_first_weights() -> None:
    unit = hyena()
    read(unit, drawn(B, 30, 12, seed=10).float()).y.square().mean().backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("with_restarts", [False, True])
def test_bfloat16_stays_near_float32(with_restarts: bool) -> None:
    unit, x = hyena(hidden_size=32), drawn(B, 300, 32, seed=11).float()
    restart = marked(300, [(0, 100), (1, 250)]) if with_restarts else None
    exact = read(unit, x, restart)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = read(unit, x, restart)
    assert (rough.y - exact.y).norm() < 2e-2 * exact.y.norm()
    assert rough.state.long.dtype == torch.float32
    whole = read(unit.bfloat16(), x.bfloat16(), restart)
    assert whole.y.dtype == torch.bfloat16 and whole.state.long.dtype == torch.float32
    exact = read(unit.float(), x.bfloat16().float(), restart)  # of the same rounded weights: what rounding does to a filter is not the unit's
    assert (whole.y - exact.y).norm() < 2e-2 * exact.y.norm()


HARD = {
    "one token again and again": torch.ones(B, 90, 12),
    "huge": 1e6 * drawn(B, 90, 12, seed=12).float(),
    "tiny": 1e-30 * drawn(B, 90, 12, seed=12).float(),
    "zeros": torch.zeros(B, 90, 12),
    "one token": torch.ones(B, 1, 12),
    "no token": torch.ones(B, 0, 12),
}


@pytest.mark.parametrize("restarts", ["none", "some", "everywhere"])
@pytest.mark.parametrize("x", HARD.values(), ids=HARD)
def test_stays_finite(x: Tensor, restarts: str) -> None:
    unit, x = hyena(), x.clone().requires_grad_()
    restart = {"none": None, "some": torch.arange(x.shape[1]).expand(B, -1) % 7 == 3, "everywhere": torch.ones(x.shape[:2], dtype=torch.bool)}[restarts]
    out = read(unit, x, restart)
    out.y.sum().backward()
    for tensor in (out.y, *out.state, x.grad, *(parameter.grad for parameter in unit.parameters() if parameter.grad is not None)):
        assert tensor.isfinite().all()


def test_a_long_run_of_one_token_stays_finite_and_settles() -> None:
    y = read(hyena(hidden_size=4, seq_length=64), torch.ones(1, 100_000, 4)).y
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, 1000:], y[:, 1000:1001].expand(-1, 99_000, -1), rtol=1e-4, atol=1e-4)


def test_a_restart_leaves_nothing_behind() -> None:
    """Not even rounding: a token that begins a document reads exactly what it would read alone."""
    unit, x = hyena(), drawn(B, 20, 12, seed=13).float()
    x[:, :12] *= 1e6
    packed = read(unit, x, marked(20, [(0, 12), (1, 12)])).y[:, 12:]
    torch.testing.assert_close(packed, read(unit, x[:, 12:]).y, rtol=1e-4, atol=1e-4)
