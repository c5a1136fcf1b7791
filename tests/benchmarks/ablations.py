"""What the model's defaults are worth, each against what else could stand there: python -m tests.benchmarks.ablations

    time     processor time of a training step of each arm against the default's: both take the same batch in turn and take turns at going first, and the
             median of the paired ratios counts. "half the rate" does what the default does: how far it is from 1 is how well time is known
    learn    held-out bits per byte after equal tokens, and after equal processor time: a run of its own, whose learning rate falls as it should, with as
             many more or fewer tokens as the arm's steps are faster or slower. The text that is held out is the same whatever the vocabulary

Every run of a seed reads the same batches, from first weights that are alike wherever names and shapes agree. All learn at ABLATIONS_RATE (4e-3) but
where an arm's name says otherwise. With another vocabulary equal tokens are not equal text: bytes_per_token says how much they are, and equal time is
what counts. Without isolation a row is one document in training; held-out documents are read apart all the same, as they are in use. Parameters are
the model's, without heads.

Results are kept, a JSON line each, in ABLATIONS_RESULTS (ablations.jsonl), and never measured twice: what was cut off goes on. ABLATIONS_TOKENS
(300,000), ABLATIONS_SEEDS ("0 1 2") and ABLATIONS_ARMS (names with semicolons between, all) say how much of it. Text: the Hub that HF_ENDPOINT leads
to, else installed documentation.
"""

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data_sources import Batch, open_stream
from data_sources.tokenizer import build_tokenizer
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset, count_parameters, load_preset
from lm.training.distribution import Ranks
from lm.training.evaluation import encoded, evaluate
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher
from tests.benchmarks.teaching import alike
from tests.benchmarks.text import LOCAL, held_out_texts

TOKENS = int(os.environ.get("ABLATIONS_TOKENS", 300_000))
SEEDS = tuple(map(int, os.environ.get("ABLATIONS_SEEDS", "0 1 2").split()))
RATE = float(os.environ.get("ABLATIONS_RATE", 4e-3))
RESULTS = Path(os.environ.get("ABLATIONS_RESULTS", "ablations.jsonl"))
DATA = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
MODEL = {"hidden_size": 96, "num_layers": 4, "num_heads": 4, "seq_length": 256}
ROWS, VOCABULARY, PAIRS, HELD_OUT, LONGEST = 8, 2048, 20, 64, 4_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TERMS = {"tokens": TOKENS, "rate": RATE, "device": DEVICE, "sources": [source.name for source in DATA.sources]}
clock = time.perf_counter if DEVICE == "cuda" else time.process_time
DEFAULT = "default"


class Arm(NamedTuple):
    """What is otherwise than by default."""

    model: Mapping[str, Any] = {}
    auxiliary: Mapping[str, Any] = {}
    fitted: bool = False  # the feed-forward is as wide as makes the model as large as the default
    vocabulary: int = VOCABULARY
    rate: float = 1.0  # of the default's
    first: Callable[[nn.Module], None] = lambda model: None  # what becomes of first weights
    batch: Callable[[Batch], Batch] = lambda batch: batch


def drawn_outputs(model: nn.Module) -> None:
    """Outputs of units as in GPT-2 (Radford et al. 2019): the less, the more of them add up."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.layers:
        for residual in layer:
            nn.init.normal_(residual.unit.output.weight, std=0.02 / (2 * len(model.layers)) ** 0.5, generator=generator)


def one_document_a_row(batch: Batch) -> Batch:
    """The batch as if nothing began in it but rows."""
    edges = torch.arange(len(batch.lane) + 1, dtype=torch.int32) * batch.tokens.shape[1]
    return replace(batch, restart=torch.zeros_like(batch.restart), cu_seqlens=edges, restarts=0)


ARMS = {
    DEFAULT: Arm(),
    "qk_norm off": Arm({"qk_norm": False}),
    "qk_norm off, half the rate": Arm({"qk_norm": False}, rate=0.5),
    "half the rate": Arm(rate=0.5),
    "relu2": Arm({"activation": "relu2"}),
    "value_residual": Arm({"value_residual": True}),
    "outputs not zero": Arm(first=drawn_outputs),
    "untied": Arm({"tie_embeddings": False}),
    "soft cap 15": Arm({"logit_soft_cap": 15.0}),
    "soft cap 30": Arm({"logit_soft_cap": 30.0}),
    "no isolation": Arm(batch=one_document_a_row),
    "second_next": Arm(auxiliary={"enable_second_next": True}),
    "second_next, weight 0.3": Arm(auxiliary={"enable_second_next": True, "second_next_weight": 0.3}),
    "deeper, narrower": Arm({"hidden_size": 72, "num_layers": 8, "num_heads": 3}, fitted=True),
    "wider, shallower": Arm({"hidden_size": 128, "num_layers": 2}, fitted=True),
    "half the vocabulary": Arm(vocabulary=VOCABULARY // 2),
    "twice the vocabulary": Arm(vocabulary=VOCABULARY * 2),
}
CHOSEN = os.environ["ABLATIONS_ARMS"].split(";") if "ABLATIONS_ARMS" in os.environ else [name for name in ARMS if name != DEFAULT]


@functools.cache
def tokenizer_of(vocabulary: int) -> Any:
    return build_tokenizer(DATA.model_copy(update={"vocab_size": vocabulary}), seed=0)


class Text:
    """The batches of a seed, each read and kept once for all that go through them."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.kept: list[Batch] = []
        self.stream = open_stream(DATA, tokenizer_of(vocabulary), MODEL["seq_length"], ROWS, seed=seed)

    def __iter__(self) -> Iterator[Batch]:
        index = 0
        while True:
            if index == len(self.kept):
                self.kept.append(next(self.stream)[0])
            yield self.kept[index]
            index += 1


text_of = functools.cache(Text)


@functools.cache
def preset_of(name: str, seed: int) -> Preset:
    arm = ARMS[name]
    train = {"per_gpu_batch_size": ROWS, "seed": seed, "learning_rate": RATE * arm.rate, "warmup_share": 0.05}

    def sized(width: int | None) -> Preset:
        sections = {"model": MODEL | {"ffn_size": width} | arm.model, "train": train, "auxiliary": dict(arm.auxiliary)}
        return Preset.model_validate({"name": name, "data": DATA.model_dump(mode="json"), **sections})

    if not arm.fitted:
        return sized(None)
    wanted = parameters_of(preset_of(DEFAULT, seed), VOCABULARY)
    return min(map(sized, range(8, 1024, 4)), key=lambda preset: abs(parameters_of(preset, VOCABULARY) - wanted))


def parameters_of(preset: Preset, vocabulary: int) -> int:
    count = count_parameters(preset, vocabulary)
    assert count is not None
    return count.total


def learner_of(name: str, seed: int) -> Learner:
    """The arm's model and heads, with the default's first weights wherever they fit."""
    arm, preset, tokenizer = ARMS[name], preset_of(name, seed), tokenizer_of(ARMS[name].vocabulary)
    torch.manual_seed(seed)
    learner = Learner(build_model(preset, len(tokenizer)), build_heads(preset, tokenizer.pad_token_id))
    if name != DEFAULT:
        learner = alike(learner, learner_of(DEFAULT, seed))
    arm.first(learner.model)
    return learner


def teacher_of(name: str, seed: int) -> tuple[Teacher, Learner]:
    preset = preset_of(name, seed)
    ranks = Ranks(preset.train)
    learner = learner_of(name, seed).to(ranks.device)
    return Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights), learner


def timed(teacher: Teacher, batch: Batch, read: int, tokens: int, steps: int) -> tuple[int, float]:
    """Tokens of a step, and the seconds it took."""
    began = clock()
    taken = teacher.step(batch, len(DATA.sources), read, tokens, steps).tokens
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return taken, clock() - began


def ratio_of(name: str) -> float:
    """Seconds a token against the default's."""
    teachers = {each: teacher_of(each, SEEDS[0])[0] for each in (DEFAULT, name)}
    batches = {each: ARMS[each].batch(next(iter(text_of(ARMS[each].vocabulary, SEEDS[0])))) for each in teachers}
    ratios = []
    for pair in range(PAIRS + 1):
        costs = {}
        for each in [*teachers][:: -1 if pair % 2 else 1]:  # who goes second finds other caches
            tokens, seconds = timed(teachers[each], batches[each], 0, 10**9, pair)
            costs[each] = seconds / tokens
        ratios.append(costs[name] / costs[DEFAULT])
    return statistics.median(ratios[1:])  # the first warms up


def run(name: str, seed: int, tokens: int, texts: Sequence[str]) -> tuple[float, float]:
    """Held-out bits per byte after `tokens`, and the seconds of the steps."""
    arm = ARMS[name]
    teacher, learner = teacher_of(name, seed)
    read = steps = 0
    seconds = 0.0
    for batch in text_of(arm.vocabulary, seed):
        taken, took = timed(teacher, arm.batch(batch), read, tokens, steps)
        read, steps, seconds = read + taken, steps + 1, seconds + took
        if read >= tokens:
            break
    found = evaluate(learner.model, tokenizer_of(arm.vocabulary), {"held out": texts}, preset_of(name, seed))
    return found["bits_per_byte"], seconds


def measured(name: str, seed: int, ratio: float, texts: Sequence[str]) -> dict[str, Any]:
    tokenizer = tokenizer_of(ARMS[name].vocabulary)
    bits, seconds = run(name, seed, TOKENS, texts)
    at_time = round(TOKENS / ratio)
    same = abs(at_time - TOKENS) < ROWS * MODEL["seq_length"]
    sample = texts[:8]
    return {
        "bits": bits,
        "seconds": seconds,
        "tokens_at_time": at_time,
        "bits_at_time": bits if same else run(name, seed, at_time, texts)[0],
        "parameters": parameters_of(preset_of(name, seed), len(tokenizer)),
        "bytes_per_token": sum(len(text.encode()) for text in sample) / sum(len(encoded(tokenizer, text)) for text in sample),
    }


def known_lines() -> list[dict[str, Any]]:
    """What was measured on these terms."""
    lines = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else [])
    return [line for line in lines if TERMS.items() <= line.items()]


def keep(**line: Any) -> dict[str, Any]:
    line |= TERMS
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    return line


def main() -> None:
    lines = known_lines()
    ratios = {DEFAULT: 1.0} | {line["arm"]: line["ratio"] for line in lines if "ratio" in line}
    for name in CHOSEN:
        if name not in ratios:
            ratios[name] = keep(arm=name, ratio=ratio_of(name))["ratio"]
    texts = held_out_texts(DATA, HELD_OUT, LONGEST)
    found = {(line["arm"], line["seed"]): line for line in lines if "seed" in line}
    for seed in SEEDS:
        for name in [DEFAULT, *CHOSEN]:
            if (name, seed) not in found:
                found[name, seed] = keep(arm=name, seed=seed, **measured(name, seed, ratios[name], texts))
    tell(found, ratios)


def tell(found: Mapping[tuple[str, int], Mapping[str, Any]], ratios: Mapping[str, float]) -> None:
    """The table."""
    base = [found[DEFAULT, seed]["bits"] for seed in SEEDS]
    print(f"\n{DEVICE}, {TERMS['sources']}, {TOKENS:,} tokens, {len(SEEDS)} seeds, learning rate {RATE:g}")
    print(f"default: {statistics.mean(base):.4f} bits per byte ({min(base):.4f} to {max(base):.4f}), {found[DEFAULT, SEEDS[0]]['parameters']:,} parameters\n")
    print("| arm | parameters | time | after equal tokens | after equal time |\n|---|---|---|---|---|")
    for name in CHOSEN:
        columns = [spread([found[name, seed][key] - found[DEFAULT, seed]["bits"] for seed in SEEDS]) for key in ("bits", "bits_at_time")]
        print(f"| {name} | {found[name, SEEDS[0]]['parameters']:,} | {ratios[name]:.2f} | {' | '.join(columns)} |")


def spread(differences: Sequence[float]) -> str:
    return f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"


if __name__ == "__main__":
    main()
