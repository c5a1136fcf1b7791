"""Shared attention equals its definition, dense attention under the documents' mask, plain attention in one layer, and a YOCO model in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lm.model import build_model
from lm.ops.rotary import rotated
from lm.preset import Preset, at_layer, load_preset
from lm.units.attention import Attention, AttentionState
from lm.units.shared_attention import SharedAttention, shared_attention_step
from lm.units.unit import Context

B, T, H, G, K, S, LAYERS = 2, 13, 6, 3, 4, 5, 3
SIZE = H * K


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preset_of(**model: Any) -> Preset:
    sizes = {"hidden_size": SIZE, "num_heads": H, "num_kv_heads": G, "num_layers": LAYERS, "seq_length": T}
    return Preset.model_validate({"model": sizes | model, "data": {"sources": ["c4"]}, "shared_attention": {"enabled": True}})


def units_of(preset: Preset) -> list[SharedAttention]:
    """The owner, and those that read what it makes."""
    torch.manual_seed(0)
    units = [SharedAttention(at_layer(preset, layer)).double() for layer in range(LAYERS)]
    for unit in units:
        for parameter in unit.parameters():
            parameter.data.normal_(std=0.4)
    return units


def read(units: list[SharedAttention], xs: list[Tensor], state: Any, context: Context) -> tuple[list[Tensor], Any]:
    """What each unit gives for an input of its own, and the owner's state."""
    first = units[0](xs[0], state, context)
    there = Context(**{**vars(context), "shared": first.shared})
    return [first.y, *(unit(x, (), there).y for unit, x in zip(units[1:], xs[1:], strict=True))], first.state


def restarts(*places: tuple[int, int], time: int = T) -> Tensor:
    restart = torch.zeros(B, time, dtype=torch.bool)
    for row, at in places:
        restart[row, at] = True
    return restart


STARTS = pytest.mark.parametrize("starts", [[], [(0, 3), (1, 0), (1, 12)], [(0, 0), (1, 0)]], ids=["one document", "restarts", "all anew"])


@STARTS
@pytest.mark.parametrize("slots", [0, S])
def test_it_equals_the_definition(slots: int, starts: list[tuple[int, int]]) -> None:
    units, xs, restart = units_of(preset_of()), [drawn(B, T, SIZE, seed=layer) for layer in range(LAYERS)], restarts(*starts)
    state = AttentionState(drawn(B, G, slots, K, seed=7), drawn(B, G, slots, K, seed=8), torch.tensor([slots, slots // 2]))
    context = Context(restart=restart).derived(restart, state.length, carry=True)
    fast, after = read(units, xs, state, context)
    steps: list[list[Tensor]] = [[] for _ in units]
    for t in range(T):
        now = slice(t, t + 1)
        place = Context(position=context.position[:, now])
        key, value = units[0].shared_keys(xs[0][:, now])
        queries = [unit.turned(unit.query_norm(unit.shared_query(x[:, now]).unflatten(-1, (H, K))), place) for unit, x in zip(units, xs, strict=True)]
        read_now, state = shared_attention_step(queries, units[0].turned(key, place), value.transpose(1, 2), state, restart[:, t])
        for unit, y, out in zip(units, read_now, steps, strict=True):
            out.append(unit.output(y.transpose(1, 2).flatten(2)))
    for found, expected in zip(fast, steps, strict=True):
        torch.testing.assert_close(found, torch.cat(expected, 1))
    needed = int(state.length.max())
    torch.testing.assert_close(after.length, state.length)
    torch.testing.assert_close(after.key[:, :, -needed:], state.key[:, :, -needed:])
    torch.testing.assert_close(after.value[:, :, -needed:], state.value[:, :, -needed:])


@STARTS
@pytest.mark.parametrize("qk_norm", [True, False])
def test_it_equals_dense_attention_under_the_documents_mask(starts: list[tuple[int, int]], qk_norm: bool) -> None:
    preset = preset_of(qk_norm=qk_norm)
    units, xs, restart = units_of(preset), [drawn(B, T, SIZE, seed=layer) for layer in range(LAYERS)], restarts(*starts)
    context = Context(restart=restart).derived(restart, torch.zeros(B, dtype=torch.int64), carry=False)
    found, _ = read(units, xs, units[0].initial_state(B), context)
    document = restart.long().cumsum(1)
    sees = (document[:, :, None] == document[:, None]) & torch.ones(T, T, dtype=torch.bool).tril()
    angles = units[0].rotary.angles(context.position, torch.float64)
    key, value = (xs[0] @ units[0].shared_keys.key_value.weight.T).view(B, T, 2, G, K).unbind(2)
    key = rotated(units[0].shared_keys.key_norm(key), angles)
    for unit, x, y in zip(units, xs, found, strict=True):
        query = rotated(unit.query_norm((x @ unit.shared_query.weight.T).view(B, T, H, K)), angles)
        scores = torch.einsum("bthk,bshk->bhts", query, key.repeat_interleave(H // G, 2)) / K**0.5
        weights = torch.where(sees[:, None], scores, -torch.inf).softmax(-1)
        expected = torch.einsum("bhts,bshk->bthk", weights, value.repeat_interleave(H // G, 2)).reshape(B, T, SIZE) @ unit.output.weight.T
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("model", [{}, {"qk_norm": False}, {"position": "learned"}, {"num_kv_heads": H}, {"position_interpolation": 3.0}], ids=str)
def test_alone_it_is_attention(model: dict[str, Any]) -> None:
    """One claimed layer, the same weights: the same outputs, states and gradients."""
    preset = preset_of(**model)
    owner, attention = units_of(preset)[0], Attention(preset).double()
    weights = {name: weight for name, weight in owner.state_dict().items() if not name.startswith("shared_")}
    weights["query_key_value.weight"] = torch.cat([owner.shared_query.weight, owner.shared_keys.key_value.weight]).detach()
    weights |= {"key_norm.weight": owner.shared_keys.key_norm.weight.detach()} if preset.model.qk_norm else {}
    attention.load_state_dict(weights)
    restart, x = restarts((0, 3), (1, 0)), drawn(B, T, SIZE, seed=1).requires_grad_()
    outs = []
    for unit in (owner, attention):
        first = unit(x, unit.initial_state(B), Context().derived(restart, torch.zeros(B, dtype=torch.int64), carry=True))
        then = unit(x.flip(1), first.state, Context(restart=restart).derived(restart, first.state.length, carry=True))
        outs.append((torch.cat([first.y, then.y]), *first.state, *then.state, *torch.autograd.grad((first.y + then.y).square().sum(), x)))
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs)


def numpy_model(model: nn.Module, preset: Preset, tokens: np.ndarray, restart: np.ndarray) -> np.ndarray:
    """Gated linear attention, then attention to shared keys, in float64, one row, a loop over tokens: logits (T, V)."""
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    heads, kv_heads, size, eps = preset.model.num_heads, preset.model.kv_heads, preset.model.head_size, preset.model.norm_eps

    def rms(x: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def turned(x: np.ndarray, place: int) -> np.ndarray:
        pairs = x[:, : size // 2] + 1j * x[:, size // 2 :]
        pairs = pairs * np.exp(1j * place * preset.model.rope_theta ** (-np.arange(0, size, 2) / size))
        return np.concatenate([pairs.real, pairs.imag], -1)

    def gla(x: np.ndarray, unit: str, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        query, key, value, gate = (weights[f"{unit}.{name}.weight"] @ x for name in ("query", "key", "value", "gate"))
        speed = weights[f"{unit}.decay_up.weight"] @ weights[f"{unit}.decay_down.weight"] @ x + weights[f"{unit}.decay"]
        decay = (1 / (1 + np.exp(-speed))) ** (1 / preset.gla.decay_temperature)
        query, key, value, decay = (each.reshape(heads, -1) for each in (query, key, value, decay))
        memory = decay[:, :, None] * memory + key[:, :, None] * value[:, None]
        y = rms(np.einsum("hk,hkv->hv", query, memory), 1.0).reshape(-1) * weights[f"{unit}.norm_weight"] * silu(gate)
        return weights[f"{unit}.output.weight"] @ y, memory

    logits, owner = [], next(layer for layer, names in enumerate(model.plan) if "shared_attention" in names)
    for token, begins in zip(tokens, restart, strict=True):
        if begins or not logits:
            keys, values = [], []
            memories = {layer: np.zeros((heads, -(-size // 2), size)) for layer in range(owner)}
        x = weights["embedding.weight"][token]
        for layer in range(len(model.plan)):
            mixer, ffn = (f"layers.{layer}.{place}" for place in (0, 1))
            z = rms(x, weights[f"{mixer}.norm.weight"])
            if layer < owner:
                y, memories[layer] = gla(z, f"{mixer}.unit", memories[layer])
            else:
                if layer == owner:
                    key, value = (weights[f"{mixer}.unit.shared_keys.key_value.weight"] @ z).reshape(2, kv_heads, size)
                    keys.append(turned(rms(key, weights[f"{mixer}.unit.shared_keys.key_norm.weight"]), len(keys)))
                    values.append(value)
                query = (weights[f"{mixer}.unit.shared_query.weight"] @ z).reshape(heads, size)
                query = turned(rms(query, weights[f"{mixer}.unit.query_norm.weight"]), len(keys) - 1)
                read = []
                for head in range(heads):
                    group = head // (heads // kv_heads)
                    weight = np.exp([query[head] @ key[group] / size**0.5 for key in keys])
                    read.append(sum(w * value[group] for w, value in zip(weight / weight.sum(), values, strict=True)))
                y = weights[f"{mixer}.unit.output.weight"] @ np.concatenate(read)
            x = x + y
            z = rms(x, weights[f"{ffn}.norm.weight"])
            gate, up = np.split(weights[f"{ffn}.unit.gate_up.weight"] @ z, 2)
            x = x + weights[f"{ffn}.unit.output.weight"] @ (silu(gate) * up)
        logits.append(weights["embedding.weight"] @ rms(x, weights["norm.weight"]))
    return np.array(logits)


def yoco() -> tuple[Preset, nn.Module]:
    sizes = {"hidden_size": SIZE, "num_heads": H, "num_kv_heads": G, "num_layers": 5, "seq_length": T, "ffn_size": 7}
    sections = {"gla": {"enabled": True, "layers": "first_half", "decay_rank": 5}, "shared_attention": {"enabled": True, "layers": "last_half"}}
    preset = Preset.model_validate({"model": sizes, "data": {"sources": ["c4"]}, **sections})
    torch.manual_seed(1)
    model = build_model(preset, 11).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return preset, model


def test_a_whole_model_equals_one_in_numpy() -> None:
    preset, model = yoco()
    time = 2 * T
    tokens = torch.randint(11, (B, time), generator=torch.Generator().manual_seed(2))
    restart = restarts((0, 3), (1, 0), (1, 19), time=time)
    state, pieces = model.initial_state(B), []
    for piece in (slice(0, 9), slice(9, 10), slice(10, time)):
        out = model(tokens[:, piece], state, Context(restart=restart[:, piece]))
        state = out.state
        pieces.append(out.logits)
    whole = model(tokens, None, Context(restart=restart)).logits
    for row in range(B):
        expected = torch.from_numpy(numpy_model(model, preset, tokens[row].numpy(), restart[row].numpy()))
        torch.testing.assert_close(whole[row], expected)
        torch.testing.assert_close(torch.cat(pieces, 1)[row], expected)


def floats(state: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(state) if leaf.is_floating_point())


def test_keys_and_values_are_held_once() -> None:
    """In the second half of 07_yoco, against attention in the same layers."""
    shared = load_preset("configs/07_yoco.json")
    plain = shared.model_copy(update={"shared_attention": type(shared.shared_attention)()})
    held = []
    for preset in (shared, plain):
        model = build_model(preset, 11)
        state = model(torch.zeros(1, 300, dtype=torch.int64), model.initial_state(1)).state
        held.append([floats(layer) for layer in state.layers[4:]])
    one = 2 * 300 * shared.model.hidden_size
    assert held == [[one, 0, 0, 0], [one] * 4]


@pytest.mark.parametrize(
    "x", [torch.ones(B, T, SIZE), 1e4 * torch.randn(B, T, SIZE), torch.zeros(B, T, SIZE), torch.randn(B, 1, SIZE), torch.randn(B, 0, SIZE)]
)
def test_nothing_is_ever_not_a_number(x: Tensor) -> None:
    units = [unit.float() for unit in units_of(preset_of())]
    x.requires_grad_()
    every = torch.ones(x.shape[:2], dtype=torch.bool)
    for restart in (every, ~every):
        state = units[0].initial_state(B)
        for _ in range(2):
            context = Context(restart=restart).derived(restart, torch.zeros(B, dtype=torch.int64) if not state.key.shape[2] else state.length, carry=True)
            ys, state = read(units, [x] * LAYERS, state, context)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in ys), [x, *units[1].parameters()])
        assert all(bool(tensor.isfinite().all()) for tensor in (*ys, *gradients))


def test_autocast_is_near_float32() -> None:
    units = [unit.float() for unit in units_of(preset_of())]
    xs, restart = [drawn(B, T, SIZE, seed=layer).float() for layer in range(LAYERS)], restarts((0, 3))
    for slots in (0, S):
        state = AttentionState(drawn(B, G, slots, K, seed=7).float(), drawn(B, G, slots, K, seed=8).float(), torch.tensor([slots, slots // 2]))
        context = Context(restart=restart).derived(restart, state.length, carry=True)
        exact, _ = read(units, xs, state, context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _ = read(units, xs, state, context)
        for y, near in zip(exact, rough, strict=True):
            assert (near.float() - y).abs().max() < 0.05 * y.abs().max()
