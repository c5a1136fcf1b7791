"""Memory and speed of a training step over one row of 65,700 and of 657,000 tokens: python -m tests.benchmarks.long_context

The small sister of configs/03_valkyrie_long_context.json reads the row in chunks, forward and backward, with the state carried and gradients
through two chunks; then once with gradients through 32. Each in a process of its own: peak resident memory, and how much of it came
with the step.
"""

import json
import os
import subprocess
import sys
import time

import torch

from data_sources import Batch
from data_sources.packed import Rows
from data_sources.rewriting import NOT_SCORED
from lm.model import build_model
from lm.preset import Preset
from lm.training.carried import Carried
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher
from tests.benchmarks.measures import peak_bytes

CHUNK, VOCABULARY = 2048, 512
SHORT, LONG = 65_700, 657_000


def sister(tokens: int, chunks: int) -> Preset:
    """S5 and Longformer in turn; gradients through `chunks`, more than two as a long unroll."""
    unroll = {"long_unroll_every": 1, "long_unroll_chunks": chunks} if chunks > 2 else {}
    return Preset.model_validate(
        {
            "model": {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": tokens},
            "s5": {"enabled": True, "layers": "even"},
            "longformer": {"enabled": True, "layers": "odd", "window": 128, "global_tokens": 4},
            "train": {
                "per_gpu_batch_size": 1,
                "precision": "float32",
                "long_context": {"enabled": True, "context_length": LONG, "chunk_length": CHUNK, "backprop_chunks": 2, **unroll},
            },
            "data": {"sources": ["wikipedia"]},
        }
    )


def measure(tokens: int, chunks: int) -> dict[str, float]:
    """One step over a row of random tokens, one document, in this process."""
    preset = sister(tokens, chunks)
    torch.manual_seed(0)
    ranks, learner = Ranks(preset.train), Learner(build_model(preset, VOCABULARY))
    teacher = Teacher(ranks, learner, build_optimizer(learner, preset.train, ranks.precision), preset.train, {}, Carried(learner.model))
    teacher.step(_row(2 * CHUNK), 1, 0, 10**9)  # what is made once
    before, began = peak_bytes(), time.monotonic()
    step = teacher.step(_row(tokens), 1, 0, 10**9)
    assert step.sound and step.tokens == tokens
    return {"peak": peak_bytes(), "step": peak_bytes() - before, "tokens_per_second": tokens / (time.monotonic() - began)}


def _row(tokens: int) -> Batch:
    text = torch.randint(VOCABULARY, (1, tokens + 1))
    rows = Rows.blank([0], tokens, 0)
    rows.tokens[:], rows.targets[:], rows.source[:] = text[:, :-1].numpy(), text[:, 1:].numpy(), 0
    assert not (rows.targets == NOT_SCORED).any()
    return Batch.of(rows)


def apart(tokens: int, chunks: int) -> dict[str, float]:
    """`measure` in a fresh process, on one thread: two that wait for each other beside other work take many times as long."""
    command = [sys.executable, "-m", "tests.benchmarks.long_context", str(tokens), str(chunks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
        return
    short = apart(SHORT, 2)
    for tokens, chunks in ((SHORT, 2), (LONG, 2), (LONG, 32)):
        found = short if (tokens, chunks) == (SHORT, 2) else apart(tokens, chunks)
        print(
            f"{tokens:>9,} tokens, gradients through {chunks:>2} chunks: peak {found['peak'] / 1e6:.0f} MB ({found['peak'] / short['peak']:.3f}), "
            f"{found['step'] / 1e6:+.0f} MB with the step, {found['tokens_per_second']:,.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
