"""Mixture of depths: the plain layer where everything is picked, a plain loop elsewhere, and states that pass tokens by."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model import Model, build_model
from lm.preset import Preset, PresetError, count_parameters, model_in_words, preset_from_json
from lm.units.mixture_of_depths import WRITTEN
from lm.units.router import Router
from lm.units.unit import Context

B, T, V = 2, 15, 11
WINDOWS = {"longformer": {"enabled": True, "layers": "odd", "window": 3}}


def preset_of(**sections: Any) -> Preset:
    model = {"hidden_size": 12, "num_layers": 2, "num_heads": 3, "seq_length": 16, "ffn_size": 7} | sections.pop("model", {})
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **sections})


def model_of(preset: Preset) -> Model:
    """All parameters random, those of the units the same with and without routers; these pick the tokens that score above the mean."""
    model = build_model(preset, V).double()
    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters(), key=lambda named: (named[0].startswith("depths."), named[0])):
        parameter.data.normal_(std=0.4, generator=generator)
    routers = [part for part in model.modules() if isinstance(part, Router)]
    hooks = [router.register_forward_pre_hook(settle) for router in routers]
    model(tokens())
    for hook in hooks:
        hook.remove()
    return model


@torch.no_grad()
def settle(router: Router, inputs: tuple[Any, ...]) -> None:
    router.threshold.copy_(router.scores(inputs[0]).mean())


def tokens(seed: int = 2) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def restarts() -> Tensor:
    restart = torch.zeros(B, T, dtype=torch.bool)
    restart[0, [0, 4, 5]] = True
    restart[1, [9, T - 1]] = True
    return restart


DEPTHS = {"mixture_of_depths": {"enabled": True}}
PLANS: dict[str, dict[str, Any]] = {
    "attention": {},
    "s5, longformer": {"s5": {"enabled": True, "layers": "even", "state_size": 6}, **WINDOWS},
    "rwkv": {"rwkv": {"enabled": True, "mix_rank": 5, "decay_rank": 7}, "rwkv_channel": {"enabled": True}},
    "mamba2": {"mamba2": {"enabled": True, "state_size": 5}},
}


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_where_all_are_picked_and_weigh_1_it_is_the_plain_model(name: str, carry: bool) -> None:
    plain, some = model_of(preset_of(**PLANS[name])), model_of(preset_of(**PLANS[name], **DEPTHS))
    for router in some.depths.values():
        router.router.threshold.fill_(-torch.inf)
    states = (plain.initial_state(B), some.initial_state(B)) if carry else (None, None)
    expected, found = (model(tokens(), state, Context(restart=restarts())).logits for model, state in zip((plain, some), states, strict=True))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PLANS)
def test_equals_a_loop_over_tokens(name: str) -> None:
    """Each row alone, token by token, every layer with the states of the tokens that it read."""
    model = model_of(preset_of(**PLANS[name], **DEPTHS))
    found = model(tokens(), None, Context(restart=restarts())).hidden
    shares = []
    for row in range(B):
        states = [layer.initial_state(1) for layer in model.layers]
        places, began = [0] * 2, [False] * 2
        for t in range(T):
            x = model.embedding(tokens()[row, t]).view(1, 1, -1)
            for depth, layer in enumerate(model.layers):
                router = model.depths[str(depth)].router
                began[depth] |= bool(restarts()[row, t])
                logit = (router.scores(x) - router.threshold).item()
                shares.append(logit > 0)
                if logit <= 0:
                    continue
                start = torch.tensor([0 if began[depth] else places[depth]])
                mixed = layer(x, states[depth], Context(restart=torch.tensor([[began[depth]]])).derived(x[..., 0], start, carry=True))
                x = x + torch.tensor(logit).sigmoid() * (mixed.y - x)
                states[depth], places[depth], began[depth] = mixed.state, int(start) + 1, False
            torch.testing.assert_close(found[row, t], model.norm(x)[0, 0], rtol=1e-6, atol=1e-7)  # the logit went through a Python number
    assert 0.2 < sum(shares) / len(shares) < 0.8


def test_a_token_that_is_not_picked_is_not_there_for_the_layer() -> None:
    """Neither as a key nor as a query: what it says changes nothing of others, and the layer changes nothing of it."""
    model = model_of(preset_of(model={"num_layers": 1}, **DEPTHS))
    router = model.depths["0"].router
    picked = (router.scores(model.embedding(tokens())) > router.threshold)[0].tolist()
    skipped = picked.index(False)
    assert any(picked[skipped:])
    others = [token for token in range(V) if not bool(router.scores(model.embedding(torch.tensor([[token]]))) > router.threshold)]
    other = tokens()
    other[0, skipped] = next(token for token in others if token != int(other[0, skipped]))
    before, after = model(tokens()).hidden, model(other).hidden
    torch.testing.assert_close(after[0, skipped], model.norm(model.embedding(other[0, skipped])))
    rest = torch.arange(T) != skipped
    assert torch.equal(before[0, rest], after[0, rest])


def test_the_layer_is_given_the_picked_tokens_only() -> None:
    model, given = model_of(preset_of(**DEPTHS)), []
    for layer in model.layers:
        layer[1].unit.gate_up.register_forward_hook(lambda module, inputs, output: given.append(inputs[0].shape[:-1].numel()))
    for state in (None, model.initial_state(B)):
        given.clear()
        out = model(tokens(), state, Context(restart=restarts()))
        shares = [out.stats[f"{depth}.depths.share"].tolist() for depth in range(2)]
        assert sum(given) == sum(picked for picked, _ in shares) and [count for _, count in shares] == [B * T] * 2
        assert 0 < sum(given) < 2 * B * T


def test_stats_reach_the_routers_and_the_units_inside() -> None:
    model = model_of(preset_of(colt5={"enabled": True, "light_size": 5}, **DEPTHS))
    out = model(tokens())
    assert set(out.stats) == {f"{depth}.{name}.{key}" for depth in range(2) for name in ("depths", "colt5") for key in ("share", "scores")}
    assert float(out.stats["1.colt5.share"][1]) == float(out.stats["1.depths.share"][0])  # the inner budget counts what the layer reads
    scores = torch.tensor([2.0, 9.0])
    told = {"0.depths.share": torch.tensor([1.0, 4.0]), "0.depths.scores": scores, "1.colt5.share": torch.tensor([1.0, 8.0]), "1.colt5.scores": scores}
    model.after_step(told)
    for router, tokens_told in ((model.depths["0"].router, 4), (model.layers[1][1].unit.router, 8)):
        assert float(router.step_tokens) == tokens_told and float(router.mean) == 2 / tokens_told


def test_a_windows_tokens_are_chosen_by_what_the_feed_forward_before_wrote() -> None:
    preset = preset_of(**WINDOWS, mixture_of_depths={"enabled": True, "layers": "odd", "select": "previous_ffn"})
    model, seen = model_of(preset), []
    model.layers[0][1].unit.register_forward_hook(lambda module, inputs, mixed: seen.append(mixed.y))
    model.depths["1"].router.register_forward_hook(lambda module, inputs, routed: seen.append(inputs[0]))
    out = model(tokens())
    torch.testing.assert_close(seen[1], seen[0])
    assert 0 < float(out.stats["1.depths.share"][0]) < B * T
    assert WRITTEN not in model.layers[1](torch.zeros(B, T, 12).double(), model.layers[1].initial_state(B), context_of()).shared
    out.logits.square().sum().backward()
    assert bool(model.depths["1"].router.score.weight.grad.any())


def context_of() -> Context:
    return Context().derived(tokens(), torch.zeros(B, dtype=torch.int64), carry=True)


def test_what_nobody_reads_takes_part_in_the_step_on_one_process_too() -> None:
    """Else the optimizer would leave alone what it changes on two, where sums of gradients are never missing."""
    from lm.training.distribution import Ranks

    preset = preset_of(shared_ffn={"enabled": True, "private_share": 0.0}, **DEPTHS | {"mixture_of_depths": {**DEPTHS["mixture_of_depths"], "layers": "all"}})
    model = build_model(preset, V)
    for router in model.depths.values():
        router.router.threshold.fill_(1e3)
    model(tokens()).logits.sum().backward()
    parameters = list(model.parameters())
    assert any(parameter.grad is None for parameter in parameters)
    Ranks(preset.train).sum_gradients(parameters)
    assert all(parameter.grad is not None for parameter in parameters)


def test_switching_it_on_keeps_the_units() -> None:
    from lm.training.growth import fit

    plain, some = build_model(preset_of(), V), build_model(preset_of(**DEPTHS), V)
    ours, theirs = ({f"model.{name}": tensor for name, tensor in model.state_dict().items()} for model in (some, plain))
    how = fit(some, ours, preset_of(), theirs)
    assert not how.left and all(name.startswith("model.depths.") for name in how.new) and len(how.kept) == len(theirs)
    assert not fit(plain, theirs, preset_of(**DEPTHS), ours).new


def test_it_is_told_and_counted() -> None:
    preset = preset_of(model={"num_layers": 4}, mixture_of_depths={"enabled": True, "layers": "odd", "share": 0.125})
    assert model_in_words(preset) == "2 x (attention, swiglu | attention, swiglu at 12.5 %)"
    assert count_parameters(preset, V).total == sum(parameter.numel() for parameter in build_model(preset, V).parameters())


REFUSED = [
    ({"layers": "odd", "select": "previous_ffn"}, ""),
    ({"layers": "all", "select": "previous_ffn"}, "but layer 0 has none before it"),
    ({"layers": [1, 2], "select": "previous_ffn"}, "but layer 2 has only layer 1 before it, which not every token reads"),
    ({"layers": [7]}, "mixture_of_depths.layers: layer 7 is not there"),
    ({"share": 0}, "mixture_of_depths.share: found 0; allowed: a number above 0 to 1"),
]


@pytest.mark.parametrize(("section", "reason"), REFUSED)
def test_what_can_not_be_is_refused_in_a_line(section: dict[str, Any], reason: str) -> None:
    text = Preset.model_validate({"data": {"sources": ["c4"]}}).model_copy().model_dump_json(include={"data"})
    text = text[:-1] + ', "mixture_of_depths": ' + str({"enabled": "yes", **section}).replace("'yes'", "true").replace("'", '"') + "}"
    if not reason:
        preset_from_json(text, "mine")
        return
    with pytest.raises(PresetError) as caught:
        preset_from_json(text, "mine")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_layers_that_need_every_token_are_refused() -> None:
    from lm.preset.plan import check_plan

    with pytest.raises(ValueError, match="layer 0 holds shared_attention, which needs every token"):
        check_plan(preset_of(shared_attention={"enabled": True}, **DEPTHS))
