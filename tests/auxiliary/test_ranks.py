"""All heads on two processes: the same gradients and the same steps as on one, however rows are cut, and with nothing to see on one of them."""

from typing import Any

import pytest
import torch

from lm.auxiliary.heads import HEADS
from lm.preset import Preset
from lm.training.distribution import Ranks
from tests.auxiliary.small import ALL, preset_of
from tests.training.expert_ranks import of_two_words, taught
from tests.training.ranks import gradients, part_of, rows
from tests.training.test_ranks import close
from tests.training.two_ranks import left_by_two_ranks


@pytest.fixture(scope="module")
def preset() -> Preset:
    return preset_of(ALL, train={"learning_rate": 0.01, "precision": "float32"})


@pytest.fixture(scope="module")
def two(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests/training/expert_ranks.py left behind, by rank."""
    return left_by_two_ranks("tests.training.expert_ranks", tmp_path_factory.mktemp("heads"), preset)


@pytest.fixture(scope="module")
def alone(preset: Preset) -> Ranks:
    return Ranks(preset.train)


def test_gradients_do_not_depend_on_ranks_or_micro_batches(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    """1 rank x 8 rows = 2 ranks x 4 rows = 2 ranks x 2 micro-batches of 2 rows = 1 rank x 8 micro-batches."""
    whole = gradients(preset, rows(), 8, alone)
    assert {name.split(".")[1] for name, gradient in whole.items() if name.startswith("heads.") and gradient.any()} == set(HEADS)
    for found in two:
        close(found["full"], whole)
        close(found["full, accumulated"], whole)
    close(gradients(preset, rows(), 1, alone), whole)


def test_a_rank_with_nothing_but_padding_goes_along(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    one = gradients(preset, part_of(rows(), 0, 2), 4, alone)
    for found in two:
        close(found["half padding"], one)
        close(found["half padding, accumulated"], one)


def test_steps_on_two_ranks_are_those_of_one(two: list[dict[str, Any]], preset: Preset, alone: Ranks) -> None:
    """With what heads keep of the step before: the negatives, and the running mean."""
    found, other = (told["taught"] for told in two)
    together = taught(preset, of_two_words(), alone)
    assert found["sound"] and together["sound"] and found["unused"] == together["unused"] == []
    assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in found["weights"].items())
    assert found["losses"] == [pytest.approx(losses, rel=1e-3) for losses in together["losses"]]
    for name in ("heads.value.mean", "heads.span_contrastive.left", "heads.span_contrastive.lane"):
        assert together["weights"][name].any()
        torch.testing.assert_close(found["weights"][name], together["weights"][name], rtol=1e-3, atol=1e-3)
