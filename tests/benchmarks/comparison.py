"""Ours against transformers' GPT-2 and Llama of as many parameters, on the same batches of the same text: python -m tests.benchmarks.comparison

Held-out bits per byte over tokens and over processor seconds (seconds of a GPU), tokens a second, and memory. Ours is trained as the program
does, by the preset's `train`; the peers with AdamW as nanoGPT does (betas 0.9 and 0.95, decay 0.1, clipping 1.0, warm-up, then a cosine to
a tenth), in the precision that ours has, and compiled where ours is; compiling is in no one's time. Each is tried at every one of
COMPARISON_RATES with the first seed, further rates while its best is the highest or the lowest of them, and at its best rate with the other
seeds. How many tokens ours needs for what the better peer ends with is asked of a run of its own, with half of the tokens: in the middle of a
longer one the rate has not fallen yet.

COMPARISON_PRESET    configs/00_best_general.json      COMPARISON_TOKENS   2,000,000      COMPARISON_RATES     "1e-3 2e-3 4e-3"
COMPARISON_SIZE      hidden size to scale it to: 128   COMPARISON_SEEDS    "0 1"          COMPARISON_FIGURE    a picture of it (SVG or PNG)
                     for a laptop; as it is without    COMPARISON_HELD_OUT 64 rows of text that is not learned
COMPARISON_RESULTS   comparison.jsonl, where each run is kept: what was cut off goes on

Text: the preset's own mix from the Hub that HF_ENDPOINT leads to, else installed documentation. Of the preset its model, `train` and text count, in
rows that are read one by one: no memory, no carried states, no objective but the next token.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_sources import Batch
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.preset import Preset, count_parameters, load_preset
from lm.preset.compare import in_force
from lm.training.compiling import compiles
from lm.training.distribution import Ranks
from lm.training.trial import random_batch
from tests.benchmarks.measures import Results, apart, bits_per_byte, digest, paces, peak_bytes, ratio, timed
from tests.benchmarks.peers import count, gpt2_of, llama_of, of_size, peer_loss, stepper
from tests.benchmarks.teaching import batches_of, held_out, in_use, next_token, on_what, teacher_of
from tests.benchmarks.text import chosen_data

PRESET = os.environ.get("COMPARISON_PRESET", "configs/00_best_general.json")
SIZE = int(os.environ.get("COMPARISON_SIZE", 0))
TOKENS = int(os.environ.get("COMPARISON_TOKENS", 2_000_000))
SEEDS = tuple(map(int, os.environ.get("COMPARISON_SEEDS", "0 1").split()))
RATES = tuple(map(float, os.environ.get("COMPARISON_RATES", "1e-3 2e-3 4e-3").split()))
RESULTS = Path(os.environ.get("COMPARISON_RESULTS", "comparison.jsonl"))
FIGURE = os.environ.get("COMPARISON_FIGURE", "")
OURS, PEERS = "Perennial", {"GPT-2": gpt2_of, "Llama": llama_of}
NAMES = (OURS, *PEERS)
HELD_OUT_ROWS = int(os.environ.get("COMPARISON_HELD_OUT", 64))
WARMUP, LOOKS, PAIRS, MOST_RATES = 0.05, 20, 21, 6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Contestant(NamedTuple):
    """A model in training."""

    module: nn.Module
    loss: Callable[[Batch], Tensor]
    step: Callable[[Batch, int], object]  # with how many tokens were read before


class Look(NamedTuple):
    """A point of a curve."""

    tokens: int
    seconds: float  # that steps took until there
    bits: float  # held-out, per byte


Curve = list[Look]


# Who learns.


def scaled(preset: Preset, size: int) -> Preset:
    """A smaller sister of `preset`: everything as many times smaller as its hidden size is, heads as wide as they were."""
    model, share = preset.model, size / preset.model.hidden_size

    def part(number: int | None) -> int | None:
        return None if number is None else max(1, round(share * number))

    sizes = {name: part(getattr(model, name)) for name in ("hidden_size", "num_heads", "num_kv_heads", "ffn_size")}
    data = preset.data.model_copy(update={"vocab_size": part(preset.data.vocab_size)})
    return preset.model_copy(update={"model": model.model_copy(update=sizes), "data": data})


def preset_of(rate: float, seed: int) -> Preset:
    """What is compared, with the warm-up that its peers have."""
    preset = load_preset(PRESET)
    preset = scaled(preset, SIZE) if SIZE else preset
    train = preset.train.model_copy(update={"learning_rate": rate, "seed": seed, "warmup_share": WARMUP})
    chosen = preset.model_copy(update={"train": train, "data": chosen_data(preset)})
    return Preset.model_validate(chosen.model_dump(mode="json"))


def contestant(name: str, preset: Preset, vocab_size: int, budget: int = TOKENS) -> Contestant:
    """`name` with first weights of the preset's seed, whose rate falls until `budget` tokens were read."""
    if name == OURS:
        teacher, learner = teacher_of(preset, vocab_size)

        def averaged(batch: Batch) -> Tensor:
            with in_use(teacher):
                return next_token(learner, batch)

        return Contestant(learner, averaged, lambda batch, read: teacher.step(batch, len(preset.data.sources), read, budget))
    torch.manual_seed(preset.train.seed)
    wanted, ranks = count_parameters(preset, vocab_size), Ranks(preset.train)
    peer = of_size(PEERS[name], preset, vocab_size, wanted.active).to(ranks.device)
    scored = torch.compile(peer_loss) if compiles(preset.train.compile, ranks.device) else peer_loss

    def loss(batch: Batch) -> Tensor:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=ranks.precision == "bfloat16"):
            return scored(peer, batch.to(ranks.device))

    take = stepper(peer, loss, preset.train.learning_rate)
    return Contestant(peer, loss, lambda batch, read: take(batch, cosine((read + batch.tokens.numel()) / budget)))


def cosine(share: float) -> float:
    """nanoGPT's factor of the learning rate when `share` of the tokens will have been read after the step."""
    if share < WARMUP:
        return share / WARMUP
    fallen = min((share - WARMUP) / (1 - WARMUP), 1.0)
    return 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * fallen))


# What is measured.


class Bench:
    """The text, and what was found on it."""

    def __init__(self) -> None:
        self.results = Results(RESULTS)

    @cached_property
    def tokenizer(self) -> Any:
        return build_tokenizer(preset_of(RATES[0], 0).data, seed=0)

    @cached_property
    def held(self) -> list[Batch]:
        return held_out(preset_of(RATES[0], 0), self.tokenizer, HELD_OUT_ROWS)

    def asked(self, name: str, preset: Preset, what: str, tokens: int = TOKENS) -> dict[str, Any]:
        """What a result depends on. A peer is the same whatever makes ours another model of its size."""
        told = in_force(preset)
        size = {key: told["model"][key] for key in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "seq_length", "tie_embeddings")}
        about = told if name == OURS else {"model": size, "data": told["data"], "parameters": self.parameters(name, preset), "rows": preset.step_rows}
        rate, seed = preset.train.learning_rate, preset.train.seed
        return {
            "what": what,
            "name": name,
            "rate": rate,
            "seed": seed,
            "tokens": tokens,
            "held_out": HELD_OUT_ROWS,
            **on_what(preset),
            "compiled": compiles(preset.train.compile, DEVICE),
            "about": digest(about),
        }

    def parameters(self, name: str, preset: Preset) -> int:
        if name == OURS:
            return count_parameters(preset, preset.data.vocab_size).active
        with torch.device("meta"):
            return count(of_size(PEERS[name], preset, preset.data.vocab_size, self.parameters(OURS, preset)))

    def run(self, name: str, rate: float, seed: int, tokens: int = TOKENS) -> Curve:
        """A whole training."""
        preset = preset_of(rate, seed)
        looks = self.results.of(self.asked(name, preset, "run", tokens), lambda: self._taught(name, preset, tokens))
        return [Look(*look) for look in looks]

    def _taught(self, name: str, preset: Preset, tokens: int) -> Curve:
        contestant(name, preset, len(self.tokenizer), tokens).step(self.held[0], 0)  # a twin, which has compiled what both compute
        one, sizes = contestant(name, preset, len(self.tokenizer), tokens), torch.tensor(token_bytes(self.tokenizer))
        curve, read, seconds = [], 0, 0.0
        for batch in batches_of(preset, self.tokenizer):
            seconds += timed(lambda batch=batch, read=read: one.step(batch, read))
            read += batch.tokens.numel()
            if read >= min(tokens, (len(curve) + 1) * tokens / LOOKS):
                bits, _ = bits_per_byte(one.loss, one.module, self.held, sizes)
                curve.append(Look(read, seconds, bits if math.isfinite(bits) else math.inf))
            if read >= tokens:
                break
        said = f"{name}, learning rate {preset.train.learning_rate:g}, seed {preset.train.seed}"
        print(f"{said}: {curve[-1].bits:.4f} bits per byte after {read:,} tokens and {seconds:,.0f} s", flush=True)
        return curve

    def paces(self) -> list[dict[str, float]]:
        """Seconds a token by name, for each of PAIRS batches that all take in turns."""
        preset = preset_of(RATES[0], SEEDS[0])
        return self.results.of(self.asked(OURS, preset, "pace"), lambda: self._taken(preset))

    def _taken(self, preset: Preset) -> list[dict[str, float]]:
        taking, warm = {name: contestant(name, preset, len(self.tokenizer)) for name in NAMES}, 3
        batches = list(islice(batches_of(preset, self.tokenizer), warm + PAIRS))

        def taker(one: Contestant) -> Callable[[int], int]:
            return lambda number: (one.step(batches[number], 0), batches[number].tokens.numel())[1]

        return paces({name: taker(one) for name, one in taking.items()}, PAIRS, warm)

    def memory(self, name: str) -> int:
        """Bytes at the highest, of a process that takes three steps."""
        return self.results.of(self.asked(name, preset_of(RATES[0], SEEDS[0]), "memory"), lambda: apart("tests.benchmarks.comparison", name))


def three_steps(name: str) -> int:
    """Bytes at the highest."""
    preset = preset_of(RATES[0], 0)
    batch = random_batch(preset.step_rows, preset.model.seq_length, preset.data.vocab_size)
    one = contestant(name, preset, preset.data.vocab_size)
    for _ in range(3):
        one.step(batch, 0)
    return peak_bytes()


def tried(rates: Sequence[float], end: Callable[[float], float]) -> dict[float, float]:
    """What each learning rate ends with: of `rates`, and of half the lowest or twice the highest while that is the best."""
    found = {rate: end(rate) for rate in rates}
    while len(found) < MOST_RATES:
        best = min(found, key=found.__getitem__)
        if min(found) < best < max(found):
            break
        further = best / 2 if best == min(found) else 2 * best
        found[further] = end(further)
    return found


# What is told.


def middle(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, look by look."""
    return [Look(looks[0].tokens, *(statistics.mean(column) for column in list(zip(*looks, strict=True))[1:])) for looks in zip(*curves, strict=True)]


def reached(curve: Curve, bits: float) -> tuple[float, float] | None:
    """(tokens, seconds) at which a curve first is as low as `bits`, between looks along a line; None when it never is."""
    for before, look in zip([None, *curve], curve, strict=False):
        if look.bits <= bits:
            share = (before.bits - bits) / (before.bits - look.bits) if before and math.isfinite(before.bits) else 1.0
            start = before or look
            return start.tokens + share * (look.tokens - start.tokens), start.seconds + share * (look.seconds - start.seconds)
    return None


def place(curve: Curve, end: Look) -> str:
    """Where `curve` is as low as another is at its end, in shares of what that took."""
    if not (at := reached(curve, end.bits)):
        share = curve[-1].tokens / end.tokens, curve[-1].seconds / end.seconds
        return f"not reached with {share[0]:.2f} of its tokens and {share[1]:.2f} of its seconds"
    return f"reached with {at[0] / end.tokens:.2f} of its tokens and {at[1] / end.seconds:.2f} of its seconds"


def told(bench: Bench, rates: dict[str, dict[float, float]], curves: dict[str, list[Curve]], halves: list[Curve]) -> Iterator[str]:
    """The table, and what it means."""
    preset, taken = preset_of(RATES[0], SEEDS[0]), bench.paces()
    yield "| | parameters | learning rates tried | best | held-out bits per byte | tokens/s | peak memory |"
    yield "|---|---|---|---|---|---|---|"
    for name in NAMES:
        ends = [curve[-1].bits for curve in curves[name]]
        best, each = min(rates[name], key=rates[name].__getitem__), ", ".join(f"{rate:g}: {bits:.4f}" for rate, bits in sorted(rates[name].items()))
        pace, memory = 1 / statistics.median(costs[name] for costs in taken), bench.memory(name) / 2**20
        spread = f"{statistics.mean(ends):.4f} ({min(ends):.4f} to {max(ends):.4f})"
        yield f"| {name} | {bench.parameters(name, preset):,} | {each} | {best:g} | {spread} | {pace:,.0f} | {memory:,.0f} MiB |"
    yield f"\n{TOKENS:,} tokens of {', '.join(source.name for source in preset.data.sources)}; {len(SEEDS)} seeds; {DEVICE.type}"
    better = min(PEERS, key=lambda name: middle(curves[name])[-1].bits)
    end, ours = middle(curves[better])[-1], middle(curves[OURS])
    yield f"{better}'s end, {end.bits:.4f}: {place(ours, end)} (not with a learning rate that falls until there)"
    for seed, half in zip(SEEDS, halves, strict=True):
        yield f"{OURS} with a budget of {half[-1].tokens:,} tokens, seed {seed}: {half[-1].bits:.4f}; {better}'s end is {place(half, end)}"
    for name in PEERS:
        yield f"tokens/s against {name}: {ratio(taken, OURS, name)}"
    yield from bench.results.commits_told()


def figure(curves: dict[str, list[Curve]], path: str) -> None:
    """Both views, the mean of the seeds as a line and what lies between them as a band. Greys and colours that light and dark pages bear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grey = "#8a8f98"
    pyplot.rcParams |= {"svg.hashsalt": "comparison", "font.size": 10, "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey}
    pyplot.rcParams |= {"xtick.color": grey, "ytick.color": grey}
    picture, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    colours = dict(zip(NAMES, ("#2f9e5b", "#d9822b", "#4c8dd6"), strict=True))
    for name, drawn in curves.items():
        mean, bits = middle(drawn), [[look.bits for look in looks] for looks in zip(*drawn, strict=True)]
        for panel, places in zip(panels, ([look.tokens / 1e6 for look in mean], [look.seconds / 60 for look in mean]), strict=True):
            panel.plot(places, [look.bits for look in mean], color=colours[name], linewidth=1.8, label=name)
            panel.fill_between(places, list(map(min, bits)), list(map(max, bits)), color=colours[name], alpha=0.25, linewidth=0)
    ends = [look.bits for drawn in curves.values() for looks in drawn for look in (looks[len(looks) // 10], looks[-1])]
    room = 0.04 * (max(ends) - min(ends))
    panels[0].set(xlabel="million tokens", ylabel="held-out bits per byte", ylim=(min(ends) - room, max(ends) + room))
    panels[1].set(xlabel="minutes of a GPU" if DEVICE.type == "cuda" else "minutes of a processor")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color=grey, alpha=0.2)
        panel.set_xlim(left=0)
        panel.locator_params(axis="x", nbins=6)
    panels[1].legend(frameon=False)
    picture.savefig(path, transparent=True, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    if sys.argv[1:]:  # in a process of its own
        print(three_steps(sys.argv[1]))
        return
    runs = len(NAMES) * (len(RATES) + len(SEEDS) - 1)
    print(f"{runs} runs of {TOKENS:,} tokens or more, {len(SEEDS)} of half as many, and {PAIRS} steps of each in turns", flush=True)
    bench, rates, curves = Bench(), {}, {}
    for name in NAMES:
        rates[name] = tried(RATES, lambda rate, name=name: bench.run(name, rate, SEEDS[0])[-1].bits)
    best = {name: min(found, key=found.__getitem__) for name, found in rates.items()}
    for name, rate in best.items():
        curves[name] = [bench.run(name, rate, seed) for seed in SEEDS]
    halves = [bench.run(OURS, best[OURS], seed, TOKENS // 2) for seed in SEEDS]
    print("\n".join(told(bench, rates, curves, halves)))
    if FIGURE:
        figure(curves, FIGURE)


if __name__ == "__main__":
    main()
