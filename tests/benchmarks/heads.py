"""What each auxiliary head costs and what it gains: python -m tests.benchmarks.heads [in an environment with HEADS_PARTS=cost,gain]

cost: time and highest memory of a training step with each head alone, and with all, against none. They take the same batch in turns, and the
median of the paired ratios counts; memory is that of a process of its own on the CPU, and torch's own count on a GPU.
gain: held-out bits per byte of the default preset in a small size with each head alone against none: after equal tokens, and after equal
time, which is that of the run without heads. Every run reads the same batches; first weights differ by seed only.

Results of `gain` are kept, a JSON line each, in HEADS_RESULTS (heads.jsonl) and never measured twice: what was cut off goes on. HEADS_TOKENS
(300,000), HEADS_SEEDS ("0 1 2"), HEADS_NAMES (all) and HEADS_SIZE (96) say how much of it. Text: the Hub that HF_ENDPOINT leads to, else
installed documentation.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_sources import Batch, open_stream
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.auxiliary.heads import HEADS, build_heads
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher
from tests.benchmarks.learning import bits_per_byte
from tests.benchmarks.text import LOCAL

PARTS = os.environ.get("HEADS_PARTS", "cost,gain").split(",")
TOKENS = int(os.environ.get("HEADS_TOKENS", 300_000))
SEEDS = tuple(map(int, os.environ.get("HEADS_SEEDS", "0 1 2").split()))
NAMES = os.environ["HEADS_NAMES"].split() if "HEADS_NAMES" in os.environ else [*HEADS, "value dynamics", "all"]
SIZE = int(os.environ.get("HEADS_SIZE", 96))
RESULTS = Path(os.environ.get("HEADS_RESULTS", "heads.jsonl"))
NONE, ROWS, LENGTH, VOCABULARY, HELD_OUT_BATCHES, PAIRS, CHECKS = "none", 8, 256, 2048, 16, 7, 20
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def preset_of(name: str, seed: int = 0) -> Preset:
    """The preset with the heads that `name` names: none, all, or some with blanks between."""
    on = list(HEADS) if name == "all" else [] if name == NONE else name.split()
    model = {"hidden_size": SIZE, "num_layers": 4, "num_heads": 4, "seq_length": LENGTH}
    train = {"per_gpu_batch_size": ROWS, "seed": seed, "learning_rate": 4e-3, "warmup_share": 0.05}
    switches = {f"enable_{head}": True for head in on}
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    data = data.model_copy(update={"vocab_size": VOCABULARY})
    return Preset.model_validate({"name": name, "model": model, "train": train, "auxiliary": switches, "data": data.model_dump(mode="json")})


def teacher_of(preset: Preset, vocab_size: int, pad: int = 0) -> tuple[Teacher, Learner]:
    torch.manual_seed(preset.train.seed)
    ranks = Ranks(preset.train)
    learner = Learner(build_model(preset, vocab_size), build_heads(preset, pad)).to(ranks.device)
    return Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights), learner


def batches_of(preset: Preset, tokenizer: Any) -> Iterator[Batch]:
    with open_stream(preset.data, tokenizer, LENGTH, ROWS, seed=preset.train.seed) as stream:
        for batch, _ in stream:
            yield batch


# Cost.


def cost() -> None:
    names = [NONE, *HEADS, "all"]
    preset = preset_of(NONE)
    tokenizer = build_tokenizer(preset.data, seed=0)
    batch = next(batches_of(preset, tokenizer))
    teachers = {name: teacher_of(preset_of(name), len(tokenizer), tokenizer.pad_token_id)[0] for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(PAIRS + 1):
        for name, teacher in teachers.items():
            began = clock()
            teacher.step(batch, len(preset.data.sources), 0, 10**9)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if pair:  # the first warms up
                taken[name].append(clock() - began)
    least = {name: memory_of(name) for name in names}
    print(f"a step of {ROWS} x {LENGTH} tokens, hidden {SIZE}, 4 layers: {1000 * statistics.median(taken[NONE]):.0f} ms, {least[NONE] / 2**20:.0f} MiB")
    for name in names[1:]:
        ratios = sorted(ours / none for ours, none in zip(taken[name], taken[NONE], strict=True))
        more = (least[name] - least[NONE]) / 2**20
        print(f"{name}: {statistics.median(ratios):.2f} times the time ({ratios[0]:.2f} to {ratios[-1]:.2f}), {more:+.0f} MiB", flush=True)


def memory_of(name: str) -> int:
    """Bytes at the highest, of a process that takes three steps."""
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.heads", name], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def tell_memory(name: str) -> None:
    """What such a process does: on random tokens, since text would need a tokenizer."""
    preset = preset_of(name)
    teacher, _ = teacher_of(preset, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    restart, number = torch.zeros_like(tokens, dtype=torch.bool), torch.arange(ROWS)
    edges = torch.arange(ROWS + 1, dtype=torch.int32) * LENGTH
    batch = Batch(tokens, tokens.roll(-1, 1), restart, torch.zeros_like(tokens), number, number, edges, tokens.numel(), 0, last=False)
    for step in range(3):
        teacher.step(batch, 1, 0, 10**9, step)
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# Gain.


def gain() -> None:
    known = {(line["name"], line["seed"]): line for line in map(json.loads, RESULTS.read_text().splitlines() if RESULTS.exists() else []) if is_of_now(line)}
    tokenizer = build_tokenizer(preset_of(NONE).data, seed=0)
    sizes = torch.tensor(token_bytes(tokenizer))
    with open_stream(preset_of(NONE).data, tokenizer, LENGTH, ROWS, part="held_out") as stream:
        held = [batch for batch, _ in (next(stream) for _ in range(HELD_OUT_BATCHES))]
    for seed in SEEDS:
        for name in [NONE, *NAMES]:
            if (name, seed) not in known:
                line = measured(name, seed, tokenizer, held, sizes, known.get((NONE, seed)))
                known[name, seed] = line
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    for name in NAMES:
        pairs = [(known[name, seed], known[NONE, seed]) for seed in SEEDS]
        tokens = [ours["bits"] - none["bits"] for ours, none in pairs]
        hours = [ours["bits_at_time"] - none["bits"] for ours, none in pairs]
        slower = statistics.median(ours["seconds"] / none["seconds"] for ours, none in pairs)
        print(f"{name}: after equal tokens {spread(tokens)}, after equal time {spread(hours)} bits per byte, {slower:.2f} times the time")
    bits = [known[NONE, seed]["bits"] for seed in SEEDS]
    print(f"none: {statistics.mean(bits):.4f} bits per byte ({min(bits):.4f} to {max(bits):.4f}) after {TOKENS:,} tokens, {len(SEEDS)} seeds")


def is_of_now(line: dict[str, Any]) -> bool:
    return line["tokens"] == TOKENS and line["size"] == SIZE


def spread(differences: list[float]) -> str:
    return f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"


def measured(name: str, seed: int, tokenizer: Any, held: list[Batch], sizes: torch.Tensor, none: dict[str, Any] | None) -> dict[str, Any]:
    """A run after its tokens; and another whose learning rate falls as it should when the time of the run without heads is over."""
    bits, seconds, steps = run(name, seed, TOKENS, tokenizer, held, sizes)
    line = {"name": name, "seed": seed, "tokens": TOKENS, "size": SIZE, "bits": bits, "seconds": seconds, "bits_at_time": bits}
    if none is not None:
        fewer = int(TOKENS * min(1.0, none["seconds"] / seconds))
        line["tokens_at_time"] = fewer
        line["bits_at_time"] = run(name, seed, fewer, tokenizer, held, sizes)[0]
    print(json.dumps(line), flush=True)
    return line


def run(name: str, seed: int, tokens: int, tokenizer: Any, held: list[Batch], sizes: torch.Tensor) -> tuple[float, float, int]:
    """Held-out bits per byte, seconds of the steps, and how many they were."""
    preset = preset_of(name, seed)
    teacher, learner = teacher_of(preset, len(tokenizer), tokenizer.pad_token_id)
    read = steps = 0
    seconds = 0.0
    for batch in batches_of(preset, tokenizer):
        began = clock()
        step = teacher.step(batch, len(preset.data.sources), read, tokens, steps)
        seconds, read, steps = seconds + clock() - began, read + step.tokens, steps + 1
        if read >= tokens:
            break
    device = learner.model.embedding.weight.device
    learner.heads = torch.nn.ModuleDict()  # what is measured is the model
    bits, _ = bits_per_byte(lambda batch: learner([batch.to(device)]).losses["next_token"], learner, held, sizes)
    return bits, seconds, steps


if __name__ == "__main__":
    if sys.argv[1:]:
        tell_memory(sys.argv[1])
    else:
        for part in PARTS:
            {"cost": cost, "gain": gain}[part]()
