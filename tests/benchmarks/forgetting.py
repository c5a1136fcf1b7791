"""Three runs on three kinds of real text, with some of the past read again and without: python -m tests.benchmarks.forgetting

Questions with their answers, then Wikipedia, then pages of the web, from the Hub that HF_ENDPOINT leads to; a run each of FORGETTING_TOKENS
(default 500,000) on one small model, through the same `train` as any run. After each run all held-out text of the sources read so far
is measured. Shares of the past: FORGETTING_SHARES; seeds of the first weights and of the order: FORGETTING_SEEDS.
"""

import os
import tempfile
from typing import Any

from lm.preset import Preset
from lm.training import train

TOKENS = int(os.environ.get("FORGETTING_TOKENS", 500_000))
SHARES = tuple(map(float, os.environ.get("FORGETTING_SHARES", "0 0.05").split()))
SEEDS = tuple(map(int, os.environ.get("FORGETTING_SEEDS", "0 1").split()))
MIXES = ("natural_questions", "wikipedia", "fineweb_edu")


def preset(source: str, seed: int, share: float) -> Preset:
    return Preset.model_validate(
        {
            "name": source,
            "model": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "seq_length": 256},
            "train": {
                "per_gpu_batch_size": 8,
                "seed": seed,
                "replay_share": share,
                "eval_tokens": 20_000,
                "warmup_share": 0.02,
                "evaluate_every_tokens": 10**9,
            },
            "data": {"sources": [source], "vocab_size": 4096},
        }
    )


def main() -> None:
    print(f"{TOKENS:,} tokens a run; bits per byte on held-out text after each, and against the end of the first run", flush=True)
    for seed in SEEDS:
        for share in SHARES:
            with tempfile.TemporaryDirectory() as folder:
                ends: list[dict[str, Any]] = []
                for source in MIXES:
                    ends.append(train(preset(source, seed, share), folder, TOKENS).evaluation["sources"])
                    known = ", ".join(f"{name} {found['bits_per_byte']:.4f}" for name, found in ends[-1].items())
                    print(f"seed {seed}, {share:.0%} of the past, after {source:18} {known}", flush=True)
                first = [end[MIXES[0]]["bits_per_byte"] for end in ends]
                changes = ", ".join(f"{value / min(first[: number + 1]) - 1:+.2%}" for number, value in enumerate(first))
                print(f"seed {seed}, {share:.0%} of the past: {MIXES[0]} against its best until then {changes}", flush=True)


if __name__ == "__main__":
    main()
