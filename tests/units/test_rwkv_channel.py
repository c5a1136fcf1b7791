"""RWKV-6's channel mix equals the paper's equations in numpy, and the package of the paper's author."""

import pytest
import torch
import torch.nn.functional as F

from lm.preset import Preset
from lm.units.rwkv_channel import RwkvChannel, RwkvChannelState
from tests.units.finch import channel_mix, package_channel_mix, weights_of
from tests.units.recurrences import TEXTS, B, T, context_of, drawn, is_near_in_bfloat16, stays_finite, with_random_weights

SIZE, WIDTH = 6, 9


def unit_of() -> RwkvChannel:
    model = {"hidden_size": SIZE, "num_heads": 3, "ffn_size": WIDTH}
    return with_random_weights(RwkvChannel(Preset.model_validate({"model": model, "data": {"sources": ["c4"]}})), 0.4)


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
    is_near_in_bfloat16(unit_of(), SIZE)


@pytest.mark.parametrize("text", TEXTS)
def test_always_finite(text: str) -> None:
    stays_finite(unit_of(), text, SIZE)
