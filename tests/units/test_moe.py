"""Mixture of experts equals its definition, and transformers' Mixtral with the same weights; its router becomes and stays even."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from lm.preset import Preset
from lm.units.moe import Assignment, Moe, moe_parallel, moe_step, routed_by
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context

B, T, D, WIDTH = 2, 19, 12, 5
SECTIONS: dict[str, dict[str, Any]] = {
    "one of three": {"experts": 3, "experts_per_token": 1},
    "two of five": {"experts": 5, "experts_per_token": 2},
    "three of four": {"experts": 4, "experts_per_token": 3},
    "not normalised": {"experts": 4, "experts_per_token": 2, "normalise": False},
    "all": {"experts": 3, "experts_per_token": 3},
    "beside two for all": {"experts": 4, "experts_per_token": 2, "shared_experts": 2},
}
sections = pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS.keys())


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preset_of(section: dict[str, Any], size: int = D) -> Preset:
    model = {"hidden_size": size, "num_heads": 2, "ffn_size": 3 * WIDTH}
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, "moe": {"expert_size": WIDTH} | section})


def unit_of(section: dict[str, Any], std: float = 0.4, size: int = D) -> Moe:
    unit, generator = Moe(preset_of(section, size)), torch.Generator().manual_seed(1)
    for parameter in unit.parameters():
        parameter.data.normal_(std=std, generator=generator)
    unit.bias.normal_(std=0.1, generator=generator)
    return unit.double()


def context_of(x: Tensor, scored: Tensor | None = None) -> Context:
    return Context(is_text=scored).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry=False)


def read(unit: Moe, x: Tensor) -> Tensor:
    return unit(x, (), context_of(x)).y


def one_by_one(unit: Moe, x: Tensor) -> Tensor:
    """The definition, for each token by itself, the router as the paper has it."""
    rows = []
    for token in x.flatten(0, 1):
        p = (unit.router.weight @ token).softmax(0)
        chosen = (p + unit.bias).topk(unit.experts_per_token).indices
        weight = p[chosen] / p[chosen].sum() if unit.normalise else p[chosen]
        y = moe_step(token, Assignment(chosen, weight, p, p), unit.gate_up.weight, unit.output.weight)
        if unit.shared_output is not None:
            gate, up = unit.shared_gate_up(token).chunk(2)
            y = y + unit.shared_output(F.silu(gate) * up)
        rows.append(y)
    return torch.stack(rows).view_as(x)


@sections
def test_all_at_once_equals_the_definition(section: dict[str, Any]) -> None:
    unit, x = unit_of(section), drawn(B, T, D, seed=2).requires_grad_()
    found, wanted = read(unit, x), one_by_one(unit, x)
    torch.testing.assert_close(found, wanted)
    weight = drawn(B, T, D, seed=3)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), [x, *unit.parameters()]) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("experts", "count"), [(8, 2), (5, 3), (4, 1)])
def test_equals_transformers_mixtral(experts: int, count: int) -> None:
    config = MixtralConfig(hidden_size=D, intermediate_size=WIDTH, num_local_experts=experts, num_experts_per_tok=count, experts_implementation="eager")
    theirs = MixtralSparseMoeBlock(config)
    for seed, parameter in enumerate(theirs.parameters()):
        parameter.data = 0.5 * drawn(*parameter.shape, seed=seed).float()
    ours = Moe(preset_of({"experts": experts, "experts_per_token": count}))
    ours.normalise = True  # as Mixtral also does for one
    names = {"gate.weight": "router.weight", "experts.gate_up_proj": "gate_up.weight", "experts.down_proj": "output.weight"}
    told = dict(theirs.named_parameters())
    assert told.keys() == names.keys()
    ours.load_state_dict({names[name]: value.detach() for name, value in told.items()}, strict=False)
    x = drawn(B, T, D, seed=9).float()
    texts = [x.clone().requires_grad_() for _ in range(2)]
    found, wanted = read(ours, texts[0]), theirs(texts[1])
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weight = drawn(B, T, D, seed=3).float()
    for y in (found, wanted):
        (y * weight).sum().backward()
    own = dict(ours.named_parameters())
    torch.testing.assert_close(texts[0].grad, texts[1].grad, rtol=1e-4, atol=1e-5)
    for name, parameter in told.items():
        torch.testing.assert_close(own[names[name]].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_none_is_dropped_when_all_choose_the_same() -> None:
    """A thousand tokens of one direction, and one expert that wants it: each is read by it, and the others get a gradient of zero."""
    unit = unit_of({"experts": 5, "experts_per_token": 1, "normalise": False, "balance_weight": 0, "z_weight": 0})
    unit.router.weight.data.zero_()[3] = 50.0
    unit.bias.zero_()
    x = drawn(2, 500, D, seed=4).abs() + 0.1
    dense = SwiGLU(Preset.model_validate({"model": {"hidden_size": D, "num_heads": 2, "ffn_size": WIDTH}, "data": {"sources": ["c4"]}})).double()
    dense.load_state_dict({"gate_up.weight": unit.gate_up.weight[3], "output.weight": unit.output.weight[3]})
    mixed = unit(x, (), context_of(x))
    torch.testing.assert_close(mixed.y, dense(x, (), context_of(x)).y)
    assert mixed.stats["load"].tolist() == [0, 0, 0, 1000, 0]
    mixed.y.square().sum().backward()
    for matrices in (unit.gate_up.weight, unit.output.weight):
        assert [bool(gradient.any()) for gradient in matrices.grad] == [False, False, False, True, False]


def test_the_bias_chooses_and_does_not_weigh() -> None:
    unit, x = unit_of({"experts": 4, "experts_per_token": 2}), drawn(B, T, D, seed=5)
    unit.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 5.0]))
    routed = unit.route(x)
    assert (routed.chosen == torch.tensor([1, 3])).all()
    scores = unit.router(x)[..., [1, 3]]
    torch.testing.assert_close(routed.weight, scores.softmax(-1))
    far = routed_by(torch.tensor([[[0.0, -2000.0, -3000.0]]]), torch.tensor([-9.0, 0.0, 0.0]), 2, True)
    assert far.chosen.tolist() == [[[1, 2]]] and far.weight.tolist() == [[[1, 0]]], "two whose probability is no number any more"


def test_what_a_step_came_to_is_heard() -> None:
    unit = Moe(preset_of({"experts": 4, "experts_per_token": 2, "bias_rate": 0.5}))
    unit.after_step({"load": torch.tensor([10.0, 10.0, 60.0, 0.0])})
    assert unit.share.tolist() == [0.125, 0.125, 0.75, 0.0]
    assert unit.bias.tolist() == [0.25, 0.25, -0.75, 0.25], "one step of 0.5 up or down, less the mean"
    unit.after_step({"load": torch.zeros(4)})
    assert unit.share.isfinite().all() and unit.bias.tolist() == [0.25, 0.25, -0.75, 0.25]
    still = Moe(preset_of({"bias_rate": 0}))
    still.after_step({"load": torch.arange(8.0)})
    assert not still.bias.any()


def test_losses_and_loads_are_those_of_the_papers_over_scored_tokens() -> None:
    unit, x = unit_of({"experts": 5, "experts_per_token": 2}), drawn(B, T, D, seed=6)
    scored = torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < 0.6
    unit.after_step({"load": torch.tensor([5.0, 1.0, 0.0, 2.0, 2.0])})
    mixed = unit(x, (), context_of(x, scored))
    share = [0.5, 0.1, 0.0, 0.2, 0.2]
    balance, z, load = [], [], torch.zeros(5, dtype=torch.float64)
    for token in x[scored]:
        scores = unit.router.weight @ token
        p = scores.exp() / scores.exp().sum()
        balance.append(5 * sum(f * probability for f, probability in zip(share, p, strict=True)))
        z.append(scores.exp().sum().log() ** 2)
        for expert in (p + unit.bias).topk(2).indices:
            load[expert] += 1
    torch.testing.assert_close(mixed.losses["moe_balance"], torch.stack(balance).mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed.losses["moe_z"], torch.stack(z).mean())
    assert torch.equal(mixed.stats["load"], load) and not mixed.stats["load"].requires_grad
    assert unit(x, (), context_of(x, scored & False)).losses["moe_balance"].item() == 0


def test_what_is_switched_off_is_not_there() -> None:
    unit, x = unit_of({"experts": 5, "balance_weight": 0, "z_weight": 0}), drawn(B, T, D, seed=6)
    mixed = unit(x, (), context_of(x))
    assert not mixed.losses and mixed.stats.keys() == {"load"}
    unit = unit_of({"experts": 5})
    assert unit(x, (), context_of(x)).losses.keys() == {"moe_balance", "moe_z"}
    mixed = unit.eval()(x, (), context_of(x))
    assert not mixed.losses and not mixed.stats


def loads_after_learning(section: dict[str, Any], steps: int = 300) -> Tensor:
    """Shares of the experts, over the last fifty steps of learning a function of random vectors, from a router that prefers one of them."""
    torch.manual_seed(0)
    unit = Moe(preset_of({"experts": 6, "experts_per_token": 2, "expert_size": 8, "z_weight": 0} | section))
    unit.initialise()
    centre, target = torch.randn(D), nn.Sequential(nn.Linear(D, 24), nn.Tanh(), nn.Linear(24, D))
    unit.router.weight.data[:2] += 0.6 * centre / centre.square().mean()  # two experts for all
    optimizer = torch.optim.AdamW(unit.parameters(), lr=3e-3)
    late = torch.zeros(6)
    for step in range(steps):
        x = torch.randn(4, 64, D) + centre
        mixed = unit(x, (), context_of(x))
        loss = (mixed.y - target(x).detach()).square().mean() + section["balance_weight"] * mixed.losses.get("moe_balance", 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        unit.after_step(mixed.stats)
        late += mixed.stats["load"] * (step >= steps - 50)
    return late / late.sum()


def test_a_skewed_router_is_made_even_by_nudging_or_by_the_loss() -> None:
    alone = loads_after_learning({"balance_weight": 0, "bias_rate": 0})
    nudged = loads_after_learning({"balance_weight": 0, "bias_rate": 0.02})
    pulled = loads_after_learning({"balance_weight": 0.1, "bias_rate": 0})
    assert alone.max() > 2 / 6 and alone.min() < 0.2 / 6, "left alone it stays as it is"
    assert nudged.max() < 1.5 / 6 and nudged.min() > 0.5 / 6, nudged
    assert pulled.max() < 1.5 / 6 and pulled.min() > 0.5 / 6, pulled


def test_bfloat16_is_close_to_float32_and_chooses_the_same() -> None:
    unit, x = unit_of({"experts": 8, "experts_per_token": 2, "shared_experts": 1}, 0.2).float(), drawn(B, 40, D, seed=7).float()
    exact = read(unit, x)
    with torch.autocast("cpu", torch.bfloat16):
        routed, found = unit.route(x), read(unit, x)
    assert torch.equal(routed.chosen, unit.route(x).chosen) and routed.weight.dtype == torch.float32
    assert found.dtype == torch.bfloat16 and (found - exact).norm() < 2e-2 * exact.norm()
    mixed = unit.bfloat16()(x.bfloat16(), (), context_of(x))
    assert mixed.y.dtype == torch.bfloat16 and mixed.losses["moe_z"].dtype == torch.float32


@pytest.mark.parametrize("text", ["random", "constant", "huge", "zeros"])
@sections
def test_always_finite(section: dict[str, Any], text: str) -> None:
    unit = unit_of(section).float()
    x = {
        "random": drawn(B, T, D, seed=7),
        "constant": drawn(B, 1, D, seed=7).expand(B, T, D),
        "huge": 1e4 * drawn(B, T, D, seed=7),
        "zeros": torch.zeros(B, T, D),
    }[text].float()
    for length in (0, 1, T):
        piece = x[:, :length].clone().requires_grad_()
        mixed = unit(piece, (), context_of(piece))
        assert mixed.y.shape == piece.shape and mixed.y.isfinite().all()
        total = mixed.y.sum() + sum(mixed.losses.values())
        for gradient in torch.autograd.grad(total, [piece, *unit.parameters()], allow_unused=not length):
            assert gradient is None or gradient.isfinite().all()


def test_first_weights_write_nothing_and_prefer_nobody() -> None:
    unit, x = Moe(preset_of({"shared_experts": 1}, 48)), drawn(B, 400, 48, seed=7).float()
    unit.initialise()
    mixed = unit(x, (), context_of(x))
    assert not mixed.y.any() and mixed.losses["moe_balance"].item() == pytest.approx(1)
    assert mixed.stats["load"].max() < 2 * mixed.stats["load"].mean()
    for matrices in (unit.output.weight, unit.shared_output.weight):
        matrices.data.normal_()
        assert read(unit, x).any()
        matrices.data.zero_()


def test_experts_are_as_wide_as_makes_them_as_large_as_the_dense_layer() -> None:
    for section, width in (({}, 8), ({"experts_per_token": 1}, 16), ({"shared_experts": 1}, 8), ({"expert_size": 7}, 7)):
        preset = Preset.model_validate({"model": {"ffn_size": 3 * WIDTH}, "data": {"sources": ["c4"]}, "moe": section})
        assert Moe(preset).output.weight.shape == (8, 256, width)
    assert moe_parallel(drawn(1, 0, D, seed=1), unit_of({}).route(drawn(1, 0, D, seed=1)), unit_of({}).gate_up.weight, unit_of({}).output.weight).shape == (
        1,
        0,
        D,
    )
