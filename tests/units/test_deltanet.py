"""DeltaNet equals its definition, the papers' recurrence written out with matrices, and transformers' gated delta rule with the same weights."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3_next import modeling_qwen3_next as published
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from lm.ops.delta_rule import delta_rule
from lm.preset import Preset
from lm.units.deltanet import Deltanet, deltanet_chunk, deltanet_step
from lm.units.unit import Context
from tests.units.recurrences import (
    TEXTS,
    B,
    T,
    drawn,
    fused_equals_chunks,
    is_near_in_bfloat16,
    mixed,
    read,
    stays_finite,
    stays_finite_for_long,
    with_random_weights,
)

H, K, V = 3, 5, 7
STARTS = [(0, 3), (0, 4), (0, 21), (1, 0), (1, 36)]


def inputs(time: int = T, strength: float = 0.5) -> list[Tensor]:
    """query, key, value, beta, log_decay, memory."""
    query, key = (nn.functional.normalize(drawn(B, time, H, K, seed=seed), dim=-1) for seed in (1, 2))
    beta, log_decay = drawn(B, time, H, seed=4).sigmoid(), -strength * drawn(B, time, H, seed=5).exp()
    return [query, key, drawn(B, time, H, V, seed=3), beta, log_decay, drawn(B, H, K, V, seed=6)]


def marked(time: int, starts: list[tuple[int, int]]) -> Tensor:
    restart = torch.zeros(B, time, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    return restart


def papers_recurrence(query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, y_t = S_t q_t, with the matrices as the papers write them."""
    read, rows = [], []
    for row in range(B):
        state, of_row = memory[row].mT, []
        for t in range(query.shape[1]):
            if restart[row, t]:
                state = torch.zeros_like(state)
            k, v, b = key[row, t, :, :, None], value[row, t, :, :, None], beta[row, t, :, None, None]
            keep = torch.eye(K, dtype=k.dtype) - b * k @ k.mT
            state = log_decay[row, t].exp()[:, None, None] * state @ keep + b * v @ k.mT
            of_row.append((state @ query[row, t, :, :, None])[..., 0])
        read.append(torch.stack(of_row))
        rows.append(state.mT)
    return torch.stack(read), torch.stack(rows)


def with_gradients(read, tensors: list[Tensor], *rest: object) -> list[Tensor]:
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    y, memory = read(*tensors, *rest)
    total = (y * drawn(*y.shape, seed=7).to(y.dtype)).sum() + (memory * drawn(*memory.shape, seed=8).to(y.dtype)).sum()
    return [y, memory, *torch.autograd.grad(total, tensors)]


@pytest.mark.parametrize("chunk", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("starts", [[], STARTS, [(0, 16), (1, 32)]], ids=["one document", "restarts", "at edges of chunks"])
def test_chunks_equal_the_papers_recurrence(starts: list[tuple[int, int]], chunk: int) -> None:
    restart = marked(T, starts)
    wanted = with_gradients(papers_recurrence, inputs(), restart)
    found = with_gradients(delta_rule, inputs(), restart if starts else None, chunk)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
@pytest.mark.parametrize("starts", [[], STARTS], ids=["one document", "restarts"])
def test_steps_equal_chunks(starts: list[tuple[int, int]], gated: bool) -> None:
    *tokens, first = inputs()
    tokens[4] = tokens[4] if gated else torch.zeros(B, T, 1, dtype=torch.float64)
    context = Context(restart=marked(T, starts)).derived(tokens[3][..., 0], torch.zeros(B, dtype=torch.int64), carry=True)
    fast, after = deltanet_chunk(*tokens, first, context)
    steps, memory = [], first
    for t in range(T):
        y, memory = deltanet_step(*(x[:, t] for x in tokens), memory, context.restart[:, t])
        steps.append(y)
    torch.testing.assert_close(fast, torch.stack(steps, 1))
    torch.testing.assert_close(after, memory)


@pytest.mark.parametrize("time", [1, 2, 3, 32, 33, 65])
def test_every_length(time: int) -> None:
    for left, right in zip(delta_rule(*inputs(time)), papers_recurrence(*inputs(time), marked(time, [])), strict=True):
        torch.testing.assert_close(left, right)


def test_nothing_to_read() -> None:
    tensors = inputs(0)
    y, memory = delta_rule(*tensors, marked(0, []))
    assert y.shape == (B, 0, H, V)
    assert memory is tensors[-1]


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -8.0, -30.0, -3000.0, -1e30], ids=str)
def test_float32_is_exact_however_strong_the_decay(log_decay: float) -> None:
    """Every third token decays so, the others little: a difference of sums over the chunk would lose what the others say."""
    tensors = inputs(130, 0.01)
    tensors[4][:, ::3] = log_decay
    wanted = with_gradients(papers_recurrence, tensors, marked(130, []))
    found = with_gradients(delta_rule, [x.float() for x in tensors])
    for left, right in zip(found, wanted, strict=True):
        assert left.isfinite().all()
        assert (left - right).abs().max() <= 3e-6 * right.abs().max()


def test_equal_keys_stay_exact() -> None:
    """With one key for all tokens and b = 1 the powers of the triangular system are binomial coefficients; its inverse is not."""
    tensors = inputs(130, 0.0)
    tensors[1] = tensors[1][:, :1].expand_as(tensors[1])
    tensors[3] = torch.ones_like(tensors[3])
    wanted = with_gradients(papers_recurrence, tensors, marked(130, []))
    found = with_gradients(delta_rule, [x.float() for x in tensors], None, 64)
    for left, right in zip(found, wanted, strict=True):
        assert (left - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("rule", [published.torch_chunk_gated_delta_rule, published.torch_recurrent_gated_delta_rule], ids=["chunks", "recurrent"])
def test_equals_transformers_rule(rule) -> None:
    tensors = [x.float() for x in inputs(130)]

    def theirs(query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y, after = rule(query, key, value, g=log_decay, beta=beta, initial_state=memory, output_final_state=True)
        return K**0.5 * y, after

    for left, right in zip(with_gradients(delta_rule, tensors), with_gradients(theirs, tensors), strict=True):
        assert (left - right).abs().max() <= 1e-5 * right.abs().max()


def unit_of(std: float = 0.4, heads: int = H, size: int = 12, **switches: object) -> Deltanet:
    switches = {"key_size": K, "value_size": V} | switches
    unit = Deltanet(Preset.model_validate({"model": {"hidden_size": size, "num_heads": heads}, "data": {"sources": ["c4"]}, "deltanet": switches}))
    return with_random_weights(unit, std)


@torch.no_grad()
@pytest.mark.parametrize("starts", [[], [(0, 255), (0, 256), (1, 130), (1, 514)]], ids=["one document", "restarts"])
def test_a_long_row_equals_its_pieces_and_its_documents(starts: list[tuple[int, int]]) -> None:
    unit, x, restart = unit_of().double(), drawn(B, 700, 12, seed=9), marked(700, starts)
    whole, state, start, pieces = mixed(unit, x, starts), unit.initial_state(B), torch.zeros(B, dtype=torch.int64), []
    for piece, begins in zip(x.split([1, 300, 2, 397], 1), restart.split([1, 300, 2, 397], 1), strict=True):
        context = Context(restart=begins).derived(piece[..., 0], start, carry=True)
        y, state = unit(piece, state, context)[:2]
        start = context.position[:, -1] + 1
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole.y)
    torch.testing.assert_close(state, whole.state)
    for row in range(B):
        edges = [0, *(at for place, at in starts if place == row), 700]
        alone = [read(unit, x[row : row + 1, a:b]) for a, b in itertools.pairwise(edges)]
        torch.testing.assert_close(torch.cat(alone, 1), whole.y[row : row + 1])


def transformers_module(unit: Deltanet, size: int) -> nn.Module:
    """Qwen3-Next's linear attention with the weights of `unit`; it lays them out head by head."""
    config = Qwen3NextConfig(
        hidden_size=size,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=H,
        linear_num_value_heads=H,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        linear_conv_kernel_dim=unit.kernel.shape[1],
        rms_norm_eps=unit.norm_eps,
    )
    module = published.Qwen3NextGatedDeltaNet(config, 0)
    streams = unit.streams.weight.split((H * K, H * K, H * V))
    by_head = [weight.unflatten(0, (H, -1)) for weight in (*streams, unit.gate.weight)]
    weights = {
        "in_proj_qkvz.weight": torch.cat(by_head, 1).flatten(0, 1),
        "in_proj_ba.weight": torch.stack([unit.beta.weight, unit.speed.weight], 1).flatten(0, 1),
        "conv1d.weight": unit.kernel[:, None],
        "dt_bias": unit.speed_bias,
        "A_log": unit.log_rate,
        "norm.weight": unit.norm_weight,
        "out_proj.weight": unit.output.weight,
    }
    module.load_state_dict(weights)
    return module


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_equals_transformers_module(kernel_size: int) -> None:
    unit = unit_of(kernel_size=kernel_size)
    module, x = transformers_module(unit, 12), drawn(B, 130, 12, seed=9).float()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = read(unit, ours), module(theirs)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    weight = drawn(*y.shape, seed=10).float()
    (y * weight).sum().backward()
    (wanted * weight).sum().backward()
    pairs = [(ours.grad, theirs.grad), (unit.kernel.grad, module.conv1d.weight.grad[:, 0]), (unit.log_rate.grad, module.A_log.grad)]
    pairs += [
        (unit.speed_bias.grad, module.dt_bias.grad),
        (unit.norm_weight.grad, module.norm.weight.grad),
        (unit.output.weight.grad, module.out_proj.weight.grad),
    ]
    for left, right in pairs:
        assert (left - right).norm() < 1e-4 * right.norm()


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
def test_bfloat16_is_close_to_float32(gated: bool) -> None:
    is_near_in_bfloat16(unit_of(0.2, gated=gated), 12)


@pytest.mark.parametrize("rate", [None, -30.0, 0.0, 5.0, 200.0], ids=lambda rate: f"rate {rate}")
@pytest.mark.parametrize("text", TEXTS)
def test_always_finite(text: str, rate: float | None) -> None:
    """Also where a head forgets all at once, or never."""
    unit = unit_of(gated=rate is not None)
    if rate is not None:
        unit.log_rate.data[::2] = rate
    stays_finite(unit, text, 12)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
def test_a_very_long_text_of_one_token(gated: bool) -> None:
    out = stays_finite_for_long(unit_of(heads=1, size=4, key_size=2, value_size=3, gated=gated), 4)
    assert out.state.memory.norm() < 100


def test_first_weights_forget_at_many_speeds_and_write_nothing() -> None:
    fresh = Deltanet(Preset.model_validate({"model": {"hidden_size": 12, "num_heads": 3}, "data": {"sources": ["c4"]}}))
    fresh.initialise()
    horizons = 1 / nn.functional.softplus(fresh.speed_bias)
    assert horizons.min() < 1 and horizons.max() > 900
    x = drawn(B, T, 12, seed=9).float()
    assert not read(fresh, x).any()
    assert fresh.kernel.abs().max() > 0.3


@pytest.mark.gpu
def test_the_fused_kernel_equals_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_equals_chunks(unit_of(0.2, 2, 128, key_size=64, value_size=64), 128, monkeypatch)
