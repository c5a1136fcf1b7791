"""Training where some tokens are picked: whatever the number of processes, also where one picks nothing, and by the budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources import Batch
from lm.model import build_model
from lm.preset import Preset
from lm.training import train
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Cut, Found, Teacher, Total
from tests.training.picks import SECTIONS, Taught, batch, learner_of, taught
from tests.training.ranks import V, part_of, rows
from tests.training.two_ranks import left_by_two_ranks

CASES = {"one picks nothing": slice(1, None, 2), "none picks": slice(None), "both pick": slice(0)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests/training/picks.py left behind, by rank."""
    return left_by_two_ranks("tests.training.picks", tmp_path_factory.mktemp("picks"))


def alone(case: str, micro_rows: int) -> Taught:
    preset, whole = Preset.model_validate(SECTIONS), batch(CASES[case])
    return taught(preset, whole, micro_rows, Ranks(preset.train), whole.valid)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], absolute: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=absolute, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_learns(two: list[dict[str, Any]], case: str) -> None:
    """Gradients, and the weights and thresholds after three steps in which the shares are heard."""
    whole = alone(case, 8)
    for micro_rows in (4, 1):
        for rank in two:
            close(rank[f"{case}, {micro_rows}"]["summed"], whole.summed)
            close(rank[f"{case}, {micro_rows}"]["weights"], whole.weights, 1e-4)  # of steps of 1e-2
    close(alone(case, 1).summed, whole.summed)
    born = learner_of(Preset.model_validate(SECTIONS)).state_dict()
    moved = [bool((tensor != born[name]).all()) for name, tensor in whole.weights.items() if name.endswith("threshold")]
    assert moved == [True] * 4, "a budget has no say"


def test_a_rank_that_picks_nothing_has_a_gradient_of_zero_for_every_parameter(two: list[dict[str, Any]]) -> None:
    for micro_rows in (4, 1):
        busy, idle = (rank[f"one picks nothing, {micro_rows}"] for rank in two)
        assert not any(idle["picked"].values()) and all(busy["picked"].values())
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in idle["own"].values())
        heavy = [name for name in idle["own"] if ".heavy." in name or "model.layers.1." in name]
        assert len(heavy) > 10 and not any(bool(idle["own"][name].any()) for name in heavy) and all(bool(busy["own"][name].any()) for name in heavy)


def test_without_a_pick_on_any_rank_heavy_weights_stay(two: list[dict[str, Any]]) -> None:
    for rank in two:
        found = rank["none picks, 4"]
        assert all(gradient is not None for gradient in found["own"].values())
        assert not any(bool(gradient.any()) for name, gradient in found["summed"].items() if ".heavy." in name)


OF_TEXT = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 16, "ffn_size": 8},
    "train": {"learning_rate": 0.01, "precision": "float32"},
    "data": {"sources": ["c4"]},
    "moe": {"enabled": True, "experts": 3, "expert_size": 8, "balance_weight": 0.5, "z_weight": 0.1, "layers": [0]},
    "colt5_attention": {"enabled": True, "layers": [0]},
    "mixture_of_depths": {"enabled": True, "layers": [1]},
}


def scored_here_and_there() -> Batch:
    """Eight rows of text; of some nothing is scored, of others little, and one ends with padding."""
    found = rows()
    source = torch.zeros_like(found.source)
    source[2, 5:] = -1
    targets = found.targets.clone()
    targets[:, 1::3] = -100
    targets[[0, 5]] = -100
    targets[source < 0] = -100
    return replace(found, source=source, targets=targets, valid=int((targets >= 0).sum()))


def test_budgets_and_balance_are_of_all_text_and_do_not_depend_on_how_it_is_cut() -> None:
    """Half of the tokens are scored, in some rows none: gradients of rows at once, of one at a time, and of two ranks' rows, and what units hear."""
    preset, whole = Preset.model_validate(OF_TEXT), scored_here_and_there()
    ranks, total = Ranks(preset.train), Total(whole.valid, int(whole.is_text.sum()))
    assert 2 * total.scored < total.text == 8 * 16 - 11

    def learned(batch: Batch, micro_rows: int) -> tuple[dict[str, torch.Tensor], Found]:
        torch.manual_seed(9)
        learner = Learner(build_model(preset, V))
        for parameter in learner.parameters():
            parameter.data.normal_(std=0.3)
        for name, buffer in learner.named_buffers():
            buffer.uniform_(0, 0.5) if name.endswith("share") else None
        teacher = Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights)
        teacher.micro_rows = micro_rows
        found = teacher._gradients_in_memory(batch, total, 1, Cut())
        found = found._replace(losses={name: loss.item() for name, loss in found.losses.items()})
        return {name: parameter.grad for name, parameter in learner.named_parameters()}, found

    expected, found = learned(whole, 8)
    halves = [learned(part_of(whole, rank, 2), 2) for rank in range(2)]
    for gradients, losses in (
        (learned(whole, 1)[0], learned(whole, 1)[1].losses),
        ({name: sum(half[0][name] for half in halves) for name in expected}, {name: sum(half[1].losses[name] for half in halves) for name in found.losses}),
    ):
        close(gradients, expected)
        assert losses == pytest.approx(found.losses, rel=1e-4)
    depths_read = found.stats["1.depths.share"][0]
    assert found.stats["1.depths.share"][1] == total.text and found.stats["0.moe.load"].sum() == 2 * total.text and 0 < depths_read < total.text
    assert found.losses["moe_z"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5])
def test_the_picked_share_follows_the_budget(budget: float, tiny: Callable[..., Preset], tmp_path: Path) -> None:
    """Real text, 600 steps: over the last third the share is the budget within 0.01, for layers, for heavy tokens, and for those among the tokens
    that a layer is read by."""
    preset = tiny(
        train={"learning_rate": 0.003, "eval_tokens": 1000},
        colt5={"enabled": True, "budget": budget},
        colt5_attention={"enabled": True, "budget": budget, "window": 16},
        mixture_of_depths={"enabled": True, "share": budget, "layers": [1]},
    )
    told: list[Any] = []
    train(preset, tmp_path, 600 * 4 * 64, observers=(told.append,))
    units = [event["units"] for event in told if event["event"] == "step"][-200:]
    for name in sorted({name for step in units for name in step if name.endswith("share")}):
        asked = [step[name] for step in units if name in step]  # units of a layer that reads no token of a step have nothing to tell
        picked, tokens = map(sum, zip(*asked, strict=True))
        assert abs(picked / tokens - budget) < 0.01, f"{name}: {picked / tokens:.4f}"
    losses = [event["loss"] for event in told if event["event"] == "step"]
    assert sum(losses[-50:]) / 50 < losses[0] - 1
