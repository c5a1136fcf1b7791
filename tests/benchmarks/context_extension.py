"""A trained model reads on past the length that it was trained at: python -m tests.benchmarks.context_extension

A small model with attention is trained on rows of 128 tokens, then goes on, by the same `train` as any run, with rows of 1,024: with its
rotary positions as they are, interpolated in all layers, or in every second one. Nats a token by place in the document on held-out
documents, before and after that short adaptation. Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
EXTENSION_TOKENS, EXTENSION_ADAPTATION and EXTENSION_SEEDS say how much of it.
"""

import os
import shutil
import tempfile
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_sources import open_stream
from data_sources.tokenizer import tokenizer_from_json
from lm.model import Context, build_model
from lm.ops.cross_entropy import linear_cross_entropy
from lm.preset import Preset
from lm.training import train
from lm.training.snapshots import Snapshot, Snapshots

TOKENS = int(os.environ.get("EXTENSION_TOKENS", 1_500_000))
ADAPTATION = int(os.environ.get("EXTENSION_ADAPTATION", 200_000))
SEEDS = tuple(map(int, os.environ.get("EXTENSION_SEEDS", "0 1").split()))
SHORT, LONG, BATCHES = 128, 1024, 12
EDGES = (0, 64, 128, 256, 512, 1024)
SOURCES = ["wikipedia", "fineweb_edu"] if os.environ.get("HF_ENDPOINT") else [{"type": "installed_docs", "repeat": True}]
WAYS: dict[str, dict[str, Any]] = {
    "positions as they are": {},
    "interpolated in all layers": {"position_interpolation": LONG / SHORT},
    "interpolated in every second layer": {"position_interpolation": LONG / SHORT, "position_interpolation_layers": "odd"},
}


def preset_of(seed: int, length: int, rate: float, **model: Any) -> Preset:
    return Preset.model_validate(
        {
            "name": f"rows of {length}",
            "model": {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "seq_length": length, **model},
            "train": {
                "per_gpu_batch_size": 2048 // length,
                "seed": seed,
                "learning_rate": rate,
                "warmup_share": 0.02,
                "eval_tokens": 0,
                "replay_share": 0,
                "sample_every_tokens": 10**9,
                "snapshot_every_minutes": 1000,
            },
            "data": {"sources": SOURCES, "vocab_size": 2048, "min_text_length": 4_000},
        }
    )


def held_out(snapshot: Snapshot) -> list[tuple[Tensor, Tensor]]:
    """Tokens and targets of held-out documents, from their first to their 1,024th."""
    data = snapshot.preset.data.model_copy(update={"packing": "pad"})
    with open_stream(data, tokenizer_from_json(snapshot.tokenizer), LONG, 8, part="held_out") as stream:
        batches = [batch for batch, _ in islice(stream, 4 * BATCHES)]
    whole = [(batch.tokens[row], batch.targets[row]) for batch in batches for row in range(8) if batch.restart[row, 0] and (batch.targets[row] >= 0).all()]
    return [tuple(map(torch.stack, zip(*whole[start : start + 8], strict=True))) for start in range(0, len(whole), 8)][:BATCHES]


@torch.no_grad()
def by_place(snapshot: Snapshot, held: list[tuple[Tensor, Tensor]], **model: Any) -> str:
    """Mean nats between the edges, with the switches of `model` in place of the snapshot's own."""
    preset = snapshot.preset.model_copy(update={"model": snapshot.preset.model.model_copy(update=model)})
    net = build_model(preset, len(tokenizer_from_json(snapshot.tokenizer)))
    net.load_state_dict(snapshot.model_weights)
    nats = []
    for tokens, targets in held:
        hidden = net(tokens, context=Context()).hidden
        nats.append(linear_cross_entropy(hidden.flatten(0, 1), net.readout, targets.flatten())[1].view_as(targets))
    mean = torch.cat(nats).mean(0)
    return ", ".join(f"{mean[start:end].mean():.3f}" for start, end in pairwise(EDGES))


def main() -> None:
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            born = Path(folder) / "born"
            train(preset_of(seed, SHORT, 2e-3), born, TOKENS)
            snapshot = Snapshots(born).read("current")
            held = held_out(snapshot)
            print(f"seed {seed}, {sum(len(tokens) for tokens, _ in held)} documents, nats at places {EDGES}, after {TOKENS:,} tokens at {SHORT}", flush=True)
            for way, switches in WAYS.items():
                print(f"seed {seed}, {way}, before: {by_place(snapshot, held, **switches)}", flush=True)
                place = Path(shutil.copytree(born, Path(folder) / way))
                train(preset_of(seed, LONG, 5e-4, **switches), place, ADAPTATION)
                print(f"seed {seed}, {way}, after {ADAPTATION:,} tokens at {LONG}: {by_place(Snapshots(place).read('current'), held)}", flush=True)


if __name__ == "__main__":
    main()
