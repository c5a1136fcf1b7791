"""CoLT5's two units: the definition token by token, dense layers where everything is picked, and work for picked tokens only."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lm.preset import Preset
from lm.units.colt5 import Colt5, colt5_parallel, colt5_step
from lm.units.colt5_attention import Colt5Attention
from lm.units.longformer import Longformer
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context, Unit

B, T, D = 2, 19, 12
KINDS = [Colt5, Colt5Attention]
SHORT = {"colt5_attention": {"window": 3}, "colt5": {"light_size": 5, "heavy_size": 14}}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preset_of(**sections: Any) -> Preset:
    model = {"hidden_size": D, "num_heads": 3, "ffn_size": 7} | sections.pop("model", {})
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **(sections or SHORT)})


def unit_of(kind: type[Unit], **sections: Any) -> Unit:
    unit = kind(preset_of(**sections)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in unit.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    with torch.no_grad():
        unit.router.threshold.copy_(unit.router.scores(drawn(B, T, D, seed=2)).mean())
    return unit


def context_of(x: Tensor, restart: Tensor | None = None, carry: bool = True) -> Context:
    return Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry)


def restarts() -> Tensor:
    restart = torch.zeros(B, T, dtype=torch.bool)
    restart[0, [2, 9, 10]] = True
    restart[1, [0, T - 1]] = True
    return restart


def read(unit: Unit, x: Tensor, restart: Tensor | None = None, carry: bool = False) -> Tensor:
    return unit(x, unit.initial_state(len(x)), context_of(x, restart, carry)).y


@pytest.mark.parametrize("seed", [2, 3])
def test_parallel_equals_the_definition(seed: int) -> None:
    x, logit, light, heavy = drawn(B, T, D, seed=seed), drawn(B, T, seed=seed + 4), drawn(D, D, seed=5), drawn(D, D, seed=6)
    branches = (lambda x: torch.tanh(x @ light), lambda x: torch.sin(x @ heavy))
    fast = colt5_parallel(x, logit > 0, logit.sigmoid(), *branches)
    steps = [colt5_step(x[:, t], logit[:, t], *branches) for t in range(T)]
    torch.testing.assert_close(fast, torch.stack(steps, 1))


def test_the_feed_forward_equals_its_equation() -> None:
    unit, x = unit_of(Colt5), drawn(B, T, D, seed=2)
    logit = unit.router.scores(x) - unit.router.threshold
    assert 0.2 < (logit > 0).double().mean() < 0.8

    def branch(swiglu: SwiGLU, x: Tensor) -> Tensor:
        gate, up = (x @ weight.T for weight in swiglu.gate_up.weight.chunk(2))
        return (gate * torch.sigmoid(gate) * up) @ swiglu.output.weight.T

    weight = torch.where(logit > 0, logit.sigmoid(), 0)[..., None]
    torch.testing.assert_close(read(unit, x), branch(unit.light, x) + weight * branch(unit.heavy, x))


@pytest.mark.parametrize("with_restarts", [False, True])
def test_heavy_attention_equals_a_mask_over_all_tokens(with_restarts: bool) -> None:
    """In place of a shorter text: every token in its place, and a mask under which a heavy token sees the heavy ones of its document."""
    unit, x = unit_of(Colt5Attention, colt5_attention={"window": 3}, model={"position": "learned"}), drawn(B, T, D, seed=2)
    restart = restarts() if with_restarts else torch.zeros(B, T, dtype=torch.bool)
    logit = unit.router.scores(x) - unit.router.threshold
    picked, document = logit > 0, restart.cumsum(1)
    assert 0.2 < picked.double().mean() < 0.8
    heads = unit.heavy.query_key_value(x).unflatten(-1, (9, 4))
    query, key, value = unit.heavy.query_norm(heads[:, :, :3]), unit.heavy.key_norm(heads[:, :, 3:6]), heads[:, :, 6:]
    scores = torch.einsum("bthk,bshk->bhts", query, key) / 2
    seen = (document[:, :, None] == document[:, None]) & picked[:, None] & torch.ones(T, T, dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0)
    heavy = unit.heavy.output(torch.einsum("bhts,bshk->bthk", weights, value).flatten(2))
    light = unit.light(x, unit.light.initial_state(B), context_of(x, restart)).y
    expected = light + torch.where(picked, logit.sigmoid(), 0)[..., None] * heavy
    for carry in (False, True):
        torch.testing.assert_close(read(unit, x, restart, carry), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_are_picked_and_weigh_1_it_is_both_dense_branches(kind: type[Unit]) -> None:
    unit, x = unit_of(kind), drawn(B, T, D, seed=2)
    with torch.no_grad():
        unit.router.threshold.fill_(-torch.inf)
    branches = [branch(x, branch.initial_state(B), context_of(x, restarts(), carry=False)).y for branch in (unit.light, unit.heavy)]
    torch.testing.assert_close(read(unit, x, restarts()), branches[0] + branches[1])


@pytest.mark.parametrize("kind", KINDS)
def test_where_none_is_picked_it_is_the_light_branch(kind: type[Unit]) -> None:
    unit, x = unit_of(kind), drawn(B, T, D, seed=2)
    with torch.no_grad():
        unit.router.threshold.fill_(torch.inf)
    torch.testing.assert_close(read(unit, x, restarts()), unit.light(x, unit.light.initial_state(B), context_of(x, restarts())).y)
    read(unit, x).sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in unit.parameters())
    assert not any(bool(parameter.grad.any()) for parameter in unit.heavy.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_heavy_branch_is_given_the_picked_tokens_only(kind: type[Unit]) -> None:
    unit, x = unit_of(kind), drawn(B, T, D, seed=2)
    given: list[int] = []
    projection = unit.heavy.gate_up if kind is Colt5 else unit.heavy.query_key_value
    projection.register_forward_hook(lambda module, inputs, output: given.append(inputs[0].shape[:-1].numel()))
    for carry in (False, True):
        given.clear()
        mixed = unit(x, unit.initial_state(B), context_of(x, restarts(), carry))
        picked = int((unit.router.scores(x) > unit.router.threshold).sum())
        assert sum(given) == picked == int(mixed.stats["share"][0]) < B * T == int(mixed.stats["share"][1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_router(kind: type[Unit]) -> None:
    unit, x = unit_of(kind), drawn(B, T, D, seed=2)
    read(unit, x).square().sum().backward()
    assert bool(unit.router.score.weight.grad.any()) and bool(unit.router.inner.weight.grad.any())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_unit_writes_nothing_and_learns(kind: type[Unit]) -> None:
    torch.manual_seed(4)
    unit = kind(preset_of())
    unit.initialise()
    x = drawn(B, T, D, seed=2).float()
    y = read(unit, x)
    assert not y.any()
    y.backward(x)
    assert bool(unit.light.output.weight.grad.any()) and bool(unit.heavy.output.weight.grad.any())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_near(kind: type[Unit]) -> None:
    unit, x = unit_of(kind).float(), drawn(B, T, D, seed=2).float()
    exact = read(unit, x, restarts(), carry=True)
    with torch.autocast("cpu", torch.bfloat16):
        for carry in (False, True):
            y = read(unit, x, restarts(), carry)
            assert (y - exact).abs().max() < 0.05 * exact.abs().max()


HARD = {"constant": torch.ones(B, T, D), "huge": 1e4 * torch.ones(B, T, D), "zero": torch.zeros(B, T, D), "one token": torch.ones(B, 1, D)}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("strategy", ["token_level", "sequence_level"])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_inputs_are_finite(kind: type[Unit], strategy: str, name: str) -> None:
    unit, x = unit_of(kind, **{"colt5" if kind is Colt5 else "colt5_attention": {"routing_strategy": strategy}}).float(), HARD[name].clone().requires_grad_()
    mixed = unit(x, unit.initial_state(B), context_of(x, torch.ones(B, x.shape[1], dtype=torch.bool)))
    (mixed.y.mean() + sum(mixed.losses.values())).backward()
    assert bool(mixed.y.isfinite().all()) and bool(x.grad.isfinite().all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in unit.parameters() if parameter.grad is not None)


def test_widths_and_heads() -> None:
    unit = Colt5(preset_of(model={"ffn_size": None}, colt5={}))
    assert (unit.light.output.in_features, unit.heavy.output.in_features) == (16, 64)  # of 32
    branch = Colt5Attention(preset_of(model={"num_heads": 6}, colt5_attention={"window": 5})).light
    assert isinstance(branch, Longformer) and (branch.heads, branch.kv_heads, branch.window, branch.global_tokens) == (2, 2, 5, 0)
    assert isinstance(unit.light, SwiGLU)
