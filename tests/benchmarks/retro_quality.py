"""What a memory brings a model that is taught with it: python -m tests.benchmarks.retro_quality

Two models over the same text, through the same `train` as any run: one that attends to neighbours from a memory of what it read, in every
second layer, and one without. Afterwards held-out bits per byte of both, and of the first with its memory on, off, and with chunks drawn by
lot, by how much of the text stood in what was handed in; and the time of a step of each. RETRO_TOKENS (2,000,000) and RETRO_SEEDS ("0 1") say
how much of it. Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from lm.preset import Preset, load_preset
from lm.training import train
from lm.training.snapshot_evaluation import evaluate_snapshot
from tests.benchmarks.text import LOCAL

TOKENS = int(os.environ.get("RETRO_TOKENS", 2_000_000))
SEEDS = tuple(map(int, os.environ.get("RETRO_SEEDS", "0 1").split()))
MODEL = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": 256}
VOCABULARY, WARM = 2048, 20
PLANS = {"without": {}, "with": {"retro": {"enabled": True}}}


def preset_of(name: str, seed: int) -> Preset:
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    train_section = {"per_gpu_batch_size": 8, "seed": seed, "learning_rate": 0.002, "eval_tokens": 40_000, "evaluate_every_tokens": 10**9}
    data_section = data.model_copy(update={"vocab_size": VOCABULARY}).model_dump()
    return Preset.model_validate({"name": name, "model": MODEL, "train": train_section, "data": data_section, **PLANS[name]})


def taught(name: str, seed: int, folder: Path) -> float:
    """Train; the median of a step's seconds."""
    events: list[dict[str, Any]] = []
    train(preset_of(name, seed), folder, TOKENS, observers=(events.append,))
    times = [event["tokens_per_second"] for event in events if event["event"] == "step"][WARM:]
    return 1 / statistics.median(times)


def main() -> None:
    print(f"{TOKENS:,} tokens, {MODEL}, vocabulary {VOCABULARY}", flush=True)
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = {name: taught(name, seed, Path(folder) / name) for name in PLANS}
            found = {name: evaluate_snapshot(Path(folder) / name) for name in PLANS}
        each = ", ".join(f"{name} a memory {found[name]['bits_per_byte']:.4f}" for name in PLANS)
        print(f"seed {seed}: {each} bits per byte; a step takes {seconds['with'] / seconds['without']:.2f} times as long with it", flush=True)
        for row in found["with"]["memory"]:
            bits = ", ".join(f"{way} {value:.4f}" for way, value in row["bits"].items())
            print(f"seed {seed}, overlap {row['overlap']:18} {row['bytes']:9,} bytes: {bits}", flush=True)


if __name__ == "__main__":
    main()
