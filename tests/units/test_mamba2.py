"""Mamba-2 equals its definition, and transformers' mixer with the same weights, whole and token by token."""

import math

import pytest
import torch
from transformers import DynamicCache
from transformers import Mamba2Config as PublishedConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from lm.ops.linear_attention import scalar_decay_recurrence
from lm.preset import Preset
from lm.units.mamba2 import Mamba2, Mamba2State, mamba2_chunk, mamba2_step
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

SIZE, N, P, K = 15, 7, 5, 3
H = 2 * SIZE // P


def preset_of(groups: int = 1, size: int = SIZE, head_size: int = P, state_size: int = N) -> Preset:
    section = {"enabled": True, "state_size": state_size, "head_size": head_size, "kernel_size": K, "groups": groups}
    return Preset.model_validate({"model": {"hidden_size": size, "num_heads": 1, "position": "learned"}, "data": {"sources": ["c4"]}, "mamba2": section})


def unit_of(groups: int = 1, std: float = 0.4, size: int = SIZE) -> Mamba2:
    return with_random_weights(Mamba2(preset_of(groups, size)), std)


def published(unit: Mamba2, groups: int) -> tuple[Mamba2Mixer, PublishedConfig]:
    """transformers' mixer with the weights of `unit`."""
    config = PublishedConfig(
        hidden_size=SIZE, num_heads=H, head_dim=P, state_size=N, expand=2, n_groups=groups, conv_kernel=K, chunk_size=8, num_hidden_layers=1, vocab_size=5
    )
    config.layer_norm_epsilon = unit.eps
    mixer = Mamba2Mixer(config, layer_idx=0)
    if groups > 1 and not hasattr(mixer.norm, "group_size"):
        pytest.skip("this version of transformers normalises all groups together, other than the paper's authors")
    weights = {"in_proj.weight": unit.input.weight, "out_proj.weight": unit.output.weight, "norm.weight": unit.norm_weight, "dt_bias": unit.step_bias}
    weights |= {"conv1d.weight": unit.kernel[:, None], "conv1d.bias": unit.kernel_bias, "A_log": unit.log_rate, "D": unit.skip}
    mixer.load_state_dict(weights)
    return mixer, config


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("starts", [[], STARTS], ids=["one document", "restarts"])
def test_chunks_equal_the_definition(starts: list[tuple[int, int]], groups: int) -> None:
    query, key, x = drawn(B, T, groups, N, seed=0), drawn(B, T, groups, N, seed=1), drawn(B, T, H, P, seed=2)
    step, rate, skip, memory = drawn(B, T, H, seed=3).exp(), drawn(H, seed=4).exp(), drawn(H, seed=5), drawn(B, H, N, P, seed=6)
    context = context_of(x[..., 0], starts)
    fast, after = mamba2_chunk(query, key, x, step, rate, skip, memory, context)
    small, _ = scalar_decay_recurrence(query, key, step[..., None] * x, -rate * step, memory, context.restart, chunk=8)
    steps = []
    for t in range(T):
        y, memory = mamba2_step(query[:, t], key[:, t], x[:, t], step[:, t], rate, skip, memory, context.restart[:, t])
        steps.append(y)
    for found in (fast, small + skip[:, None] * x):
        torch.testing.assert_close(found, torch.stack(steps, 1))
    torch.testing.assert_close(after, memory)


@pytest.mark.parametrize("groups", [1, 3])
def test_equals_transformers_whole_with_gradients(groups: int) -> None:
    unit = unit_of(groups)
    mixer, _ = published(unit, groups)
    x = drawn(B, T, SIZE, seed=7).float().requires_grad_()
    weight, pairs = drawn(B, T, SIZE, seed=8).float(), []
    for module, y in ((unit, read(unit, x)), (mixer, mixer(x))):
        pairs.append((y, torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])))
    (mine, my_gradients), (theirs, their_gradients) = pairs
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    of = dict(zip(("x", *(name for name, _ in mixer.named_parameters())), their_gradients, strict=True))
    names = ("x", "in_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "dt_bias", "D", "norm.weight", "out_proj.weight")
    found = dict(zip(("x", *(name for name, _ in unit.named_parameters())), my_gradients, strict=True))
    mine_of = ("x", "input.weight", "kernel", "kernel_bias", "log_rate", "step_bias", "skip", "norm_weight", "output.weight")
    assert set(found) == set(mine_of) and set(of) == set(names)
    for my_name, name in zip(mine_of, names, strict=True):
        wanted = of[name].view_as(found[my_name])
        assert (found[my_name] - wanted).norm() < 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("prefill", [0, 1, 2, 20])
@pytest.mark.parametrize("groups", [1, 3])
@torch.no_grad()
def test_equals_transformers_token_by_token(groups: int, prefill: int) -> None:
    unit = unit_of(groups)
    mixer, config = published(unit, groups)
    x, cache, state = drawn(B, T, SIZE, seed=7).float(), DynamicCache(config=config), unit.initial_state(B)
    for piece in x.split([prefill] * (prefill > 0) + [1] * (T - prefill), 1):
        mine = unit(piece, state, context_of(piece))
        state = mine.state
        torch.testing.assert_close(mine.y, mixer(piece, cache_params=cache), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.memory.mT, cache.layers[0].recurrent_states[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.recent, cache.layers[0].conv_states[0][..., 1:], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    is_near_in_bfloat16(unit_of(std=0.2), SIZE)


@pytest.mark.parametrize("rate", [-200.0, 0.0, 8.0, 80.0], ids=lambda rate: f"log rate {rate}")
@pytest.mark.parametrize("text", TEXTS)
def test_always_finite(text: str, rate: float) -> None:
    """Also where a head forgets all at once, or never."""
    unit = unit_of()
    unit.log_rate.data[::2] = rate
    stays_finite(unit, text, SIZE, huge=1e8)


def test_a_very_long_text_of_one_token() -> None:
    unit = unit_of(size=5)
    unit.log_rate.data[0] = -30.0
    stays_finite_for_long(unit, 5)


def test_first_weights_are_the_papers() -> None:
    unit = Mamba2(preset_of(size=240))
    unit.initialise()
    steps = torch.nn.functional.softplus(unit.step_bias)
    assert 0.00099 < steps.min() < 0.003 and 0.03 < steps.max() < 0.101
    rates = unit.log_rate.exp()
    assert 1 <= rates.min() < 3 and 14 < rates.max() <= 16
    assert unit.kernel.abs().max() <= 1 / math.sqrt(K) < 1.05 * unit.kernel.abs().max()
    x = drawn(B, T, 240, seed=7).float()
    assert not read(unit, x).any()
    unit.output.weight.data.normal_()
    assert read(unit, x).std() > 0.1


def test_the_convolution_remembers_what_it_must() -> None:
    unit, x = unit_of().double(), drawn(B, T, SIZE, seed=7)
    state = unit(x, unit.initial_state(B), context_of(x, STARTS)).state
    assert isinstance(state, Mamba2State)
    channels, streams, _ = unit.widths
    wanted = (x @ unit.input.weight.T)[..., channels : channels + streams].mT[..., 1 - K :]
    torch.testing.assert_close(state.recent[0], wanted[0])
    torch.testing.assert_close(state.recent[1], torch.stack([torch.zeros_like(wanted[1, :, 0]), wanted[1, :, -1]], -1))  # a document of one token


@pytest.mark.parametrize(
    ("section", "told"),
    [({"head_size": 7}, "30 channels"), ({"groups": 4, "head_size": 5}, "6 heads"), ({"dt_min": 0.2}, "dt_min 0.2")],
)
def test_sizes_that_do_not_fit_are_told(section: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Preset.model_validate(
            {"model": {"hidden_size": 15, "num_heads": 1, "position": "learned"}, "data": {"sources": ["c4"]}, "mamba2": {"enabled": True} | section}
        )


@pytest.mark.gpu
def test_the_fused_kernel_equals_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_equals_chunks(with_random_weights(Mamba2(preset_of(2, 128, 32, 64)), 0.2), 128, monkeypatch)
