"""Tokens a second of the program's own training steps, and the share of what the device can multiply: python -m tests.benchmarks.device_share

The default preset's model scaled to about 50M parameters, in large steps, compiled and not. Each way is measured twice: on batches that are on
hand, and as a run reads them, from the stream, with the share of the time that steps wait for it. Share: operations_per_token times the pace, over
the data sheet's products in bfloat16 (a square product's, where the device is not known).

SHARE_HIDDEN     512    SHARE_LAYERS   13     SHARE_LENGTH    512    SHARE_ROWS     256, of a step      SHARE_AT_ONCE   64 of them are read at a time
SHARE_STEPS      20     SHARE_LOADERS  4      SHARE_COMPILE   "off on"                                  SHARE_VOCABULARY   16,384

A look at whether it works, on a CPU: SHARE_HIDDEN=64 SHARE_LAYERS=2 SHARE_LENGTH=64 SHARE_ROWS=4 SHARE_AT_ONCE=4 SHARE_STEPS=3 SHARE_LOADERS=0
SHARE_COMPILE=off SHARE_VOCABULARY=512
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch

from data_sources import Batch, open_stream
from data_sources.prefetch import Prefetch
from data_sources.stream import Options
from data_sources.tokenizer import build_tokenizer
from lm.preset import Preset, count_parameters, load_preset
from lm.preset.counting import operations_per_token
from lm.training.distribution import Ranks, device_in_words
from lm.training.forecast import peak_products
from lm.training.setup import BATCHES_AHEAD
from lm.training.step import Teacher
from tests.benchmarks.measures import peak_bytes
from tests.benchmarks.teaching import BUDGET_WITHOUT_END, batches_of, teacher_of
from tests.benchmarks.text import chosen_data


def asked(name: str, otherwise: int) -> int:
    return int(os.environ.get(f"SHARE_{name}", otherwise))


HIDDEN, LAYERS, LENGTH, VOCABULARY = asked("HIDDEN", 512), asked("LAYERS", 13), asked("LENGTH", 512), asked("VOCABULARY", 16_384)
ROWS, AT_ONCE, STEPS, LOADERS = asked("ROWS", 256), asked("AT_ONCE", 64), asked("STEPS", 20), asked("LOADERS", 4)
COMPILE = os.environ.get("SHARE_COMPILE", "off on").split()
HEAD_SIZE, WARM, KEPT = 64, 3, 4


class Pace(NamedTuple):
    """What steps came to."""

    tokens_per_second: float  # of all of them together, with what they waited for
    step_seconds: float  # the median, without that
    waited: float  # share of the time that steps waited for their batches


def preset_of(compiled: str) -> Preset:
    """The default preset in the asked sizes."""
    preset = load_preset("configs/00_best_general.json")
    raw = preset.model_dump(mode="json")
    model = {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": max(1, HIDDEN // HEAD_SIZE), "seq_length": LENGTH}
    train = {"per_gpu_batch_size": AT_ONCE, "accumulation_steps": max(1, ROWS // AT_ONCE), "compile": compiled, "loader_processes": LOADERS}
    data = chosen_data(preset).model_copy(update={"vocab_size": VOCABULARY})
    return Preset.model_validate({"model": raw["model"] | model, "train": raw["train"] | train, "data": data.model_dump(mode="json")})


def paced(teacher: Teacher, sources: int, next_batch: Callable[[], Batch], device: torch.device) -> Pace:
    """Of STEPS steps, after some that warm up and compile. By the clock: the device works while the host waits."""
    waits, steps, read = [], [], 0
    for number in range(WARM + STEPS):
        began = time.perf_counter()
        batch = next_batch()
        have = time.perf_counter()
        tokens = teacher.step(batch, sources, 0, BUDGET_WITHOUT_END, number).tokens
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM:
            waits, steps, read = [*waits, have - began], [*steps, time.perf_counter() - have], read + tokens
    whole = sum(waits) + sum(steps)
    return Pace(read / whole, statistics.median(steps), sum(waits) / whole)


def told(what: str, pace: Pace, operations: float, peak: float) -> str:
    share = operations * pace.tokens_per_second / peak
    waits = f"{1000 * pace.step_seconds:,.1f} ms a step, {pace.waited:.1%} of the time waiting for data"
    return f"{what}: {pace.tokens_per_second:,.0f} tokens/s, {share:.1%} of the device's products ({waits})"


def measured(compiled: str, tokenizer: Any) -> Iterator[str]:
    """Lines on one way to train."""
    preset = preset_of(compiled)
    ranks, sources = Ranks(preset.train), len(preset.data.sources)
    teacher, _ = teacher_of(preset, len(tokenizer))
    operations, peak = operations_per_token(preset, len(tokenizer)), peak_products(ranks.device, ranks.precision)
    kept = [*islice(batches_of(preset, tokenizer), KEPT)]
    on_hand = cycle(kept)
    teacher.fit_memory(kept[0])
    name = f"compile {compiled}, {teacher.micro_rows} rows at a time"
    yield told(f"{name}, batches on hand", paced(teacher, sources, lambda: next(on_hand), ranks.device), operations, peak)
    if news := teacher.compiled.news():
        yield news["text"]
    reading = open_stream(preset.data, tokenizer, LENGTH, preset.step_rows, options=Options(workers=LOADERS))
    with reading as stream, Prefetch(stream, BATCHES_AHEAD) as ahead:
        yield told(f"{name}, from the stream", paced(teacher, sources, lambda: next(ahead)[0], ranks.device), operations, peak)
    yield f"{peak_bytes() / 2**20:,.0f} MiB at the most"


def main() -> None:
    preset = preset_of(COMPILE[0])
    tokenizer, ranks = build_tokenizer(preset.data, seed=0), Ranks(preset.train)
    operations, peak = operations_per_token(preset, len(tokenizer)), peak_products(ranks.device, ranks.precision)
    print(f"{device_in_words(ranks)}: {peak / 1e12:,.3g} TFLOP/s at best; {count_parameters(preset, len(tokenizer)).total:,} parameters, ", end="")
    print(f"{operations / 1e6:,.1f} MFLOP a token, {preset.step_rows} rows of {LENGTH} tokens in a step, {LOADERS} loaders", flush=True)
    for compiled in COMPILE:
        for line in measured(compiled, tokenizer):
            print(line, flush=True)


if __name__ == "__main__":
    main()
