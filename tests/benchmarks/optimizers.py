"""AdamW and Muon by learning rate and width, with one rate for all widths and with shares of it (train.base_width): held-out bits per byte after
the same tokens, and processor seconds (seconds of a GPU) of their steps: python -m tests.benchmarks.optimizers

OPTIMIZERS_WIDTHS    "64 128 256"                    OPTIMIZERS_TOKENS    1,000,000      OPTIMIZERS_LAYERS    4
OPTIMIZERS_RATES     "1e-3 2e-3 4e-3 8e-3"           OPTIMIZERS_SEEDS     "0"            OPTIMIZERS_HELD_OUT  64 rows that are not learned
OPTIMIZERS_BASE      one of the widths, which the    OPTIMIZERS_ROWS      8 a step       OPTIMIZERS_FIGURE    a picture of it (SVG or PNG)
                     shares are of: the first        OPTIMIZERS_LENGTH    256 tokens     OPTIMIZERS_VOCABULARY 2048
OPTIMIZERS_OF        "adamw muon"                OPTIMIZERS_RESULTS   optimizers.jsonl, where each run is kept: what was cut off goes on

The model is one of attention and SwiGLU. A rate carries over where the best one is the same at every width.
Text: the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import contextlib
import math
import os
import statistics
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_sources import Batch
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.preset import Preset, load_preset
from lm.preset.compare import in_force
from tests.benchmarks.measures import Results, bits_per_byte, digest, timed
from tests.benchmarks.teaching import batches_of, held_out, next_token, on_what, teacher_of
from tests.benchmarks.text import LOCAL

WIDTHS = tuple(map(int, os.environ.get("OPTIMIZERS_WIDTHS", "64 128 256").split()))
RATES = tuple(map(float, os.environ.get("OPTIMIZERS_RATES", "1e-3 2e-3 4e-3 8e-3").split()))
SEEDS = tuple(map(int, os.environ.get("OPTIMIZERS_SEEDS", "0").split()))
BASE = int(os.environ.get("OPTIMIZERS_BASE", WIDTHS[0]))
TOKENS, LAYERS = int(os.environ.get("OPTIMIZERS_TOKENS", 1_000_000)), int(os.environ.get("OPTIMIZERS_LAYERS", 4))
ROWS, LENGTH = int(os.environ.get("OPTIMIZERS_ROWS", 8)), int(os.environ.get("OPTIMIZERS_LENGTH", 256))
HELD_OUT_ROWS, VOCABULARY = int(os.environ.get("OPTIMIZERS_HELD_OUT", 64)), int(os.environ.get("OPTIMIZERS_VOCABULARY", 2048))
RESULTS = Path(os.environ.get("OPTIMIZERS_RESULTS", "optimizers.jsonl"))
FIGURE = os.environ.get("OPTIMIZERS_FIGURE", "")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Arm(NamedTuple):
    """A rule of how matrices learn."""

    optimizer: str
    shares: bool  # whether the rate is that of BASE, of which other widths take shares

    @property
    def name(self) -> str:
        return f"{self.optimizer}, {'shares of one rate' if self.shares else 'one rate'}"


ARMS = [Arm(optimizer, shares) for optimizer in os.environ.get("OPTIMIZERS_OF", "adamw muon").split() for shares in (False, True)]


class End(NamedTuple):
    """What a training came to."""

    bits: float  # held-out, per byte; infinite where learning came apart
    seconds: float  # of a step, the median


Ends = dict[tuple[Arm, int, float], list[End]]  # by arm, width and rate: of each seed


class Bench:
    """The text, and what was found on it."""

    def __init__(self) -> None:
        self.results = Results(RESULTS)
        self._rows: dict[int, list[Batch]] = {}  # of each seed's steps, the same at any width: they are read once

    @cached_property
    def tokenizer(self) -> Any:
        return build_tokenizer(preset_of(ARMS[0], WIDTHS[0], RATES[0], SEEDS[0]).data, seed=0)

    @cached_property
    def held(self) -> list[Batch]:
        return held_out(preset_of(ARMS[0], WIDTHS[0], RATES[0], SEEDS[0]), self.tokenizer, HELD_OUT_ROWS)

    def end(self, arm: Arm, width: int, rate: float, seed: int) -> End:
        """Of a whole training."""
        preset = preset_of(arm, width, rate, seed)
        train = {"optimizer": arm.optimizer, "base_width": preset.train.base_width, "width": width, "rate": rate, "seed": seed}
        asked = {**train, "tokens": TOKENS, "held_out": HELD_OUT_ROWS, **on_what(preset), "about": digest(in_force(preset))}
        return End(*self.results.of(asked, lambda: self._taught(preset)))

    def _batches(self, preset: Preset) -> list[Batch]:
        if preset.train.seed not in self._rows:
            with contextlib.closing(batches_of(preset, self.tokenizer)) as batches:
                self._rows[preset.train.seed] = list(islice(batches, -(-TOKENS // (ROWS * LENGTH))))
        return self._rows[preset.train.seed]

    def _taught(self, preset: Preset) -> End:
        teacher, learner = teacher_of(preset, len(self.tokenizer))
        sizes, read, seconds = torch.tensor(token_bytes(self.tokenizer)), 0, []
        for batch in self._batches(preset):
            seconds.append(timed(lambda batch=batch, read=read: teacher.step(batch, len(preset.data.sources), read, TOKENS)))
            read += batch.tokens.numel()
        bits, _ = bits_per_byte(lambda batch: next_token(learner, batch), learner, self.held, sizes)
        end = End(bits if math.isfinite(bits) else math.inf, statistics.median(seconds))
        told = f"{preset.train.optimizer}, base width {preset.train.base_width}, width {preset.model.hidden_size}, rate {preset.train.learning_rate:g}"
        print(f"{told}, seed {preset.train.seed}: {end.bits:.4f} bits per byte, {1e3 * end.seconds:.0f} ms a step", flush=True)
        return end


def preset_of(arm: Arm, width: int, rate: float, seed: int) -> Preset:
    """At the width that shares are of, both rules are one, and one run serves both."""
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    train = {"optimizer": arm.optimizer, "learning_rate": rate, "base_width": BASE if arm.shares and width != BASE else None, "warmup_share": 0.05}
    return Preset.model_validate(
        {
            "model": {"hidden_size": width, "num_layers": LAYERS, "num_heads": max(1, width // 32), "seq_length": LENGTH},
            "train": {**train, "per_gpu_batch_size": ROWS, "seed": seed},
            "data": data.model_dump(mode="json") | {"vocab_size": VOCABULARY},
        }
    )


def mean_bits(ends: list[End]) -> float:
    return statistics.mean(end.bits for end in ends)


def best_rate(ends: Ends, arm: Arm, width: int) -> float:
    return min(RATES, key=lambda rate: mean_bits(ends[arm, width, rate]))


def told(ends: Ends) -> Iterator[str]:
    """Each arm's best rate by width, with its bits per byte, and what the best rate of width BASE costs the others."""
    yield f"| best rate: held-out bits per byte | {' | '.join(f'width {width}' for width in WIDTHS)} | all at the best of width {BASE} |"
    yield "|---" * (len(WIDTHS) + 2) + "|"
    for arm in ARMS:
        cells = []
        for width in WIDTHS:
            rate = best_rate(ends, arm, width)
            edge = " or less" * (rate == min(RATES)) or " or more" * (rate == max(RATES))
            cells.append(f"{rate:g}{edge}: {mean_bits(ends[arm, width, rate]):.4f}")
        at_base = best_rate(ends, arm, BASE)
        lost = ", ".join(f"{mean_bits(ends[arm, width, at_base]) - mean_bits(ends[arm, width, best_rate(ends, arm, width)]):+.4f}" for width in WIDTHS)
        yield f"| {arm.name} | {' | '.join(cells)} | {lost} |"
    yield f"\n{TOKENS:,} tokens, {LAYERS} layers, {len(SEEDS)} seeds; {DEVICE.type}"
    if len({arm.optimizer for arm in ARMS}) == 1:
        return
    for width in WIDTHS:
        seconds = {name: [end.seconds for (arm, at, _), of in ends.items() if (arm.optimizer, at) == (name, width) for end in of] for name in ("adamw", "muon")}
        ratio = statistics.median(seconds["muon"]) / statistics.median(seconds["adamw"])
        yield f"width {width}: a step of muon takes {ratio:.2f} times that of adamw"


def figure(ends: Ends, path: str) -> None:
    """A panel for each arm: bits per byte over rates, a curve for each width. Greys and colours that light and dark pages bear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grey = "#8a8f98"
    pyplot.rcParams |= {"svg.hashsalt": "optimizers", "font.size": 10, "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey}
    pyplot.rcParams |= {"xtick.color": grey, "ytick.color": grey}
    picture, panels = pyplot.subplots(1, len(ARMS), figsize=(12, 3.4), sharey=True, layout="constrained")
    colours = pyplot.get_cmap("viridis")
    bests = [mean_bits(of) for of in ends.values() if math.isfinite(mean_bits(of))]
    for panel, arm in zip(panels, ARMS, strict=True):
        for place, width in enumerate(WIDTHS):
            colour, bits = colours(0.15 + 0.7 * place / max(len(WIDTHS) - 1, 1)), [mean_bits(ends[arm, width, rate]) for rate in RATES]
            panel.plot(RATES, bits, color=colour, linewidth=1.8, marker="o", markersize=3, label=f"width {width}")
            panel.plot(best_rate(ends, arm, width), min(bits), color=colour, marker="*", markersize=11)
        panel.set(xscale="log", xlabel="learning rate", title=arm.name, ylim=(min(bests) - 0.03, min(max(bests), min(bests) + 1.5) + 0.03))
        panel.set_xticks(RATES, [f"{rate:g}" for rate in RATES], rotation=45)
        panel.set_xticks([], minor=True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color=grey, alpha=0.2)
    panels[0].set(ylabel="held-out bits per byte")
    panels[-1].legend(frameon=False)
    picture.savefig(path, transparent=True, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    bench = Bench()
    ends = {(arm, width, rate): [bench.end(arm, width, rate, seed) for seed in SEEDS] for width in WIDTHS for arm in ARMS for rate in RATES}
    print("\n".join([*told(ends), *bench.results.commits_told()]))
    if FIGURE:
        figure(ends, FIGURE)


if __name__ == "__main__":
    main()
