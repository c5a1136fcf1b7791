"""Experts on two processes: gradients with the router's losses that do not depend on how rows are cut, and experts that nobody chose."""

from typing import Any

import pytest
import torch

from lm.preset import Preset
from lm.training.distribution import Ranks
from tests.training.expert_ranks import of_two_words, taught
from tests.training.ranks import gradients, part_of, rows
from tests.training.test_ranks import close
from tests.training.two_ranks import left_by_two_ranks

RAW = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64},
    "train": {"learning_rate": 0.01, "precision": "float32"},
    "data": {"sources": ["c4"]},
    "moe": {"enabled": True, "experts": 6, "experts_per_token": 2, "shared_experts": 1, "expert_size": 8, "balance_weight": 0.5, "z_weight": 0.1},
}


@pytest.fixture(scope="module")
def preset() -> Preset:
    return Preset.model_validate(RAW)


@pytest.fixture(scope="module")
def two(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests/training/expert_ranks.py left behind, by rank."""
    return left_by_two_ranks("tests.training.expert_ranks", tmp_path_factory.mktemp("experts"), preset)


@pytest.fixture(scope="module")
def alone(preset: Preset) -> Ranks:
    return Ranks(preset.train)


def test_gradients_with_the_routers_losses_do_not_depend_on_ranks_or_micro_batches(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    """1 rank x 8 rows = 2 ranks x 4 rows = 2 ranks x 2 micro-batches of 2 rows = 1 rank x 8 micro-batches."""
    whole = gradients(preset, rows(), 8, alone)
    assert all(bool(gradient.abs().sum() > 0) for gradient in whole.values())
    for found in two:
        close(found["full"], whole)
        close(found["full, accumulated"], whole)
    close(gradients(preset, rows(), 1, alone), whole)


def test_each_of_the_losses_has_a_part_in_them(preset: Preset, alone: Ranks) -> None:
    whole = gradients(preset, rows(), 8, alone)
    for name in ("balance_weight", "z_weight"):
        without = gradients(preset.model_copy(update={"moe": preset.moe.model_copy(update={name: 0.0})}), rows(), 8, alone)
        router = "model.layers.1.1.unit.router.weight"
        assert (without[router] - whole[router]).norm() > 1e-3 * whole[router].norm(), name


def test_a_rank_with_nothing_but_padding_goes_along(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    one = gradients(preset, part_of(rows(), 0, 2), 4, alone)
    for found in two:
        close(found["half padding"], one)
        close(found["half padding, accumulated"], one)


def test_experts_that_a_rank_or_nobody_chose_go_on_with_the_others(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    """Two ranks, each with one word: what they learn is what one process learns of both, and every rank has the same routers."""
    found, other = (told["taught"] for told in two)
    together = taught(preset, of_two_words(), alone)
    assert found["sound"] and together["sound"] and found["unused"] == together["unused"] == []
    halves = [taught(preset, part_of(of_two_words(), rank, 2), alone)["stats"][0] for rank in range(2)]
    loads = found["stats"][0]
    assert {name: value.tolist() for name, value in loads.items()} == {name: sum(half[name] for half in halves).tolist() for name in loads}
    of_one_alone = [bool(((halves[0][name] == 0) != (halves[1][name] == 0)).any()) for name in loads]
    of_nobody = [bool((value == 0).any()) for value in loads.values()]
    assert any(of_one_alone) and any(of_nobody), loads
    for mine, theirs in zip(found["stats"], together["stats"], strict=True):
        assert {name: value.tolist() for name, value in mine.items()} == {name: value.tolist() for name, value in theirs.items()}
    assert found["losses"] == [pytest.approx(losses, rel=1e-4) for losses in together["losses"]]
    assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in found["weights"].items())
    # Where all tokens are alike, it makes no difference to what attention looks: its gradient is rounding alone, which AdamW makes large.
    for name, tensor in ((name, tensor) for name, tensor in together["weights"].items() if ".1.unit." in name):
        torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert found["weights"]["model.layers.0.1.unit.bias"].any()
