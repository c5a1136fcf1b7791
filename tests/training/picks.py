"""What two ranks do, for test_conditional: one of them picks nothing. Run by it with a folder as the working directory."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_sources import Batch
from lm.model import build_model
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Cut, Teacher, Total
from tests.training.ranks import V, part_of, rows

STEPS = 3
SECTIONS: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 16, "ffn_size": 8},
    "train": {"per_gpu_batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
    "data": {"sources": [{"type": "files", "path": "nowhere"}]},
    "colt5": {"enabled": True, "router_type": "threshold"},
    "colt5_attention": {"enabled": True, "router_type": "threshold", "window": 3, "layers": [0]},
    "mixture_of_depths": {"enabled": True, "router_type": "threshold", "layers": [1]},
}


class Taught(NamedTuple):
    """What some rows came to."""

    own: dict[str, Tensor | None]  # gradients of this process, before they are added up
    picked: dict[str, float]  # tokens, by this process
    summed: dict[str, Tensor]
    weights: dict[str, Tensor]  # after some steps


def batch(unpicked: slice) -> Batch:
    """Eight rows; those of `unpicked` hold no token that a router picks."""
    found = rows()
    tokens = found.tokens % (V // 2)
    tokens[unpicked] += V // 2
    return replace(found, tokens=tokens)


def learner_of(preset: Preset) -> Learner:
    """Random, but for what is picked: the first half of the words, whatever was written beside them."""
    learner = Learner(build_model(preset, V))
    torch.manual_seed(9)
    for name, parameter in learner.named_parameters():
        parameter.data.normal_(std=0.1)
        if "norm" in name:
            parameter.data.fill_(1)
        if "router.score" in name:
            parameter.data[0, 0] = 8
    learner.model.embedding.weight.data[:, 0] = torch.where(torch.arange(V) < V // 2, 3.0, -3.0)
    return learner


def taught(preset: Preset, mine: Batch, micro_rows: int, ranks: Ranks, scored: int) -> Taught:
    learner = learner_of(preset)
    teacher = Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights)
    teacher.micro_rows = micro_rows
    found = teacher._gradients_in_memory(mine, Total(scored, scored), 1, Cut())
    own = {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in learner.named_parameters()}
    ranks.sum_gradients(teacher.parameters)
    summed = {name: parameter.grad.clone() for name, parameter in learner.named_parameters()}
    teacher.optimizer.zero_grad(set_to_none=True)
    for _ in range(STEPS):
        assert teacher.step(mine, 1, 100, 1000).sound
    weights = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    return Taught(own, {name: float(value[0]) for name, value in found.stats.items() if name.endswith("share")}, summed, weights)


def main() -> None:
    torch.set_num_threads(1)
    preset = Preset.model_validate(SECTIONS)
    ranks = Ranks(preset.train)
    out = {}
    for name, unpicked in {"one picks nothing": slice(1, None, 2), "none picks": slice(None), "both pick": slice(0)}.items():
        whole = batch(unpicked)
        for micro_rows in (4, 1):
            out[f"{name}, {micro_rows}"] = taught(preset, part_of(whole, ranks.rank, ranks.size), micro_rows, ranks, whole.valid)._asdict()
    torch.save(out, Path.cwd() / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    sys.exit(main())
