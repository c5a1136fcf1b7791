"""RWKV-6's time mix equals its definition, the paper's equations in numpy, and the package of the paper's author."""

import pytest
import torch
import torch.nn.functional as F

from lm.ops.linear_attention import decaying_recurrence
from lm.preset import Preset
from lm.units.rwkv import Rwkv, RwkvState, rwkv_chunk, rwkv_step
from tests.units.finch import package_time_mix, time_mix, weights_of
from tests.units.recurrences import (
    STARTS,
    TEXTS,
    B,
    T,
    context_of,
    drawn,
    fused_equals_chunks,
    is_near_in_bfloat16,
    read,
    stays_finite,
    stays_finite_for_long,
    with_random_weights,
)

H, K = 3, 5
SIZE = H * K


def unit_of(std: float = 0.4, heads: int = H, size: int = SIZE) -> Rwkv:
    preset = Preset.model_validate(
        {"model": {"hidden_size": size, "num_heads": heads, "position": "learned"}, "data": {"sources": ["c4"]}, "rwkv": {"mix_rank": 4, "decay_rank": 6}}
    )
    return with_random_weights(Rwkv(preset), std)


@pytest.mark.parametrize("starts", [[], STARTS], ids=["one document", "restarts"])
def test_chunks_equal_the_definition(starts: list[tuple[int, int]]) -> None:
    receptance, key, value, raw = (drawn(B, T, H, K, seed=seed) for seed in range(4))
    bonus, memory, log_decay = drawn(H, K, seed=5), drawn(B, H, K, K, seed=6), -raw.exp()
    context = context_of(receptance[..., 0], starts)
    fast, after = rwkv_chunk(receptance, key, value, log_decay, bonus, memory, context)
    small, _ = decaying_recurrence(receptance, key, value, log_decay, memory, bonus, context.restart, chunk=8)
    steps = []
    for t in range(T):
        y, memory = rwkv_step(receptance[:, t], key[:, t], value[:, t], log_decay[:, t], bonus, memory, context.restart[:, t])
        steps.append(y)
    for found in (fast, small):
        torch.testing.assert_close(found, torch.stack(steps, 1))
    torch.testing.assert_close(after, memory)


def test_equals_the_papers_equations() -> None:
    unit, x = unit_of().double(), drawn(1, T, SIZE, seed=7)
    state = RwkvState(drawn(1, SIZE, seed=8), drawn(1, H, K, K, seed=9))
    mixed = unit(x, state, context_of(x, []))
    wanted, memory = time_mix(weights_of(unit), x[0].numpy(), H, state.before[0].numpy(), state.memory[0].numpy())
    torch.testing.assert_close(mixed.y[0], torch.from_numpy(wanted))
    torch.testing.assert_close(mixed.state.memory[0], torch.from_numpy(memory))
    torch.testing.assert_close(mixed.state.before, x[:, -1])


@torch.no_grad()
def test_equals_the_authors_package() -> None:
    unit, x = unit_of(), drawn(T, SIZE, seed=7).float()
    state = RwkvState(drawn(1, SIZE, seed=8).float(), drawn(1, H, K, K, seed=9).float())
    wanted, memory = package_time_mix(unit, x, state.before[0], state.memory[0])
    normed = F.layer_norm(x, (SIZE,))[None]
    mixed = unit(normed, state, context_of(normed, []))
    torch.testing.assert_close(mixed.y[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.state.memory[0], memory, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    is_near_in_bfloat16(unit_of(0.2), SIZE)


@pytest.mark.parametrize("decay", [-12.0, 0.0, 2.1, 5.0, 200.0], ids=lambda decay: f"decay {decay}")
@pytest.mark.parametrize("text", TEXTS)
def test_always_finite(text: str, decay: float) -> None:
    """Also where a channel forgets all at once, or never."""
    unit = unit_of()
    unit.decay.data[::2] = decay
    stays_finite(unit, text, SIZE)


def test_a_very_long_text_of_one_token() -> None:
    unit = unit_of(heads=1, size=4)
    unit.decay.data[:2] = torch.tensor([-30.0, 200.0])
    stays_finite_for_long(unit, 4)


def test_first_weights_forget_at_many_speeds() -> None:
    unit = unit_of(size=48)
    fresh = Rwkv(Preset.model_validate({"model": {"hidden_size": 48, "num_heads": 3}, "data": {"sources": ["c4"]}}))
    fresh.initialise()
    horizons = fresh.decay.exp().reciprocal()
    assert horizons.min() < 3 and horizons.max() > 400
    shares = torch.cat([fresh.mix, fresh.mix_all])
    assert shares.min() >= 0 and shares.max() <= 1
    x = drawn(B, T, 48, seed=7).float()
    assert not read(fresh, x).any() and read(unit, x).any()


@pytest.mark.gpu
def test_the_fused_kernel_equals_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_equals_chunks(unit_of(0.2, 2, 128), 128, monkeypatch)
