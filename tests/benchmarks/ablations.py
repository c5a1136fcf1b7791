"""What the model's defaults are worth, each against what else could stand there: python -m tests.benchmarks.ablations

    time     processor time of a token in each arm's training steps against the default's, in turns (measures.paces): the median of the pairs, and where
             half of them lie. The default against itself says how well time is known. Where steps change along the run (ramps), pairs are of steps
             at equal distances in it, and their mean counts
    learn    held-out bits per byte after equal tokens, and after equal processor time: a run of its own, whose learning rate falls as it should, with as
             many more or fewer tokens as the arm's steps are faster or slower; the same run where 1 lies within that half of the pairs. The text that
             is held out is the same whatever the vocabulary

Every arm, and the default, is tried at each of ABLATIONS_RATES with the first seed, and at its best with the other seeds. All read the same
batches of a seed, but for ramps, which cut the same text into other steps; and first weights are alike wherever names and shapes agree. With another
vocabulary equal tokens are not equal text: equal time is what counts. Without isolation a row is one document in training; held-out documents are
read apart all the same, as they are in use. Parameters are the model's, without heads. Averages are evaluated in the place of the weights.

ABLATIONS_TOKENS    300,000    ABLATIONS_RATES   "4e-3 8e-3"    ABLATIONS_RESULTS   ablations.jsonl, where each run is kept: what was cut off goes on
ABLATIONS_SEEDS     "0 1 2"    ABLATIONS_ARMS    names of ARMS with semicolons between; all without
ABLATIONS_SIZE      small; "preset" for the model, the rows and the vocabulary of the default preset as they are

Text: the mix of the default preset from the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import functools
import os
import statistics
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data_sources import Batch
from data_sources.tokenizer import build_tokenizer
from lm.preset import Preset, count_parameters, load_preset
from lm.preset.compare import in_force
from lm.preset.training import BatchStage, LengthStage
from lm.training.evaluation import evaluate
from lm.training.learner import Learner
from lm.training.step import Teacher
from tests.benchmarks.measures import Ratio, Results, digest, paces, ratio, timed
from tests.benchmarks.teaching import BUDGET_WITHOUT_END, batches_of, in_use, on_what, teacher_of
from tests.benchmarks.text import LOCAL, held_out_texts

TOKENS = int(os.environ.get("ABLATIONS_TOKENS", 300_000))
SEEDS = tuple(map(int, os.environ.get("ABLATIONS_SEEDS", "0 1 2").split()))
RATES = tuple(map(float, os.environ.get("ABLATIONS_RATES", "4e-3 8e-3").split()))
RESULTS = Path(os.environ.get("ABLATIONS_RESULTS", "ablations.jsonl"))
PRESET = load_preset("configs/00_best_general.json")
DATA = PRESET.data if os.environ.get("HF_ENDPOINT") else LOCAL
SMALL = {"hidden_size": 96, "num_layers": 4, "num_heads": 4, "seq_length": 256, "activation": PRESET.model.activation}, 8, 2048
AS_IT_IS = PRESET.model.model_dump(mode="json"), PRESET.train.per_gpu_batch_size * PRESET.train.accumulation_steps, PRESET.data.vocab_size
MODEL, ROWS, VOCABULARY = AS_IT_IS if os.environ.get("ABLATIONS_SIZE", "small") == "preset" else SMALL
WIDTH, LAYERS, HEADS, LENGTH = MODEL["hidden_size"], MODEL["num_layers"], MODEL["num_heads"], MODEL["seq_length"]
WARM, PAIRS, HELD_OUT, LONGEST = 2, 20, 64, 4_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEFAULT, AGAIN = "default", "default again"


class Arm(NamedTuple):
    """What is otherwise than by default."""

    model: Mapping[str, Any] = {}
    auxiliary: Mapping[str, Any] = {}
    train: Mapping[str, Any] = {}
    fitted: bool = False  # the feed-forward is as wide as makes the model as large as the default
    vocabulary: int = VOCABULARY
    first: Callable[[nn.Module], None] = lambda model: None  # what becomes of first weights
    batch: Callable[[Batch], Batch] = lambda batch: batch

    @property
    def ramps(self) -> bool:
        """Whether steps change along the run."""
        return any(name.endswith("curriculum") for name in self.train)


def drawn_outputs(model: nn.Module) -> None:
    """Outputs of units as in GPT-2 (Radford et al. 2019): the less, the more of them add up."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.layers:
        for residual in layer:
            nn.init.normal_(residual.unit.output.weight, std=0.02 / (2 * len(model.layers)) ** 0.5, generator=generator)


def stages(**of: Sequence[tuple[float, int]]) -> dict[str, list[dict[str, int]]]:
    """Curricula whose stages end at shares of the run."""
    named = {"seq_length": "seq_length_curriculum", "rows": "batch_curriculum"}
    return {named[what]: [{"until_tokens": max(1, round(share * TOKENS)), what: value} for share, value in ramp] for what, ramp in of.items()}


ARMS = {
    DEFAULT: Arm(),
    "qk_norm off": Arm({"qk_norm": False}),
    "swiglu": Arm({"activation": "swiglu"}),
    "value_residual": Arm({"value_residual": True}),
    "outputs not zero": Arm(first=drawn_outputs),
    "untied": Arm({"tie_embeddings": False}),
    "soft cap 15": Arm({"logit_soft_cap": 15.0}),
    "soft cap 30": Arm({"logit_soft_cap": 30.0}),
    "no isolation": Arm(batch=Batch.undivided),
    "second_next": Arm(auxiliary={"enable_second_next": True}),
    "second_next, weight 0.3": Arm(auxiliary={"enable_second_next": True, "second_next_weight": 0.3}),
    "deeper, narrower": Arm({"hidden_size": WIDTH * 3 // 4, "num_layers": LAYERS * 2, "num_heads": HEADS * 3 // 4}, fitted=True),
    "wider, shallower": Arm({"hidden_size": WIDTH * 4 // 3 // HEADS // 2 * 2 * HEADS, "num_layers": LAYERS // 2}, fitted=True),
    "half the vocabulary": Arm(vocabulary=VOCABULARY // 2),
    "twice the vocabulary": Arm(vocabulary=VOCABULARY * 2),
    "adamw": Arm(train={"optimizer": "adamw"}),
    "average, a sixth": Arm(train={"average_tokens": TOKENS // 6}),
    "average, a thirtieth": Arm(train={"average_tokens": TOKENS // 30}),
    "average, a thirtieth, no decay": Arm(train={"average_tokens": TOKENS // 30, "decay_share": 0.0}),
    "batch ramp": Arm(train=stages(rows=[(0.1, ROWS // 4), (0.3, ROWS // 2)])),
    "length ramp": Arm(train=stages(seq_length=[(0.25, LENGTH // 4), (0.5, LENGTH // 2)], rows=[(0.25, ROWS * 4), (0.5, ROWS * 2)])),
}
CHOSEN = os.environ["ABLATIONS_ARMS"].split(";") if "ABLATIONS_ARMS" in os.environ else [name for name in ARMS if name != DEFAULT]


@functools.cache
def tokenizer_of(vocabulary: int) -> Any:
    return build_tokenizer(DATA.model_copy(update={"vocab_size": vocabulary}), seed=0)


class Text:
    """The batches of a preset's seed, each read and kept once for all that go through them."""

    def __init__(self, preset: Preset, vocabulary: int) -> None:
        self.kept: list[Batch] = []
        self.stream = batches_of(preset, tokenizer_of(vocabulary))

    def __iter__(self) -> Iterator[Batch]:
        index = 0
        while True:
            if index == len(self.kept):
                self.kept.append(next(self.stream))
            yield self.kept[index]
            index += 1


@functools.cache
def text_of(vocabulary: int, seed: int, lengths: tuple[LengthStage, ...], rows: tuple[BatchStage, ...]) -> Text:
    """One for all arms that read the same batches."""
    preset = preset_of(DEFAULT, RATES[0], seed)
    train = preset.train.model_copy(update={"seq_length_curriculum": lengths, "batch_curriculum": rows})
    return Text(preset.model_copy(update={"train": train}), vocabulary)


def batches_for(name: str, seed: int) -> Iterator[Batch]:
    arm, train = ARMS[name], preset_of(name, RATES[0], seed).train
    return map(arm.batch, text_of(arm.vocabulary, seed, train.seq_length_curriculum, train.batch_curriculum))


@functools.cache
def preset_of(name: str, rate: float, seed: int) -> Preset:
    arm = ARMS[name]
    train = {"per_gpu_batch_size": ROWS, "seed": seed, "optimizer": "muon", "learning_rate": rate, "warmup_share": 0.05} | arm.train

    def sized(width: int | None) -> Preset:
        sections = {"model": MODEL | {"ffn_size": width} | arm.model, "train": train, "auxiliary": dict(arm.auxiliary)}
        return Preset.model_validate({"name": name, "data": DATA.model_dump(mode="json"), **sections})

    if not arm.fitted:
        return sized(None)
    wanted = parameters_of(preset_of(DEFAULT, rate, seed), VOCABULARY)
    return min(map(sized, range(8, 1024, 4)), key=lambda preset: abs(parameters_of(preset, VOCABULARY) - wanted))


def parameters_of(preset: Preset, vocabulary: int) -> int:
    return count_parameters(preset, vocabulary).total


def taught_by(name: str, rate: float, seed: int) -> tuple[Teacher, Learner]:
    """The arm's model and heads, with the default's first weights wherever they fit, and what takes its steps."""
    arm, default, tokenizer = ARMS[name], preset_of(DEFAULT, rate, seed), tokenizer_of(ARMS[name].vocabulary)
    like = None if name == DEFAULT else teacher_of(default, len(tokenizer_of(VOCABULARY)))[1]
    return teacher_of(preset_of(name, rate, seed), len(tokenizer), like, tokenizer.pad_token_id, arm.first)


# What is measured.


def time_of(name: str) -> Ratio:
    """Seconds a token against the default's."""

    def taker(name: str) -> Callable[[int], int]:
        teacher, batches = taught_by(name, RATES[0], SEEDS[0])[0], along_the_run(name)
        return lambda number: teacher.step(batches[number], len(DATA.sources), 0, BUDGET_WITHOUT_END, number).tokens

    found = paces({AGAIN: taker(DEFAULT), name: taker(name)}, PAIRS, WARM)
    return ratio(found, AGAIN, name)


def along_the_run(name: str) -> list[Batch]:
    """WARM and PAIRS batches: the first, or where steps change along the run, those at equal distances in it."""
    batches = batches_for(name, SEEDS[0])
    if not ARMS[name].ramps:
        return list(islice(batches, WARM + PAIRS))
    run, ends = [], [0]
    while ends[-1] < TOKENS:
        run.append(next(batches))
        ends.append(ends[-1] + run[-1].tokens.numel())
    return run[:WARM] + [run[bisect(ends, (pair + 0.5) * TOKENS / PAIRS) - 1] for pair in range(PAIRS)]


def learned(name: str, rate: float, seed: int, tokens: int, texts: Sequence[str]) -> dict[str, float]:
    """Held-out bits per byte after `tokens`, and the seconds of the steps."""
    teacher, learner = taught_by(name, rate, seed)
    steps, read, seconds = 0, 0, 0.0
    for batch in batches_for(name, seed):
        taken: list[int] = []
        seconds += timed(lambda: taken.append(teacher.step(batch, len(DATA.sources), read, tokens, steps).tokens))  # noqa: B023 - done at once
        read, steps = read + taken[0], steps + 1
        if read >= tokens:
            break
    with in_use(teacher):
        found = evaluate(learner.model, tokenizer_of(ARMS[name].vocabulary), {"held out": texts}, preset_of(name, rate, seed))
    print(f"{name}, learning rate {rate:g}, seed {seed}: {found['bits_per_byte']:.4f} bits per byte after {read:,} tokens and {seconds:,.0f} s", flush=True)
    return {"bits": found["bits_per_byte"], "seconds": seconds}


class Bench:
    """The held-out text, and what was found on it."""

    def __init__(self) -> None:
        self.results = Results(RESULTS)

    @functools.cached_property
    def texts(self) -> list[str]:
        return held_out_texts(DATA, HELD_OUT, LONGEST)

    def time(self, name: str) -> Ratio:
        preset = preset_of(name, RATES[0], SEEDS[0])
        asked = {"what": "time", "arm": name, **on_what(preset), "tokens": TOKENS, "preset": digest(in_force(preset))}
        return Ratio(*self.results.of(asked, lambda: list(time_of(name))))

    def bits(self, name: str, rate: float, seed: int, tokens: int = TOKENS) -> float:
        preset = preset_of(name, rate, seed)
        asked = {"what": "run", "arm": name, "rate": rate, "seed": seed, "tokens": tokens, **on_what(preset), "preset": digest(in_force(preset))}
        return self.results.of(asked, lambda: learned(name, rate, seed, tokens, self.texts))["bits"]

    def rate(self, name: str) -> float:
        """The best of those that are tried."""
        return min(RATES, key=lambda rate: self.bits(name, rate, SEEDS[0]))

    def bits_at_time(self, name: str, seed: int) -> float:
        """After as much time as the default takes."""
        time = self.time(name)
        ramps = ARMS[name].ramps
        same = not ramps and time.low <= 1 <= time.high
        tokens = TOKENS if same else round(TOKENS / (time.mean if ramps else time.median))
        return self.bits(name, self.rate(name), seed, tokens)


# What is told.


def told(bench: Bench) -> Iterator[str]:
    """The table."""
    rate = bench.rate(DEFAULT)
    base = [bench.bits(DEFAULT, rate, seed) for seed in SEEDS]
    yield f"\n{DEVICE}, {', '.join(source.name for source in DATA.sources)}, {TOKENS:,} tokens, {len(SEEDS)} seeds, learning rates {RATES}"
    parameters = parameters_of(preset_of(DEFAULT, rate, SEEDS[0]), len(tokenizer_of(VOCABULARY)))
    yield f"default: {statistics.mean(base):.4f} bits per byte ({min(base):.4f} to {max(base):.4f}) at {rate:g}, {parameters:,} parameters"
    itself = bench.time(DEFAULT)
    yield f"default against itself: {itself.median:.2f} of the time ({itself.low:.2f} to {itself.high:.2f})\n"
    yield "| arm | parameters | learning rate | time | after equal tokens | after equal time |\n|---|---|---|---|---|---|"
    for name in CHOSEN:
        best, time = bench.rate(name), bench.time(name)
        columns = [[bench.bits(name, best, seed) for seed in SEEDS], [bench.bits_at_time(name, seed) for seed in SEEDS]]
        against = [spread([bits - plain for bits, plain in zip(column, base, strict=True)]) for column in columns]
        parameters = parameters_of(preset_of(name, best, SEEDS[0]), len(tokenizer_of(ARMS[name].vocabulary)))
        middle = time.mean if ARMS[name].ramps else time.median
        yield f"| {name} | {parameters:,} | {best:g} | {middle:.2f} ({time.low:.2f} to {time.high:.2f}) | {' | '.join(against)} |"
    yield from bench.results.commits_told()


def spread(differences: Sequence[float]) -> str:
    return f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"


def main() -> None:
    if unknown := set(CHOSEN) - set(ARMS):
        raise SystemExit(f"no such arms: {sorted(unknown)}; there are {'; '.join(ARMS)}")
    runs = (len(CHOSEN) + 1) * (len(RATES) + len(SEEDS) - 1)
    print(f"{runs} runs of {TOKENS:,} tokens, up to {len(CHOSEN) * len(SEEDS)} of as much time, and {len(CHOSEN) + 1} of {PAIRS} pairs of steps", flush=True)
    bench = Bench()
    for name in [DEFAULT, *CHOSEN]:
        bench.time(name)
    for seed in SEEDS:  # the first tries the rates
        for name in [DEFAULT, *CHOSEN]:
            bench.bits(name, bench.rate(name), seed)
    print("\n".join(told(bench)))


if __name__ == "__main__":
    main()
