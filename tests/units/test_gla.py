"""Gated linear attention equals its definition, and the paper's equations in numpy."""

import numpy
import pytest
import torch
from numpy.typing import NDArray

from lm.ops.linear_attention import decaying_recurrence
from lm.preset import Preset
from lm.units.gla import Gla, GlaState, gla_chunk, gla_step
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

H, K, V = 3, 7, 5
SIZE = H * V
TEMPERATURE = 2.5


def preset_of(size: int = SIZE, heads: int = H) -> Preset:
    section = {"key_size": K, "decay_rank": 4, "decay_temperature": TEMPERATURE}
    return Preset.model_validate({"model": {"hidden_size": size, "num_heads": heads, "position": "learned"}, "data": {"sources": ["c4"]}, "gla": section})


def unit_of(std: float = 0.4, size: int = SIZE, heads: int = H) -> Gla:
    return with_random_weights(Gla(preset_of(size, heads)), std)


@pytest.mark.parametrize("starts", [[], STARTS], ids=["one document", "restarts"])
def test_chunks_equal_the_definition(starts: list[tuple[int, int]]) -> None:
    query, key, value = drawn(B, T, H, K, seed=0), drawn(B, T, H, K, seed=1), drawn(B, T, H, V, seed=2)
    log_decay, memory = -drawn(B, T, H, K, seed=3).exp(), drawn(B, H, K, V, seed=4)
    context = context_of(query[..., 0], starts)
    fast, after = gla_chunk(query, key, value, log_decay, memory, context)
    small, _ = decaying_recurrence(query, key, value, log_decay, memory, restart=context.restart, chunk=8)
    steps = []
    for t in range(T):
        y, memory = gla_step(query[:, t], key[:, t], value[:, t], log_decay[:, t], memory, context.restart[:, t])
        steps.append(y)
    for found in (fast, small):
        torch.testing.assert_close(found, torch.stack(steps, 1))
    torch.testing.assert_close(after, memory)


def gated_linear_attention(unit: Gla, x: NDArray, memory: NDArray) -> tuple[NDArray, NDArray]:
    """The layer as the paper writes it, for one row (T, D), from a memory (H, K, V)."""
    w = {name: parameter.detach().double().numpy() for name, parameter in unit.named_parameters()}

    def sigmoid(a: NDArray) -> NDArray:
        return 1 / (1 + numpy.exp(-a))

    outputs = []
    for token in x:
        query, key, value = (w[f"{name}.weight"] @ token for name in ("query", "key", "value"))
        alpha = sigmoid(w["decay_up.weight"] @ (w["decay_down.weight"] @ token) + w["decay"]) ** (1 / TEMPERATURE)
        raw = w["gate.weight"] @ token
        heads = []
        for head in range(H):
            keys, values = slice(head * K, (head + 1) * K), slice(head * V, (head + 1) * V)
            memory[head] = numpy.diag(alpha[keys]) @ memory[head] + numpy.outer(key[keys], value[values])
            o = query[keys] @ memory[head]
            heads.append(w["norm_weight"][values] * o / numpy.sqrt((o * o).mean() + unit.eps))
        outputs.append(w["output.weight"] @ (raw * sigmoid(raw) * numpy.concatenate(heads)))
    return numpy.stack(outputs), memory


def test_equals_the_papers_equations() -> None:
    unit, x, memory = unit_of().double(), drawn(1, T, SIZE, seed=7), drawn(1, H, K, V, seed=8)
    mixed = unit(x, GlaState(memory), context_of(x))
    wanted, after = gated_linear_attention(unit, x[0].numpy(), memory[0].numpy().copy())
    torch.testing.assert_close(mixed.y[0], torch.from_numpy(wanted))
    torch.testing.assert_close(mixed.state.memory[0], torch.from_numpy(after))


def test_equals_the_naive_formula_of_the_package() -> None:
    naive = pytest.importorskip("fla.ops.gla.naive").naive_recurrent_gla
    query, key, value = (drawn(B, T, H, size, seed=seed).float() for seed, size in enumerate((K, K, V)))
    log_decay, memory = -drawn(B, T, H, K, seed=3).exp().float(), drawn(B, H, K, V, seed=4).float()
    wanted, after = naive(query * K**0.5, key, value, log_decay, initial_state=memory, output_final_state=True)  # it divides queries by this
    found = gla_chunk(query, key, value, log_decay, memory, context_of(query[..., 0]))
    for left, right in zip(found, (wanted, after), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32() -> None:
    is_near_in_bfloat16(unit_of(0.2), SIZE)


@pytest.mark.parametrize("decay", [-1e6, -30.0, 0.0, 200.0], ids=lambda decay: f"decay {decay}")
@pytest.mark.parametrize("text", TEXTS)
def test_always_finite(text: str, decay: float) -> None:
    """Also where a channel forgets all at once, or never."""
    unit = unit_of()
    unit.decay.data[::2] = decay
    stays_finite(unit, text, SIZE)


def test_a_very_long_text_of_one_token() -> None:
    unit = unit_of(size=4, heads=1)
    unit.decay.data[:2] = torch.tensor([-1e6, 200.0])
    stays_finite_for_long(unit, 4)


def test_first_weights_forget_slowly_and_write_nothing() -> None:
    unit, x = Gla(Preset.model_validate({"model": {"hidden_size": 48, "num_heads": 3}, "data": {"sources": ["c4"]}})), drawn(B, T, 48, seed=7).float()
    unit.initialise()
    assert len(unit.decay) == 48 // 2
    keep = torch.sigmoid(unit.decay_up(unit.decay_down(x)) + unit.decay) ** (1 / unit.temperature)
    assert keep.min() > 0.94 and keep.max() < 0.97
    assert not read(unit, x).any()
    unit.output.weight.data.normal_()
    assert read(unit, x).any()


@pytest.mark.gpu
def test_the_fused_kernel_equals_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_equals_chunks(unit_of(0.2, 128, 2), 128, monkeypatch)
