"""Held-out bits per byte of the default preset after 2M tokens, against transformers' Llama of the same shape on the same batches.

Reads the preset's own mix when HF_ENDPOINT leads to a Hub, else installed documentation. Both models take every batch in turn, each
with its learning rate, warmed up over 100 steps and lowered over the last fifth. Two seeds of first weights.
`python -m tests.benchmarks.learning`
"""

import math
import os
import statistics
from collections import Counter
from typing import Any

import torch
from torch import nn

from data_sources import Batch, open_stream
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.model import build_model
from lm.preset import load_preset
from lm.training.learner import Learner
from tests.benchmarks.peers import llama_loss, llama_of, stepper
from tests.benchmarks.text import LOCAL

TOKENS = int(os.environ.get("LEARNING_TOKENS", 2_000_000))
SEEDS = tuple(map(int, os.environ.get("LEARNING_SEEDS", "0 1").split()))
OURS_RATE = tuple(map(float, os.environ.get("LEARNING_RATES", "2e-3").split()))
LLAMA_RATE = tuple(map(float, os.environ.get("LEARNING_LLAMA_RATES", "1e-3 2e-3").split()))
HELD_OUT_ROWS = 64
WARMUP_STEPS, DECAY = 50, 0.2


def factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS, 0.1 + 0.9 * (steps - step) / (DECAY * steps))


@torch.no_grad()
def bits_per_byte(loss: Any, module: nn.Module, batches: list[Batch], sizes: torch.Tensor) -> tuple[float, float]:
    """(bits per byte, nats a token) of the held-out batches."""
    module.eval()
    nats = sum(float(loss(batch)) * batch.valid for batch in batches)
    module.train()
    written = sum(int(sizes[batch.targets[batch.targets >= 0]].sum()) for batch in batches)
    return nats / math.log(2) / written, nats / sum(batch.valid for batch in batches)


def unigram_entropy(batches: list[Batch]) -> float:
    """Nats a token of a model that knows how often each token occurs in this very text, and nothing else."""
    counts = Counter(int(token) for batch in batches for token in batch.targets[batch.targets >= 0])
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def main() -> None:
    preset = load_preset("configs/00_best_general.json")
    data = preset.data if os.environ.get("HF_ENDPOINT") else LOCAL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(data, seed=0)
    sizes = torch.tensor(token_bytes(tokenizer))
    rows, steps = preset.step_rows, TOKENS // (preset.step_rows * preset.model.seq_length)
    with open_stream(data, tokenizer, preset.model.seq_length, rows, part="held_out") as stream:
        held = [batch.to(device) for batch, _ in (next(stream) for _ in range(HELD_OUT_ROWS // rows))]
    print(
        f"{device.type}, {[source.name for source in data.sources]}; held out: {sum(b.valid for b in held)} tokens, unigram entropy {unigram_entropy(held):.3f}"
    )
    results: dict[str, list[float]] = {}
    for seed in SEEDS:
        contestants = []
        for rate in OURS_RATE:
            torch.manual_seed(seed)
            learner = Learner(build_model(preset, len(tokenizer))).to(device)
            contestants.append((f"Perennial {rate:g}", learner, (lambda m: lambda batch: m([batch]).losses["next_token"])(learner), rate))
        for rate in LLAMA_RATE:
            torch.manual_seed(seed)
            llama = llama_of(preset, len(tokenizer)).to(device)
            contestants.append((f"Llama {rate:g}", llama, (lambda m: lambda batch: llama_loss(m, batch))(llama), rate))
        steppers = [stepper(module, loss, rate) for _, module, loss, rate in contestants]
        with open_stream(data, tokenizer, preset.model.seq_length, rows) as stream:
            for index in range(steps):
                batch = next(stream)[0].to(device)
                losses = [step(batch, factor(index, steps)) for step in steppers]
                if (index + 1) % max(1, steps // 8) == 0:
                    print(f"seed {seed} {(index + 1) * rows * preset.model.seq_length:,}: ", end="")
                    for (name, module, loss, _), last in zip(contestants, losses, strict=True):
                        bits, nats = bits_per_byte(loss, module, held, sizes)
                        print(f"{name}: {bits:.4f} bits/byte, {nats:.3f} nats (train {last:.3f}); ", end="")
                        if index + 1 > steps - max(1, steps // 8):
                            results.setdefault(name, []).append(bits)
                    print(flush=True)
    for name, bits in results.items():
        print(f"{name}: {statistics.mean(bits):.4f} bits per byte, from {min(bits):.4f} to {max(bits):.4f} over {len(bits)} seeds")


if __name__ == "__main__":
    main()
