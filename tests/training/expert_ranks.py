"""What two ranks do with experts, or with heads: run by test_expert_ranks and tests/auxiliary/test_ranks with a folder as the working directory,
never by a person."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from data_sources import Batch
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher
from tests.training.ranks import V, gradients_by_part, part_of, preset_of, rows

STEPS = 5


def of_two_words() -> Batch:
    """Rows of one word, again and again: the even ones of one, the odd ones of another. So all of a rank's tokens choose the same experts."""
    batch = rows()
    words = torch.where(batch.row % 2 == 0, 7, 11)[:, None].expand_as(batch.tokens)
    return dataclasses.replace(batch, tokens=words.contiguous())


def taught(preset: Preset, batch: Batch, ranks: Ranks) -> dict[str, Any]:
    """Stats of some steps, and what the learner is after them."""
    torch.manual_seed(3)
    learner = Learner(build_model(preset, V), build_heads(preset, pad=0))
    teacher = Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights)
    steps = [teacher.step(batch, 1, 0, 100_000) for _ in range(STEPS)]
    unused = [name for name, parameter in learner.named_parameters() if "exp_avg" not in teacher.optimizer.moments(parameter)]
    losses = [step.losses for step in steps]
    return {"sound": all(step.sound for step in steps), "stats": [step.stats for step in steps], "losses": losses, "unused": unused} | {
        "weights": {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    }


def main() -> None:
    folder = Path.cwd()
    preset = preset_of((folder / "preset.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    ranks = Ranks(preset.train)
    out: dict[str, Any] = gradients_by_part(preset, ranks)
    out["taught"] = taught(preset, part_of(of_two_words(), ranks.rank, ranks.size), ranks)
    torch.save(out, folder / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    sys.exit(main())
