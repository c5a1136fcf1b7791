"""What a model carries while it writes, and how long one token takes: python -m tests.benchmarks.decoding

Presets of configs/ (DECODING_PRESETS, names without the ending) with first weights: bytes of the state after 10,000 tokens, and the time of one
token after 1,024 and 16,384, the median of 64, the models in turn.
"""

import os
import statistics
import time

import torch
from torch.utils._pytree import tree_leaves

from lm.model import Model, ModelState, build_model
from lm.preset import load_preset

NAMES = os.environ.get("DECODING_PRESETS", "00_best_general 07_yoco").split()
VOCABULARY, PIECE, READINGS = 16_384, 1024, 64
PLACES, SIZED_AT = (1024, 16_384), 10_000


def read(model: Model, state: ModelState, length: int) -> ModelState:
    for begin in range(0, length, PIECE):
        out = model(torch.randint(VOCABULARY, (1, min(PIECE, length - begin))), state)
        state = out.state
    return state


def bytes_of(state: ModelState) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state))


def one_token(models: list[Model], place: int) -> list[list[float]]:
    """Seconds of each reading, by model."""
    states = [read(model, model.initial_state(1), place) for model in models]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(READINGS):
        for index, model in enumerate(models):
            began = time.perf_counter()
            out = model(torch.randint(VOCABULARY, (1, 1)), states[index])
            states[index] = out.state
            taken[index].append(time.perf_counter() - began)
    return taken


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    models = [build_model(load_preset(f"configs/{name}.json"), VOCABULARY) for name in NAMES]
    for name, model in zip(NAMES, models, strict=True):
        size = bytes_of(read(model, model.initial_state(1), SIZED_AT))
        print(f"{name}: {size:,} bytes after {SIZED_AT:,} tokens", flush=True)
    for place in PLACES:
        for name, seconds in zip(NAMES, one_token(models, place), strict=True):
            print(f"{name}: one token after {place:,}: {1e3 * statistics.median(seconds):.2f} ms", flush=True)


if __name__ == "__main__":
    main()
