"""Routing by a learned threshold: its definition token by token, and a threshold that keeps to its budget."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.preset import Preset
from lm.units.router import DECAY, Router
from lm.units.unit import Context

B, T, D = 2, 13, 6
STRATEGIES = ["token_level", "sequence_level"]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def router_of(budget: float = 0.3, **switches: Any) -> Router:
    preset = Preset.model_validate({"model": {"hidden_size": D, "num_heads": 3}, "data": {"sources": ["c4"]}, "colt5": switches})
    torch.manual_seed(3)
    router = Router(preset, preset.colt5, budget).double()
    router.initialise()
    return router


def context_of(restart: Tensor | None = None, scored: Tensor | None = None, start: int = 0) -> Context:
    return Context(restart=restart, is_text=scored).derived(torch.zeros(B, T), torch.full((B,), start), carry=True)


def restarts() -> Tensor:
    restart = torch.zeros(B, T, dtype=torch.bool)
    restart[0, [0, 3]] = True
    restart[1, [5, 12]] = True
    return restart


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("with_restarts", [False, True])
def test_by_sequence_the_mean_of_the_documents_past_decides(start: int, with_restarts: bool) -> None:
    router, x = router_of(routing_strategy="sequence_level"), drawn(B, T, D, seed=1)
    restart = restarts() if with_restarts else torch.zeros(B, T, dtype=torch.bool)
    total = drawn(B, seed=2) if start else torch.zeros(B, dtype=torch.float64)
    found = router(x, total, context_of(restart, start=start))
    scores, weights, threshold = router.scores(x).tolist(), found.weight.tolist(), router.threshold.item()
    for row in range(B):
        past = [float(total[row] / start)] * start
        for t in range(T):
            past = [] if restart[row, t] else past
            mean = sum(past) / len(past) if past else 0.0
            assert weights[row][t] == pytest.approx(1 / (1 + math.exp(threshold - mean)))
            assert bool(found.picked[row, t]) == (mean > threshold)
            past.append(scores[row][t])
        assert found.state[row].item() == pytest.approx(sum(past))


@pytest.mark.parametrize("kind", ["mlp", "threshold"])
def test_scores_are_made_of_the_direction_alone(kind: str) -> None:
    router, x = router_of(router_type=kind), drawn(B, T, D, seed=1)
    torch.testing.assert_close(router.scores(1e3 * x), router.scores(x), rtol=1e-5, atol=1e-6)
    if kind == "threshold":
        unit = x / (x.square().mean(-1, keepdim=True) + router.eps).sqrt()
        torch.testing.assert_close(router.scores(x), unit @ router.score.weight[0] / D**0.5)


@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["mlp", "threshold"])
def test_first_weights_keep_to_the_budget(kind: str, budget: float) -> None:
    preset = Preset.model_validate({"model": {"hidden_size": 96}, "data": {"sources": ["c4"]}, "colt5": {"router_type": kind}})
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        router = Router(preset, preset.colt5, budget)
        router.initialise()
        shares.append(float((router.scores(torch.randn(1, 2000, 96)) > router.threshold).float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(budget, abs=0.07)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_learn_what_they_did(strategy: str) -> None:
    router, x = router_of(routing_strategy=strategy), drawn(B, T, D, seed=1)
    routed = router(x, router.initial_state(B), context_of())
    assert "threshold" not in dict(router.named_parameters()) and not routed.picked.requires_grad
    routed.weight.sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in router.parameters())


def test_the_budget_counts_text_however_it_is_cut() -> None:
    router, x = router_of(), drawn(B, T, D, seed=1)
    is_text = drawn(B, T, seed=2) > 0
    whole = router(x, (), context_of(scored=is_text))
    parts = [router(x[:, part], (), Context(is_text=is_text[:, part]).derived(x[:, part, 0], torch.zeros(B), carry=True)) for part in (slice(4), slice(4, T))]
    for key in ("share", "scores"):
        torch.testing.assert_close(whole.stats[key], parts[0].stats[key] + parts[1].stats[key])
    assert whole.stats["share"].tolist() == [float((whole.picked & is_text).sum()), float(is_text.sum())]


def told(picked: float, tokens: float, total: float = 0.0, squares: float = 0.0) -> dict[str, Tensor]:
    return {"share": torch.tensor([picked, tokens]), "scores": torch.tensor([total, squares])}


def test_after_a_step_its_scores_are_known() -> None:
    router = router_of()
    router.after_step(told(3, 12, 24, 156))
    assert [float(router.mean), float(router.deviation)] == [2.0, 3.0]
    before = {name: value.clone() for name, value in router.state_dict().items()}
    router.after_step(told(0, 0))
    assert all(torch.equal(value, before[name]) for name, value in router.state_dict().items()), "a step that asked about nothing"


def test_nothing_is_asked_of_the_device_after_a_step() -> None:
    """On one of tensors that have shapes and no values."""
    router = router_of().to("meta")
    for picked, tokens in ((3, 12), (0, 0)):
        router.after_step(told(picked, tokens, 24, 156))


def test_the_threshold_rises_by_what_was_picked_beyond_the_budget() -> None:
    """A token counts as much in a step that asks about many as in one that asks about few; of steps of 8 tokens the sum is the threshold's way."""
    router = router_of(budget=0.25, threshold_rate=0.5)
    threshold, average = float(router.threshold), 8.0
    for picked, tokens in [(8, 8), (0, 2), (5, 40), (1, 4), (0, 1)]:
        router.after_step(told(picked, tokens))
        average = DECAY * average + (1 - DECAY) * tokens
        threshold += 0.5 * (picked - tokens / 4) / average
        assert float(router.threshold) == pytest.approx(threshold)
    even = router_of(budget=0.25, threshold_rate=0.5)
    before, steps = float(even.threshold), [3, 0, 8, 2, 2, 1, 0]
    for picked in steps:
        even.after_step(told(picked, 8))
    assert float(even.threshold) - before == pytest.approx(0.5 * (sum(steps) - 2 * len(steps)) / 8)


@pytest.mark.parametrize("budget", [0.1, 0.5])
@pytest.mark.parametrize("few", [6, 400])
def test_where_few_are_asked_the_share_of_all_is_the_budget(budget: float, few: int) -> None:
    """Steps of 0 to `few` tokens whose scores are skewed and drift: of all that were asked the budget was picked, within what the threshold moved."""
    router, generator = router_of(budget=budget), torch.Generator().manual_seed(1)
    asked = picked = 0
    for step in range(2000):
        scores = torch.randn(int(torch.randint(few + 1, (), generator=generator)), generator=generator, dtype=torch.float64).exp() * (1 + step / 500)
        above = int(((scores - router.mean) / router.deviation > router.threshold).sum())
        asked, picked = asked + len(scores), picked + above
        router.after_step(told(above, len(scores), float(scores.sum()), float(scores.square().sum())))
    assert picked / asked == pytest.approx(budget, abs=0.01)


def test_scores_are_measured_by_those_of_the_step_before() -> None:
    router, x = router_of(), drawn(B, T, D, seed=1)
    plain = router(x, (), context_of())
    router.after_step(plain.stats)
    scores = router.scores(x)
    standard = (scores - scores.mean()) / scores.std(correction=0)
    found = router(x, (), context_of())
    torch.testing.assert_close(found.weight, torch.sigmoid(standard - router.threshold), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.picked, standard > router.threshold)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_under_autocast_scores_are_float32(strategy: str) -> None:
    router = router_of(routing_strategy=strategy).float()
    x = drawn(B, T, D, seed=1).float()
    plain = router(x, router.initial_state(B), context_of())
    with torch.autocast("cpu", torch.bfloat16):
        routed = router(x, router.initial_state(B), context_of())
    assert torch.equal(routed.weight, plain.weight) and torch.equal(routed.picked, plain.picked)
    half = router(x.bfloat16(), router.initial_state(B), context_of())
    assert half.weight.dtype == torch.float32
    torch.testing.assert_close(half.weight, plain.weight, rtol=0.05, atol=0.05)
