"""Tokens a second of a training step of the default preset, against transformers' Llama of the same shape.

Same batches, same dtype, same optimizer, in turns in one process; the medians and the median of the paired ratios count.
`python -m tests.benchmarks.training_step`
"""

import statistics
import time
from collections.abc import Callable

import torch

from data_sources import Batch
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training.distribution import chosen_precision
from lm.training.learner import Learner
from tests.benchmarks.peers import llama_of, peer_loss, stepper
from tests.benchmarks.text import local_batches

STEPS = 12


def timed(step: Callable[[Batch], float], batch: Batch, device: torch.device) -> float:
    began = time.perf_counter()
    step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset: Preset = load_preset("configs/00_best_general.json")
    batches, tokenizer = local_batches(preset, STEPS + 2)
    batches = [batch.to(device) for batch in batches]
    learner = Learner(build_model(preset, len(tokenizer))).to(device)
    llama = llama_of(preset, len(tokenizer)).to(device)
    for precision in sorted({"float32", chosen_precision("auto", device.type == "cuda")}, reverse=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            ours = stepper(learner, lambda batch: learner([batch]).losses["next_token"], 1e-3)
            theirs = stepper(llama, lambda batch: peer_loss(llama, batch), 1e-3)
            times = [(timed(ours, batch, device), timed(theirs, batch, device)) for batch in batches][2:]
        tokens = batches[0].tokens.numel()
        mine, peer = (tokens / statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(b / a for a, b in times)
        print(f"{device.type} {precision}: ours {mine:,.0f} tokens/s, Llama {peer:,.0f} tokens/s; ", end="")
        print(f"ratio median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}, over {len(ratios)} pairs of {tokens} tokens")


if __name__ == "__main__":
    main()
