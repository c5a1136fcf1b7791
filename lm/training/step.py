"""One optimizer step: read the step's rows in micro-batches that fit the memory, agree that it is sound, sum, clip, update.

Each micro-batch's losses are means over its scored tokens; weighted by its share of all scored tokens of all ranks, they add up
to the mean over the whole step, whatever the number of ranks and of micro-batches.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from data_sources import Batch
from lm.preset.switches import TrainConfig
from lm.training.distribution import Ranks
from lm.training.learner import Learner, weighted_sum
from lm.training.optimizer import learning_rate


class Step(NamedTuple):
    """What a step did, over all ranks."""

    sound: bool  # whether the weights were changed
    tokens: int  # real tokens read
    loss: float  # nats a token
    losses: dict[str, float]
    nats: list[float]  # by source
    read: list[float]  # tokens by source
    gradient_norm: float
    learning_rate: float


class TooLarge(Exception):
    """The model can't be trained on this machine. The message is one line."""


class Teacher:
    """Takes steps on one learner. Holds nothing that a snapshot must hold: how much fits the memory is the machine's."""

    def __init__(self, ranks: Ranks, learner: Learner, optimizer: torch.optim.Optimizer, config: TrainConfig, weights: Mapping[str, float]) -> None:
        self.ranks, self.optimizer, self.config, self.weights = ranks, optimizer, config, weights
        self.learner = ranks.wrapped(learner)
        self.parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self.micro_rows = config.per_gpu_batch_size

    def step(self, batch: Batch, num_sources: int, read: int, budget: int) -> Step:
        """Learn from this rank's rows of a step, when the run has read `read` of `budget` tokens."""
        tokens = int(self.ranks.summed([float(batch.valid)])[0])
        rate = learning_rate(self.config, (read + tokens) / budget)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        nats, losses = self._gradients_in_memory(batch, tokens, num_sources)
        self.ranks.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip).item()
        sums = self.ranks.summed([*nats, *losses.values()])
        loss = sum(sums[:num_sources]) / max(tokens, 1)
        sound = tokens > 0 and math.isfinite(norm) and all(map(math.isfinite, sums))
        if sound:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        by_name = dict(zip(losses, sums[2 * num_sources :], strict=True))
        return Step(sound, tokens, loss, by_name, sums[:num_sources], sums[num_sources : 2 * num_sources], norm, rate)

    def _gradients_in_memory(self, batch: Batch, tokens: int, num_sources: int) -> tuple[list[float], dict[str, float]]:
        """Gradients of all micro-batches; when a rank runs out of memory all of them halve their micro-batch and begin again."""
        while True:
            fits = True
            try:
                found = self._gradients(batch, tokens, num_sources)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if not self.ranks.highest([float(not fits)])[0]:
                return found
            if self.micro_rows == 1:  # said by all ranks together, so that none is left waiting
                raise TooLarge("a single row does not fit into memory: lower model.seq_length or model.hidden_size")
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_rows = max(1, self.micro_rows // 2)
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradients(self, batch: Batch, tokens: int, num_sources: int) -> tuple[list[float], dict[str, float]]:
        """Back-propagate this rank's rows. Sums of nats and of tokens by source, and each named loss's part of the mean."""
        by_source = torch.zeros(2, num_sources, dtype=torch.float64, device=self.ranks.device)
        parts: dict[str, Tensor] = {}
        for piece in batch.split(self.micro_rows):
            share = piece.valid / max(tokens, 1)
            piece = piece.to(self.ranks.device)
            with self.ranks.without_reduction(self.learner):
                learned = self.learner(piece)
                (weighted_sum(learned.losses, self.weights) * share).backward()
            for name, loss in learned.losses.items():
                parts[name] = parts.get(name, 0.0) + loss.detach() * share
            scored = piece.targets >= 0
            names = piece.source[scored]
            by_source[0].index_add_(0, names, learned.nll[scored].double())
            by_source[1].index_add_(0, names, torch.ones_like(names, dtype=torch.float64))
        return by_source.flatten().tolist(), {name: float(part) for name, part in parts.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory: on the host it says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
