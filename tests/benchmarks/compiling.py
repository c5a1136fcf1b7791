"""What compiled parts (lm/training/compiling.py) do to a training step of the default preset, and what they cost at first.

One model, the same batches with and without them in turns, in one process; the median of the paired ratios counts.
`python -m tests.benchmarks.compiling`
"""

import contextlib
import statistics

import torch

from data_sources import Batch
from lm.model import build_model
from lm.preset import load_preset
from lm.training.compiling import Compiled
from lm.training.distribution import chosen_precision
from lm.training.learner import Learner
from tests.benchmarks.peers import stepper
from tests.benchmarks.text import local_batches
from tests.benchmarks.training_step import timed

STEPS = 12


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = load_preset("configs/00_best_general.json")
    batches, tokenizer = local_batches(preset, STEPS + 2)
    batches = [batch.to(device) for batch in batches]
    learner = Learner(build_model(preset, len(tokenizer))).to(device)
    compiled, step = Compiled(learner.model, is_on=True), stepper(learner, lambda batch: learner([batch]).losses["next_token"], 1e-3)

    def seconds(batch: Batch, with_parts: bool) -> float:
        with compiled.in_place() if with_parts else contextlib.nullcontext():
            return timed(step, batch, device)

    precision = chosen_precision("auto", device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        first, second = (seconds(batch, True) for batch in batches[:2])
        seconds(batches[0], False)
        pairs = [(seconds(batch, True), seconds(batch, False)) for batch in batches[2:]]
    ratios = sorted(plain / with_parts for with_parts, plain in pairs)
    tokens = batches[0].tokens.numel()
    paces = [tokens / statistics.median(column) for column in zip(*pairs, strict=True)]
    print(
        f"{device.type}, {precision}: compiled {paces[0]:,.0f} tokens/s, plain {paces[1]:,.0f}; the first steps took {first:.1f} and {second:.1f} s; ", end=""
    )
    print(f"ratio median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}, over {len(ratios)} pairs of {tokens} tokens")


if __name__ == "__main__":
    main()
