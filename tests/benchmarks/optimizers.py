"""AdamW and Muon by learning rate and width: held-out bits per byte after the same tokens, and the time it took: python -m tests.benchmarks.optimizers

All models of a width take every batch in turn, from the same first weights. OPTIMIZER_TOKENS (1,000,000), OPTIMIZER_WIDTHS ("64 128"),
OPTIMIZER_RATES ("1e-3 2e-3 4e-3 8e-3"), OPTIMIZER_SEEDS ("0 1") and OPTIMIZER_ROWS (8, of 256 tokens) say how much of it.
Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import os
import statistics
import time
from typing import NamedTuple

import torch
from torch import nn

from data_sources import Batch, open_stream
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training.learner import Learner
from lm.training.optimizer import Optimizer, build_optimizer
from tests.benchmarks.measures import bits_per_byte, factor
from tests.benchmarks.text import LOCAL

TOKENS, ROWS = int(os.environ.get("OPTIMIZER_TOKENS", 1_000_000)), int(os.environ.get("OPTIMIZER_ROWS", 8))
WIDTHS = tuple(map(int, os.environ.get("OPTIMIZER_WIDTHS", "64 128").split()))
RATES = tuple(map(float, os.environ.get("OPTIMIZER_RATES", "1e-3 2e-3 4e-3 8e-3").split()))
SEEDS = tuple(map(int, os.environ.get("OPTIMIZER_SEEDS", "0 1").split()))
LENGTH, HELD_OUT_BATCHES, VOCABULARY = 256, 16, 2048


class Contestant(NamedTuple):
    """A model that learns by one optimizer at one rate."""

    name: str
    rate: float
    learner: Learner
    optimizer: Optimizer

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.learner([batch]).losses["next_token"]

    def step(self, batch: Batch, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * group["scale"]
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def contestants(width: int, vocab_size: int, seed: int, device: torch.device) -> list[Contestant]:
    model = {"hidden_size": width, "num_layers": 4, "num_heads": width // 16, "seq_length": LENGTH}
    found = []
    for name in ("adamw", "muon"):
        for rate in RATES:
            train = {"optimizer": name, "learning_rate": rate}
            preset = Preset.model_validate({"model": model, "train": train, "data": {"sources": ["wikipedia"]}})
            torch.manual_seed(seed)
            learner = Learner(build_model(preset, vocab_size)).to(device)
            found.append(Contestant(name, rate, learner, build_optimizer(learner, preset.train)))
    return found


def main() -> None:
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(data.model_copy(update={"vocab_size": VOCABULARY}), seed=0)
    sizes, steps = torch.tensor(token_bytes(tokenizer)), TOKENS // (ROWS * LENGTH)
    with open_stream(data, tokenizer, LENGTH, 8, part="held_out") as stream:
        held = [batch.to(device) for batch, _ in (next(stream) for _ in range(HELD_OUT_BATCHES))]
    print(f"{device.type}; {[source.name for source in data.sources]}; held out: {sum(b.valid for b in held):,} tokens; steps of {ROWS * LENGTH:,} tokens")
    for width in WIDTHS:
        bits: dict[tuple[str, float], list[float]] = {}
        seconds = dict.fromkeys(("adamw", "muon"), 0.0)
        for seed in SEEDS:
            taking = contestants(width, len(tokenizer), seed, device)
            with open_stream(data, tokenizer, LENGTH, ROWS, seed=seed) as stream:
                for index in range(steps):
                    batch = next(stream)[0].to(device)
                    for one in taking:
                        began = time.perf_counter()
                        one.step(batch, factor(index, steps))
                        if device.type == "cuda":
                            torch.cuda.synchronize()
                        seconds[one.name] += time.perf_counter() - began
            for one in taking:
                bits.setdefault((one.name, one.rate), []).append(bits_per_byte(one.loss, one.learner, held, sizes)[0])
            print(f"width {width}, seed {seed}: " + "; ".join(f"{name} {rate:g}: {found[-1]:.4f}" for (name, rate), found in bits.items()), flush=True)
        for (name, rate), found in bits.items():
            print(f"width {width}, {name} {rate:g}: {statistics.mean(found):.4f} bits per byte ({', '.join(f'{each:.4f}' for each in found)})")
        print(f"width {width}: a step of muon takes {seconds['muon'] / seconds['adamw']:.2f} times that of adamw", flush=True)


if __name__ == "__main__":
    main()
