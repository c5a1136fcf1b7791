"""What is told of heads' losses: means over the tokens that each was taken at, however rows are cut."""

import pytest

from lm.auxiliary.heads import HEADS
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.learner import weighted_sum
from lm.training.optimizer import build_optimizer
from lm.training.step import Step, Teacher
from tests.auxiliary.small import ALL, learner_of, preset_of, read
from tests.training.ranks import rows

ONE = {"precision": "float32"}


def step_of(preset: Preset, micro_rows: int, padding_from: int = 8) -> Step:
    learner = learner_of(preset)
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights)
    teacher.micro_rows = micro_rows
    return teacher.step(rows(padding_from), 1, 0, 10_000)


@pytest.mark.parametrize("micro_rows", [8, 3])
def test_a_loss_is_its_sum_over_its_count(micro_rows: int) -> None:
    """And not over all scored tokens, of which one in some stride is looked at, and of those not all."""
    preset = preset_of(ALL, train=ONE)
    learner = learner_of(preset)
    (reading,) = read(learner, rows())
    taught = [head(reading) for head in learner.heads.values()]
    means = {name: float(total) / float(each.counts[name]) for each in taught for name, total in each.sums.items()}
    told = step_of(preset, micro_rows).losses
    assert told.keys() == {"next_token", *means}
    assert {name: told[name] for name in means} == pytest.approx(means, rel=1e-4)
    assert any(float(each.counts[name]) != rows().valid for each in taught for name in each.sums)


def test_what_is_trained_is_the_sum_over_all_scored_tokens() -> None:
    preset = preset_of(ALL, train=ONE)
    learner = learner_of(preset)
    (reading,) = read(learner, rows())
    sums = {name: float(total) for head in learner.heads.values() for name, total in head(reading).sums.items()}
    learned = learner([rows()])
    assert {name: float(learned.losses[name].detach()) * rows().valid for name in sums} == pytest.approx(sums, rel=1e-5)
    assert float(weighted_sum(learned.losses, preset.loss_weights).detach()) == pytest.approx(
        float(learned.losses["next_token"].detach()) + sum(preset.loss_weights[name] * total for name, total in sums.items()) / rows().valid, rel=1e-5
    )


def test_of_a_loss_that_was_taken_nowhere_nothing_is_told() -> None:
    """Rows too short for a span tell of the other heads."""
    assert step_of(preset_of(ALL | {"span_length": 15}, train=ONE), 8).losses.keys() == step_of(preset_of(ALL, train=ONE), 8).losses.keys() - {
        "span_contrastive"
    }
    assert set(step_of(preset_of({f"enable_{name}": True for name in HEADS}, train=ONE), 8, padding_from=0).losses) == {"next_token"}
