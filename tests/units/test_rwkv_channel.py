"""RWKV-6's channel mix equals the paper's equations in numpy, and the package of the paper's author."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.preset import Preset
from lm.units.rwkv_channel import RwkvChannel, RwkvChannelState
from lm.units.unit import Context
from tests.units.finch import channel_mix, package_channel_mix, weights_of

B, T, SIZE, WIDTH = 2, 11, 6, 9


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit_of() -> RwkvChannel:
    model = {"hidden_size": SIZE, "num_heads": 3, "ffn_size": WIDTH}
    unit, generator = RwkvChannel(Preset.model_validate({"model": model, "data": {"sources": ["c4"]}})), torch.Generator().manual_seed(1)
    for parameter in unit.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return unit


def context_of(x: Tensor, starts: list[tuple[int, int]]) -> Context:
    restart = torch.zeros(x.shape[:2], dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    return Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry=True)


def test_equals_the_papers_equations() -> None:
    """Also where a document begins inside the row."""
    unit, x = unit_of().double(), drawn(B, T, SIZE, seed=2)
    state = RwkvChannelState(drawn(B, SIZE, seed=3))
    mixed = unit(x, state, context_of(x, [(1, 4)]))
    weights, nothing = weights_of(unit), torch.zeros(SIZE).double().numpy()
    wanted = channel_mix(weights, x[0].numpy(), state.before[0].numpy())
    torch.testing.assert_close(mixed.y[0], torch.from_numpy(wanted))
    for piece, before in ((slice(0, 4), state.before[1].numpy()), (slice(4, T), nothing)):
        torch.testing.assert_close(mixed.y[1, piece], torch.from_numpy(channel_mix(weights, x[1, piece].numpy(), before)))
    torch.testing.assert_close(mixed.state.before, x[:, -1])


@torch.no_grad()
def test_equals_the_authors_package() -> None:
    unit, x, before = unit_of(), drawn(T, SIZE, seed=2).float(), drawn(SIZE, seed=3).float()
    normed = F.layer_norm(x, (SIZE,))[None]
    found = unit(normed, RwkvChannelState(before[None]), context_of(normed, [])).y[0]
    torch.testing.assert_close(found, package_channel_mix(unit, x, before), rtol=1e-5, atol=1e-5)


def test_width_without_a_switch() -> None:
    for size, width in ((6, 32), (64, 224), (100, 352)):
        preset = Preset.model_validate({"model": {"hidden_size": size, "num_heads": 1}, "data": {"sources": ["c4"]}})
        assert preset.model.channel_mix_size == width
        assert RwkvChannel(preset).key.weight.shape == (width, size)


def test_bfloat16_is_close_to_float32() -> None:
    unit, x = unit_of(), drawn(B, T, SIZE, seed=2).float()
    context, state = context_of(x, [(0, 3)]), unit.initial_state(B)
    exact = unit(x, state, context).y
    with torch.autocast("cpu", torch.bfloat16):
        lowered = unit(x, state, context).y
    assert (lowered - exact).norm() < 2e-2 * exact.norm()
    low = unit.bfloat16()
    assert low(x.bfloat16(), low.initial_state(B), context).y.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4], ids=str)
@pytest.mark.parametrize("length", [0, 1, T])
def test_always_finite(scale: float, length: int) -> None:
    unit = unit_of()
    for x in (drawn(B, length, SIZE, seed=2), drawn(B, 1, SIZE, seed=2).expand(B, length, SIZE)):
        x = (scale * x).float().requires_grad_()
        y = unit(x, unit.initial_state(B), context_of(x, [(row, at) for row in range(B) for at in range(0, length, 2)])).y
        y.sum().backward()
        assert y.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in (x, *unit.parameters()))
