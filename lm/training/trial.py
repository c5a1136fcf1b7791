"""A few steps on random tokens, timed before a run: a preset and the size of its vocabulary as JSON on stdin, what came of it as JSON on stdout.

    python -m lm.training.trial < {"preset": {...}, "vocab_size": 8192}

It is a process of its own, so that all of its memory is given back, and what the system ends for taking too much is not the menu. The rows are as many
and as long as a step of the preset has once its curricula are through. What waits for text is not in it: sources, objectives that rewrite them, and a
memory of what was read.
"""

import json
import statistics
import sys
import time
from typing import NamedTuple

import torch

from data_sources import Batch
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import RUN_TOKENS, Preset
from lm.preset.counting import operations_per_token
from lm.training.averaging import Average
from lm.training.carried import Carried
from lm.training.distribution import Ranks, device_in_words, is_out_of_memory
from lm.training.forecast import duration_told, peak_products, too_large
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher, TooLarge

WARM, TIMED = 2, 3  # steps; the first ones make moments, and compile
NO_MEMORY = "the memory that is free now is too little for a step: close other programs, or lower model.hidden_size"


class Trial(NamedTuple):
    """What came of it."""

    text: str  # a line
    tokens_per_second: float | None = None  # None where a step can't be taken
    devices: str = ""
    device_share: float | None = None  # of what the device can multiply
    reading_bytes: int | None = None  # that the rows which are read at once take


def random_batch(rows: int, length: int, vocab_size: int) -> Batch:
    """Random tokens, for what does not depend on the text, and should not need a tokenizer."""
    tokens = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    restart, number = torch.zeros_like(tokens, dtype=torch.bool), torch.arange(rows)
    edges = torch.arange(rows + 1, dtype=torch.int32) * length
    return Batch(tokens, tokens.roll(-1, 1), restart, torch.zeros_like(tokens), number, number, edges, tokens.numel(), 0, last=False)


def tried(preset: Preset, vocab_size: int) -> Trial:
    """What a run of `preset` on one device of this machine will ask and take."""
    ranks = Ranks(preset.train)
    if reason := too_large(preset, vocab_size, ranks.device):
        return Trial(reason)
    try:
        return _tried(preset, vocab_size, ranks)
    except TooLarge as error:
        return Trial(str(error))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Trial(NO_MEMORY)


def _tried(preset: Preset, vocab_size: int, ranks: Ranks) -> Trial:
    train, length = preset.train, preset.model.seq_length
    learner = Learner(build_model(preset, vocab_size), build_heads(preset, pad=0)).to(ranks.device)
    carried = Carried(learner.model) if train.long_context.enabled else None
    average = Average(learner, train.average_tokens) if train.average_tokens else None
    optimizer = build_optimizer(learner, train, ranks.precision)
    teacher = Teacher(ranks, learner, optimizer, train, preset.loss_weights, carried, preset.auxiliary.share_every, average)
    batch, sources = random_batch(preset.step_rows, length, vocab_size), len(preset.data.sources)
    asked, need = teacher.micro_rows, teacher.fit_memory(batch)
    seconds = []
    for number in range(WARM + TIMED):
        began = time.perf_counter()
        tokens = teacher.step(batch, sources, 0, RUN_TOKENS, number).tokens  # reads numbers of the step, and so waits for the device
        seconds.append(time.perf_counter() - began)
    pace = tokens / statistics.median(seconds[WARM:])
    told = duration_told(RUN_TOKENS, pace, operations_per_token(preset, vocab_size), peak_products(ranks.device, ranks.precision))
    text = f"{told['text']}; {need.told(teacher.micro_rows, asked, length)['text']}"
    return Trial(text, pace, device_in_words(ranks), told["device_share"], teacher.micro_rows * need.row)


def main() -> None:
    asked = json.load(sys.stdin)
    print(json.dumps(tried(Preset.model_validate(asked["preset"]), asked["vocab_size"])._asdict()))


if __name__ == "__main__":
    main()
