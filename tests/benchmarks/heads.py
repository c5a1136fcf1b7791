"""What each auxiliary head costs and what it gains: python -m tests.benchmarks.heads [in an environment with HEADS_PARTS=cost,gain]

cost: time and highest memory of a training step with each head alone, and with all, against none. They take the same batch in turns, and the
median of the paired ratios counts; memory is that of a process of its own on the CPU, and torch's own count on a GPU.
gain: held-out bits per byte of the default preset in a small size with each head alone against none: after equal tokens, and after equal
time, for which the model without heads also reads LONGER times as many tokens, and what it would have come to is read off between them. Every
run reads the same batches, its learning rate falls at its own end, and first weights differ by seed only.

Results of `gain` are kept, a JSON line each, in HEADS_RESULTS (heads.jsonl) and never measured twice: what was cut off goes on. HEADS_TOKENS
(500,000), HEADS_SEEDS ("0 1 2"), HEADS_NAMES (all; "" for none), HEADS_SIZE (96) and HEADS_RATE (the default preset's learning rate, as its optimizer
is) say how much of it. Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

from data_sources import Batch
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.auxiliary.heads import HEADS
from lm.preset import Preset, load_preset
from lm.training.trial import random_batch
from tests.benchmarks.measures import Results, apart, bits_per_byte, peak_bytes, timed
from tests.benchmarks.teaching import BUDGET_WITHOUT_END, batches_of, held_out, next_token, teacher_of
from tests.benchmarks.text import chosen_data

PARTS = os.environ.get("HEADS_PARTS", "cost,gain").split(",")
TOKENS = int(os.environ.get("HEADS_TOKENS", 500_000))
SEEDS = tuple(map(int, os.environ.get("HEADS_SEEDS", "0 1 2").split()))
NAMES = os.environ["HEADS_NAMES"].split() if "HEADS_NAMES" in os.environ else [*HEADS, "all"]
SIZE = int(os.environ.get("HEADS_SIZE", 96))
DEFAULT = load_preset("configs/00_best_general.json")
RATE = float(os.environ.get("HEADS_RATE", DEFAULT.train.learning_rate))
RESULTS = Path(os.environ.get("HEADS_RESULTS", "heads.jsonl"))
NONE, LONGER = "none", (1.2, 1.6)
ROWS, LENGTH, VOCABULARY, HELD_OUT_BATCHES, PAIRS = 8, 256, 2048, 16, 7


def preset_of(name: str, seed: int = 0) -> Preset:
    """The preset with the heads that `name` names: none, all, or some with blanks between."""
    on = list(HEADS) if name == "all" else [] if name == NONE else name.split()
    model = {"hidden_size": SIZE, "num_layers": 4, "num_heads": 4, "seq_length": LENGTH}
    train = {"per_gpu_batch_size": ROWS, "seed": seed, "optimizer": DEFAULT.train.optimizer, "learning_rate": RATE, "warmup_share": 0.05}
    switches = {f"enable_{head}": True for head in on}
    data = chosen_data(DEFAULT).model_copy(update={"vocab_size": VOCABULARY})
    return Preset.model_validate({"name": name, "model": model, "train": train, "auxiliary": switches, "data": data.model_dump(mode="json")})


# Cost.


def cost() -> None:
    names = [NONE, *HEADS, "all"]
    preset = preset_of(NONE)
    tokenizer = build_tokenizer(preset.data, seed=0)
    batch = next(batches_of(preset, tokenizer))
    teachers = {name: teacher_of(preset_of(name), len(tokenizer), pad=tokenizer.pad_token_id)[0] for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(PAIRS + 1):
        for name, teacher in teachers.items():
            seconds = timed(lambda teacher=teacher: teacher.step(batch, len(preset.data.sources), 0, BUDGET_WITHOUT_END))
            if pair:  # the first warms up
                taken[name].append(seconds)
    least = {name: memory_of(name) for name in names}
    print(f"a step of {ROWS} x {LENGTH} tokens, hidden {SIZE}, 4 layers: {1000 * statistics.median(taken[NONE]):.0f} ms, {least[NONE] / 2**20:.0f} MiB")
    for name in names[1:]:
        ratios = sorted(ours / none for ours, none in zip(taken[name], taken[NONE], strict=True))
        more = (least[name] - least[NONE]) / 2**20
        print(f"{name}: {statistics.median(ratios):.2f} times the time ({ratios[0]:.2f} to {ratios[-1]:.2f}), {more:+.0f} MiB", flush=True)


def memory_of(name: str) -> int:
    """Bytes at the highest, of a process that takes three steps."""
    return apart("tests.benchmarks.heads", name)


def tell_memory(name: str) -> None:
    """What such a process does: on random tokens, since text would need a tokenizer."""
    teacher, _ = teacher_of(preset_of(name), VOCABULARY)
    batch = random_batch(ROWS, LENGTH, VOCABULARY)
    for step in range(3):
        teacher.step(batch, 1, 0, BUDGET_WITHOUT_END, step)
    print(peak_bytes())


# Gain.


def gain() -> None:
    results, tokenizer = Results(RESULTS), build_tokenizer(preset_of(NONE).data, seed=0)
    sizes = torch.tensor(token_bytes(tokenizer))
    held = held_out(preset_of(NONE), tokenizer, HELD_OUT_BATCHES * ROWS)
    budgets = [TOKENS, *(int(times * TOKENS) for times in LONGER)]

    def found(name: str, seed: int, tokens: int = TOKENS) -> dict[str, float]:
        asked = {"name": name, "seed": seed, "tokens": tokens, "size": SIZE, "rate": RATE, "optimizer": DEFAULT.train.optimizer}
        return results.of(asked, lambda: run(name, seed, tokens, tokenizer, held, sizes))

    for seed in SEEDS:
        for name, tokens in [*((NONE, tokens) for tokens in budgets), *((name, TOKENS) for name in NAMES)]:
            print(f"{name}, seed {seed}, {tokens:,} tokens: {found(name, seed, tokens)}", flush=True)
    for name in NAMES:
        slower = statistics.median(found(name, seed)["seconds"] / found(NONE, seed)["seconds"] for seed in SEEDS)
        tokens = [found(name, seed)["bits"] - found(NONE, seed)["bits"] for seed in SEEDS]
        hours = [found(name, seed)["bits"] - at_time(slower, [found(NONE, seed, budget)["bits"] for budget in budgets]) for seed in SEEDS]
        print(f"{name}: after equal tokens {spread(tokens)}, after equal time {spread(hours)} bits per byte, {slower:.2f} times the time")
    bits = [found(NONE, seed)["bits"] for seed in SEEDS]
    print(f"none: {statistics.mean(bits):.4f} bits per byte ({min(bits):.4f} to {max(bits):.4f}) after {TOKENS:,} tokens, {len(SEEDS)} seeds")


def at_time(slower: float, bits: list[float]) -> float:
    """What the model without heads comes to in `slower` times the time, by its bits after 1 and LONGER times the tokens."""
    return float(numpy.interp(slower, [1.0, *LONGER], bits))


def spread(differences: list[float]) -> str:
    return f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"


def run(name: str, seed: int, tokens: int, tokenizer: Any, held: list[Batch], sizes: torch.Tensor) -> dict[str, float]:
    """Held-out bits per byte, and seconds of the steps."""
    preset = preset_of(name, seed)
    teacher, learner = teacher_of(preset, len(tokenizer), pad=tokenizer.pad_token_id)
    read = steps = 0
    seconds, batches = 0.0, batches_of(preset, tokenizer)
    while read < tokens:
        batch = next(batches)
        seconds += timed(lambda batch=batch, read=read, steps=steps: teacher.step(batch, len(preset.data.sources), read, tokens, steps))
        read, steps = read + int((batch.source >= 0).sum()), steps + 1
    learner.heads = torch.nn.ModuleDict()  # what is measured is the model
    bits, _ = bits_per_byte(lambda batch: next_token(learner, batch), learner, held, sizes)
    return {"bits": bits, "seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1:]:
        tell_memory(sys.argv[1])
    else:
        for part in PARTS:
            {"cost": cost, "gain": gain}[part]()
