"""Models in training for measurements: taught by the program's own steps, without what else belongs to a run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from data_sources import Batch, open_stream
from data_sources.lengths import RowLengths
from data_sources.stream import Options
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset
from lm.training.averaging import Average
from lm.training.distribution import Ranks, chosen_precision
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher

BUDGET_WITHOUT_END = 10**9


def teacher_of(
    preset: Preset, vocab_size: int, like: Learner | None = None, pad: int = 0, first: Callable[[nn.Module], None] = lambda model: None
) -> tuple[Teacher, Learner]:
    """A model with its heads, drawn from the preset's seed, and what takes its steps and averages its weights.

    like: whose first weights it has wherever it can. pad: the tokenizer's padding. first: what else becomes of the model's first weights.
    """
    torch.manual_seed(preset.train.seed)
    ranks = Ranks(preset.train)
    learner = alike(Learner(build_model(preset, vocab_size), build_heads(preset, pad)), like)
    first(learner.model)
    learner.to(ranks.device)
    average = Average(learner, preset.train.average_tokens) if preset.train.average_tokens else None
    return Teacher(ranks, learner, build_optimizer(learner, preset.train, ranks.precision), preset.train, preset.loss_weights, average=average), learner


def in_use(teacher: Teacher) -> contextlib.AbstractContextManager[None]:
    """In here the model computes with what evaluation and chat use: the average of its weights, where there is one."""
    return teacher.average.in_place() if teacher.average else contextlib.nullcontext()


def alike(learner: Learner, first: Learner | None) -> Learner:
    """`learner` with the first weights of `first` wherever name and shape agree: others alone may make as large a difference as what is measured."""
    own = learner.state_dict()
    same = {name: value for name, value in (first.state_dict() if first else {}).items() if name in own and own[name].shape == value.shape}
    learner.load_state_dict(same, strict=False)
    return learner


def on_what(preset: Preset) -> dict[str, str]:
    """What of the machine a result depends on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "precision": chosen_precision(preset.train.precision, device == "cuda")}


def next_token(learner: Learner, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the batch in nats, on the learner's device."""
    return learner([batch.to(learner.model.embedding.weight.device)]).losses["next_token"]


def batches_of(preset: Preset, tokenizer: Any) -> Iterator[Batch]:
    """The steps' rows, in the order of the preset's seed, as many and as long as its curricula say."""
    train, last = preset.train, (preset.model.seq_length, preset.step_rows)
    lengths = [(stage.until_tokens, stage.seq_length) for stage in train.seq_length_curriculum]
    rows = [(stage.until_tokens, stage.rows) for stage in train.batch_curriculum]
    options = Options(lengths=RowLengths.of(lengths, rows, last))
    with open_stream(preset.data, tokenizer, *last, seed=train.seed, options=options) as stream:
        for batch, _ in stream:
            yield batch


def held_out(preset: Preset, tokenizer: Any, rows: int) -> list[Batch]:
    """At least `rows` rows of text that is never trained on."""
    with open_stream(preset.data, tokenizer, preset.model.seq_length, preset.step_rows, part="held_out") as stream:
        return [next(stream)[0] for _ in range(-(-rows // preset.step_rows))]
