"""Gates before any unit's output, feed-forwards that layers share, and values of the first attention in those of others: against the same written
plainly, and dense models of the same function.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.model import Context, Model, build_model
from lm.preset import Preset, at_layer
from lm.preset.widths import OUTPUT_WIDTHS
from lm.units import UNITS
from lm.units.options import GatedLinear, with_gates

B, T, V, D, F_SIZE, OWN, LAYERS = 2, 11, 13, 12, 14, 4, 3
SHARED = F_SIZE - OWN


def preset_of(**sections: Any) -> Preset:
    model = {"hidden_size": D, "num_heads": 3, "num_layers": LAYERS, "ffn_size": F_SIZE, "seq_length": T} | sections.pop("model", {})
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **sections})


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return model.double()


def tokens() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def test_a_gate_scales_each_group_by_what_is_in_all_of_them() -> None:
    linear = randomised(GatedLinear(12, 5, 3))
    z = torch.randn(B, T, 12, dtype=torch.float64)
    for row in z.flatten(0, 1):
        scores = linear.gate.weight @ row / (row.square().mean() + 1e-6).sqrt() + linear.gate.bias
        gates = 2 / (1 + torch.exp(-scores))
        expected = sum(gates[group] * linear.weight[:, 4 * group : 4 * group + 4] @ row[4 * group : 4 * group + 4] for group in range(3))
        torch.testing.assert_close(linear(row[None])[0], expected)
    torch.testing.assert_close(linear(z)[1, 4], linear(z[1, 4][None])[0])


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_can_be_gated_and_begins_as_it_would_without(name: str) -> None:
    """Bit for bit, by the name and the weights of its own output; and a group whose gate is closed is not heard."""
    preset = preset_of(**({name: {"enabled": True}} if name not in ("attention", "swiglu", "relu2") else {}))
    torch.manual_seed(0)
    unit = UNITS[name](preset)
    if name not in OUTPUT_WIDTHS:
        pytest.skip("it has no single output matrix, and is refused")
    width, groups = OUTPUT_WIDTHS[name](preset), 2
    assert isinstance(unit.output, nn.Linear) and unit.output.in_features == width and unit.output.bias is None
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, context = torch.randn(B, T, D), Context().derived(tokens(), torch.zeros(B, dtype=torch.int64), carry=False)
    plain, weights = unit(x, unit.initial_state(B), context).y, unit.state_dict()
    gated = with_gates(unit, groups)
    assert gated.load_state_dict(weights, strict=False).missing_keys == ["output.gate.weight", "output.gate.bias"]
    assert torch.equal(gated(x, gated.initial_state(B), context).y, plain)
    gated.output.gate.bias.data[1] = -1000
    weights["output.weight"][:, width // groups :] = 0
    half = with_gates(UNITS[name](preset), groups)
    half.load_state_dict(weights, strict=False)
    torch.testing.assert_close(gated(x, gated.initial_state(B), context).y, half(x, half.initial_state(B), context).y)


def test_first_gates_are_open_and_learn() -> None:
    model = build_model(preset_of(head_gating={"enabled": True, "layers": [1], "ffn_groups": 2}), V)
    assert [name.split(".")[1] for name, _ in model.named_parameters() if ".gate." in name] == ["1"] * 4
    for layer in model.layers[1]:
        nn.init.normal_(layer.unit.output.weight)
        assert torch.equal(layer.unit.output.gates(torch.randn(B, layer.unit.output.in_features)), torch.ones(B, layer.unit.output.gate.out_features))
    model(tokens()).logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if ".gate." in name)


def test_gates_of_huge_and_empty_inputs_are_finite() -> None:
    linear = randomised(GatedLinear(12, 5, 3)).float()
    for z in (torch.zeros(B, T, 12), torch.full((B, T, 12), 1e30), torch.zeros(B, 0, 12)):
        z.requires_grad_()
        y = linear(z)
        assert y.shape == (*z.shape[:2], 5) and bool((linear.gates(z) <= 2).all())
        assert bool(torch.autograd.grad(linear.gates(z).sum() + 1e-30 * y.sum(), z)[0].isfinite().all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = torch.randn(B, T, 12)
        assert linear.gates(z.bfloat16()).dtype == torch.float32
        assert linear(z).dtype == torch.bfloat16
        near = linear(z).float()
    assert (near - linear(z)).abs().max() < 0.05 * linear(z).abs().max()


def sharing(share: float, **sections: Any) -> Preset:
    return preset_of(shared_ffn={"enabled": True, "private_share": share}, **sections)


def dense_copy(model: Model, own: int) -> Model:
    """The same function with all feed-forwards apart: each is the shared one, scaled, and its own, side by side."""
    dense = build_model(preset_of(model={"ffn_size": model.shared_ffn.output.in_features + own}), V).double()
    weights = {name: value for name, value in model.state_dict().items() if name in dense.state_dict()}
    for layer in range(LAYERS):
        unit = model.layers[layer][1].unit
        scale = unit.beside.shared_scale if own else unit.shared_scale
        gate, up = model.shared_ffn.gate_up.weight.chunk(2)
        out = scale[:, None] * model.shared_ffn.output.weight
        if own:
            own_gate, own_up = unit.gate_up.weight.chunk(2)
            gate, up, out = torch.cat([gate, own_gate]), torch.cat([up, own_up]), torch.cat([out, unit.output.weight], 1)
        path = f"layers.{layer}.1.unit"
        weights |= {f"{path}.gate_up.weight": torch.cat([gate, up]).detach(), f"{path}.output.weight": out.detach()}
    dense.load_state_dict(weights)
    return dense


@pytest.mark.parametrize(("share", "own"), [(OWN / F_SIZE, OWN), (0.0, 0)])
def test_sharing_equals_a_dense_model_with_the_weights_repeated(share: float, own: int) -> None:
    """The same logits, and gradients that are the sum of those of all copies."""
    model = randomised(build_model(sharing(share), V))
    assert model.shared_ffn.output.in_features == F_SIZE - own
    dense = dense_copy(model, own)
    ours, theirs = model(tokens()).logits, dense(tokens()).logits
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    copies = [layer[1].unit for layer in dense.layers]
    gate_up = sum(torch.cat([half[: F_SIZE - own] for half in copy.gate_up.weight.grad.chunk(2)]) for copy in copies)
    torch.testing.assert_close(model.shared_ffn.gate_up.weight.grad, gate_up)
    torch.testing.assert_close(model.layers[1][0].unit.query_key_value.weight.grad, dense.layers[1][0].unit.query_key_value.weight.grad)


@pytest.mark.parametrize("share", [OWN / F_SIZE, 0.0])
def test_what_is_shared_is_one_parameter(share: float) -> None:
    model = build_model(sharing(share), V)
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(named) == len(set(named)) == len(set(map(id, model.parameters())))
    assert {name for name in model.state_dict() if name.startswith("shared_ffn")} == {"shared_ffn.gate_up.weight", "shared_ffn.output.weight"}
    assert not any("elsewhere" in name for name in model.state_dict())
    assert model.shared_ffn.output.weight.abs().sum() == 0 and model.shared_ffn.gate_up.weight.std() > 0.01
    model(tokens()).logits.square().sum().backward()
    assert model.shared_ffn.output.weight.grad.abs().sum() > 0


def test_a_copy_of_a_model_shares_its_own() -> None:
    import copy

    model = randomised(build_model(sharing(0.3), V))
    other = copy.deepcopy(model)
    other.shared_ffn.output.weight.data.zero_()
    assert not torch.equal(other(tokens()).logits, model(tokens()).logits)
    assert all(layer[1].unit.beside._elsewhere[0] is other.shared_ffn for layer in other.layers)


def test_layers_whose_feed_forward_is_another_stay_as_they_are() -> None:
    preset = sharing(0.3, rwkv_channel={"enabled": True, "layers": [1]})
    model = build_model(preset, V)
    assert [at_layer(preset, layer).model.feed_forward_size for layer in range(LAYERS)] == [4, F_SIZE, 4]
    assert model.layers[1][1].unit.output.in_features == F_SIZE and type(model.layers[1][1].unit) is UNITS["rwkv_channel"]


def valued(**sections: Any) -> Preset:
    return preset_of(model={"num_kv_heads": 1, "value_residual": True} | sections.pop("model", {}), **sections)


def plain_attention(unit: nn.Module, x: Tensor, first: Tensor | None, restart: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """A loop over tokens: what attention with one key and value gives for `x` (B, T, D), and its own values (B, T, K)."""
    size = unit.head_size
    query, key, value = (x @ unit.query_key_value.weight.T).split([unit.heads * size, size, size], -1)
    used = value if first is None else (1 - unit.first_share) * value + unit.first_share * first
    y = torch.zeros(B, T, unit.heads, size, dtype=x.dtype)
    for row in range(B):
        for t in range(T):
            begun = max(place for place in range(t + 1) if restart[row, place] or place == 0)
            seen = range(max(begun, t - window + 1), t + 1)
            keys = torch.stack([turned(unit.key_norm(key[row, s]), s - begun) for s in seen])
            for head in range(unit.heads):
                asks = turned(unit.query_norm(query[row, t, head * size : (head + 1) * size]), t - begun)
                y[row, t, head] = (keys @ asks / size**0.5).softmax(0) @ used[row, list(seen)]
    return y.flatten(2) @ unit.output.weight.T, value


def turned(x: Tensor, place: int) -> Tensor:
    angles = place * 10_000.0 ** (-torch.arange(0, len(x), 2, dtype=x.dtype) / len(x))
    left, right = x.chunk(2)
    return torch.cat([left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()])


def test_values_of_the_first_attention_are_mixed_into_those_of_the_others() -> None:
    """As in a loop over tokens, in all of the document and in a window; with something between that has no values."""
    preset = valued(model={"num_layers": 4}, longformer={"enabled": True, "layers": [3], "window": 3}, s5={"enabled": True, "layers": [1]})
    model = randomised(build_model(preset, V))
    assert [getattr(layer[0].unit, "first_share", None) is not None for layer in model.layers] == [False, False, True, True]
    restart = torch.zeros(B, T, dtype=torch.bool)
    restart[0, 4] = True
    context = Context(restart=restart).derived(tokens(), torch.zeros(B, dtype=torch.int64), carry=False)
    x, first = model.embedding(tokens()), None
    for depth, layer in enumerate(model.layers):
        z = layer[0].norm(x)
        if depth == 1:
            y = layer[0].unit(z, layer[0].unit.initial_state(B), context).y
        else:
            y, value = plain_attention(layer[0].unit, z, first, restart, 3 if depth == 3 else T)
            first = value if first is None else first
        x = x + y
        x = x + layer[1].unit(layer[1].norm(x), (), context).y
    expected = model.norm(x) @ model.output_weight.T
    torch.testing.assert_close(model(tokens(), context=Context(restart=restart)).logits, expected)


def test_first_shares_are_none_and_learn() -> None:
    model, without = build_model(valued(), V), build_model(preset_of(model={"num_kv_heads": 1}), V)
    for layer in (*model.layers, *without.layers):
        nn.init.ones_(layer[0].unit.output.weight)
    without.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith("first_share")})
    assert torch.equal(model(tokens()).logits, without(tokens()).logits)
    model(tokens()).logits.square().sum().backward()
    shares = {name: parameter for name, parameter in model.named_parameters() if name.endswith("first_share")}
    assert list(shares) == [f"layers.{layer}.0.unit.first_share" for layer in (1, 2)] and all(bool(share.grad != 0) for share in shares.values())
