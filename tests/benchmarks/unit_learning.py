"""Held-out bits per byte after 2M tokens with each unit in every layer, against attention: python -m tests.benchmarks.unit_learning

All models have the layers, width and number of parameters of the one with attention (the feed-forward is made wider or narrower, but for
those that share it and are no wider; with experts, those that a token uses are counted), and take every batch in turn, through seeds of first
weights, which are the same wherever names and shapes agree. Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
UNIT_TOKENS, UNIT_SEEDS and UNIT_PLANS (names of PLANS) say how much of it.
"""

import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from data_sources import Batch, open_stream
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.model import build_model
from lm.preset import Preset, count_parameters, load_preset
from lm.training.learner import Learner, weighted_sum
from tests.benchmarks.learning import bits_per_byte, factor, unigram_entropy
from tests.benchmarks.peers import stepper
from tests.benchmarks.text import LOCAL

TOKENS = int(os.environ.get("UNIT_TOKENS", 2_000_000))
SEEDS = tuple(map(int, os.environ.get("UNIT_SEEDS", "0 1").split()))
MODEL = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": 256}
ROWS, HELD_OUT_BATCHES, RATE, VOCABULARY = 8, 16, 2e-3, 2048
ON = {"enabled": True}
PLANS: dict[str, dict[str, Any]] = {
    "attention": {},
    "longformer": {"longformer": ON | {"window": 64, "global_tokens": 4}},
    "s5": {"s5": ON},
    "hyena": {"hyena": ON},
    "rwkv, rwkv_channel": {"rwkv": ON, "rwkv_channel": ON},
    "deltanet": {"deltanet": ON},
    "mamba2": {"mamba2": ON},
    "gla": {"gla": ON},
    "gla, then shared_attention": {"gla": ON | {"layers": "first_half"}, "shared_attention": ON | {"layers": "last_half"}},
    "gates on heads": {"head_gating": ON | {"ffn_groups": 0}},
    "gates on heads and feed-forwards": {"head_gating": ON},
    "shared_ffn": {"shared_ffn": ON},
    "shared_ffn, no wider": {"shared_ffn": ON, "model": {"ffn_size": 176}},
    "shared_ffn of all, no wider": {"shared_ffn": ON | {"private_share": 0.0}, "model": {"ffn_size": 176}},
    "moe": {"moe": ON},
    "swiglu | moe": {"moe": ON | {"layers": "odd"}},
    "s5 | longformer": {"s5": ON | {"layers": "even"}, "longformer": ON | {"layers": "odd", "window": 64, "global_tokens": 4}},
}


def preset_of(name: str, vocab_size: int) -> Preset:
    """The plan `name`, its feed-forward as wide as makes it as large as the plan of attention alone."""

    def sized(width: int, sections: dict[str, Any]) -> Preset:
        model = MODEL | {"ffn_size": width} | sections.get("model", {})
        return Preset.model_validate({"name": name, "data": {"sources": ["wikipedia"]}, **sections, "model": model})

    def parameters(preset: Preset) -> int:
        count = count_parameters(preset, vocab_size)
        assert count is not None
        return count.active

    wanted = parameters(sized(176, {}))
    return min((sized(width, PLANS[name]) for width in range(8, 1024, 4)), key=lambda preset: abs(parameters(preset) - wanted))


def alike(learner: Learner, first: Learner | None) -> Learner:
    """`learner` with the first weights of `first` wherever name and shape agree: others alone may make as large a difference as what is measured."""
    own = learner.state_dict()
    same = {name: value for name, value in (first.state_dict() if first else {}).items() if name in own and own[name].shape == value.shape}
    learner.load_state_dict(same, strict=False)
    return learner


class Taught:
    """A learner's loss, in which those of its units count as in training, and what they came to. Outside training it is next_token's alone."""

    def __init__(self, learner: Learner, weights: Mapping[str, float]) -> None:
        self.learner, self.weights = learner, weights
        self.stats: Mapping[str, torch.Tensor] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        learned = self.learner([batch])
        self.stats = learned.stats
        return weighted_sum(learned.losses, self.weights)


def main() -> None:
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    tokenizer = build_tokenizer(data.model_copy(update={"vocab_size": VOCABULARY}), seed=0)
    names = os.environ["UNIT_PLANS"].split(";") if "UNIT_PLANS" in os.environ else list(PLANS)
    presets = {name: preset_of(name, len(tokenizer)) for name in names}
    sizes, length = torch.tensor(token_bytes(tokenizer)), MODEL["seq_length"]
    with open_stream(data, tokenizer, length, ROWS, part="held_out") as stream:
        held = [batch for batch, _ in (next(stream) for _ in range(HELD_OUT_BATCHES))]
    print(f"{[source.name for source in data.sources]}; held out: {sum(b.valid for b in held):,} tokens, unigram entropy {unigram_entropy(held):.3f} nats")
    steps, results, seconds = TOKENS // (ROWS * length), {name: [] for name in names}, dict.fromkeys(names, 0.0)
    for seed in SEEDS:
        learners = {}
        for name, preset in presets.items():
            torch.manual_seed(seed)
            learners[name] = alike(Learner(build_model(preset, len(tokenizer))), learners.get(names[0]))
        losses = {name: Taught(learner, presets[name].loss_weights) for name, learner in learners.items()}
        takers = {name: stepper(learners[name], losses[name], RATE) for name in names}
        with open_stream(data, tokenizer, length, ROWS, seed=seed) as stream:
            for index in range(steps):
                batch, _ = next(stream)
                for name, take in takers.items():
                    began = time.perf_counter()
                    take(batch, factor(index, steps))
                    learners[name].model.after_step(losses[name].stats)
                    seconds[name] += time.perf_counter() - began
                if (index + 1) % (steps // 4) == 0:
                    found = {name: bits_per_byte(losses[name], learners[name], held, sizes)[0] for name in names}
                    print(f"seed {seed}, {(index + 1) * ROWS * length:,} tokens: {', '.join(f'{name} {bits:.4f}' for name, bits in found.items())}", flush=True)
        for name in names:
            results[name].append(bits_per_byte(losses[name], learners[name], held, sizes)[0])
    for name, bits in results.items():
        against = [ours - attention for ours, attention in zip(bits, results[names[0]], strict=True)]
        parameters = sum(parameter.numel() for parameter in learners[name].parameters())
        print(
            f"{name}: {parameters:,} parameters, {statistics.mean(bits):.4f} bits per byte ({min(bits):.4f} to {max(bits):.4f}), "
            f"against {names[0]} {min(against):+.4f} to {max(against):+.4f}, {seconds[name] / seconds[names[0]]:.2f} times its time"
        )


if __name__ == "__main__":
    main()
