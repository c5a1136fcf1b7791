"""Weights that change while reading: exact through every stop, followed from their interval on, and never zero."""

import json
import math
import random
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources import Prefetch, open_stream
from data_sources.config import DataConfig
from data_sources.feed import Closed
from data_sources.stream import Options
from data_sources.weights import WeightSchedule, adapted_weights, base_weights, smoothed_losses
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, rows_of, three_sources, write_jsonl

ROWS, INTERVAL = 30, 120
WEIGHTS = {2: (0.1, 0.2, 0.7), 3: (0.6, 0.3, 0.1), 4: (0.2, 0.2, 0.6)}


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path, mix_strategy="weighted", source_weights=[5.0, 3.0, 2.0])


def scheduled(data: DataConfig, rows: int = INTERVAL) -> WeightSchedule:
    schedule = WeightSchedule(base_weights(data), rows)
    for interval, weights in WEIGHTS.items():
        schedule.announce(interval, weights)
    return schedule


def test_the_weights_of_its_interval_stand_in_each_cursor(mix: DataConfig) -> None:
    made = global_batches(mix, 20, ROWS, options=Options(schedule=scheduled(mix)))
    assert [tuple(cursor["weights"]) for _, cursor in made] == [({0: (0.5, 0.3, 0.2), 1: (0.5, 0.3, 0.2)} | WEIGHTS)[number // 4] for number in range(20)]
    plain = global_batches(mix, 20, ROWS)
    assert made[:8] == plain[:8], "base weights change nothing"
    assert [rows for rows, _ in made[8:]] != [rows for rows, _ in plain[8:]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_resume_anywhere_is_exact(mix: DataConfig, world_size: int) -> None:
    """In the middle of an interval and right at its end; the schedule of the new process knows nothing of the intervals before."""
    whole = global_batches(mix, 20, ROWS, options=Options(schedule=scheduled(mix)))
    for stop in (3, 8, 9, 12, 15, 16):
        late = WeightSchedule(base_weights(mix), INTERVAL)
        for interval in range(stop // 4, 5):
            if interval > 1 and (interval > stop // 4 or stop % 4 == 0):
                late.announce(interval, WEIGHTS[interval])
        assert global_batches(mix, 4, ROWS, world_size, cursor=whole[stop - 1][1], options=Options(schedule=late)) == whole[stop : stop + 4], stop


def test_a_resume_is_exact_where_batches_straddle_intervals(mix: DataConfig) -> None:
    """After 20 rows cut in fours, batches of six begin neither where an interval of twelve does nor end there."""
    data, interval = mix.model_copy(update={"sources": tuple(s.model_copy(update={"repeat": True}) for s in mix.sources)}), 12
    settled = {number: WEIGHTS[2 + number % 3] for number in range(2, 12)}

    def schedule(first: int) -> WeightSchedule:
        made = WeightSchedule(base_weights(data), interval)
        for number, weights in settled.items():
            if number >= first:
                made.announce(number, weights)
        return made

    start = global_batches(data, 5, 4, options=Options(schedule=schedule(2)))[-1][1]
    whole = global_batches(data, 12, 6, cursor=start, options=Options(schedule=schedule(2)))
    assert whole[0][1]["weighed"] == 20 and tuple(whole[0][1]["weights"]) == base_weights(data), "rows 24 and 25 are of the next interval"
    for stop in range(1, 11):
        cursor = whole[stop - 1][1]
        late = schedule(cursor["next_row"] // interval)
        assert global_batches(data, 2, 6, stop % 2 + 1, cursor=cursor, options=Options(schedule=late)) == whole[stop : stop + 2], stop


def test_reading_ahead_waits_for_what_training_says(mix: DataConfig) -> None:
    """Weights of k + 2 are announced when k has been trained on, as a loop does it: nothing waits for ever, and nothing differs."""
    whole = [rows for rows, _ in global_batches(mix, 20, ROWS, options=Options(schedule=scheduled(mix)))]
    schedule = WeightSchedule(base_weights(mix), INTERVAL)
    with Prefetch(open_stream(mix, byte_tokenizer(), 37, ROWS, options=Options(schedule=schedule)), 3) as ahead:
        for number, (batch, cursor) in enumerate(islice(ahead, 20)):
            assert sorted(rows_of(batch)) == whole[number]
            assert json.loads(json.dumps(cursor)) == cursor
            if number % 4 == 3 and number // 4 + 2 in WEIGHTS:
                schedule.announce(number // 4 + 2, WEIGHTS[number // 4 + 2])


def test_waiting_for_weights_ends_with_the_stream(mix: DataConfig) -> None:
    with open_stream(mix, byte_tokenizer(), 37, ROWS, options=Options(schedule=WeightSchedule(base_weights(mix), ROWS))) as stream:
        next(stream)
        next(stream)
        threading.Timer(0.3, stream.stop).start()
        began = time.monotonic()
        with pytest.raises(Closed):
            next(stream)
        assert time.monotonic() - began < 3


def test_shares_follow_the_weights_of_each_interval(tmp_path: Path) -> None:
    """Documents of unlike length, and weights that jump: from each change on the shares are the new ones, without making up for the old."""
    texts = paragraphs(600)
    write_jsonl(tmp_path / "short.jsonl", sorted(texts, key=len)[:300])
    write_jsonl(tmp_path / "long.jsonl", ["\n\n".join(texts[start : start + 6]) for start in range(0, 600, 4)])
    sources = files("short", tmp_path / "short.jsonl", repeat=True), files("long", tmp_path / "long.jsonl", repeat=True)
    data = data_config(*sources, mix_strategy="round_robin", source_weights=[1.0, 9.0])
    assert base_weights(data) == (0.5, 0.5)
    schedule = WeightSchedule(base_weights(data), 48 * 24)
    shares = [0.5, 0.5, 0.95, 0.1, 0.6]
    for interval, share in enumerate(shares):
        if interval > 1:
            schedule.announce(interval, (share, 1 - share))
    with open_stream(data, byte_tokenizer(), 300, 48, options=Options(schedule=schedule)) as stream:
        counts = [sum(torch.bincount(batch.source.flatten(), minlength=2) for batch, _ in islice(stream, 24)) for _ in shares]
    for share, count in zip(shares, counts, strict=True):
        assert abs(count[0] / count.sum() - share) < 0.06, counts


def test_sequential_stays_sequential(tmp_path: Path) -> None:
    data = three_sources(tmp_path, mix_strategy="sequential")
    made = global_batches(data, 10, ROWS, options=Options(schedule=scheduled(data)))
    assert [rows for rows, _ in made] == [rows for rows, _ in global_batches(data, 10, ROWS)] and "weights" not in made[0][1]


def test_a_schedule_that_cannot_be_meant(mix: DataConfig) -> None:
    for schedule, words in ((scheduled(mix, 100), "multiple of the 30 rows"), (WeightSchedule((0.5, 0.5), 30), "2 weights for 3 sources")):
        with pytest.raises(ValueError, match=words):
            open_stream(mix, byte_tokenizer(), 37, ROWS, options=Options(schedule=schedule))
    schedule = scheduled(mix)
    schedule.announce(2, WEIGHTS[2])
    for interval, weights in ((2, (0.2, 0.2, 0.6)), (9, (0.0, 0.5, 0.5)), (9, (math.nan, 0.5, 0.5)), (9, ())):
        with pytest.raises(ValueError, match="weights"):
            schedule.announce(interval, weights)
    with pytest.raises(ValueError, match="interval_rows"):
        WeightSchedule((1.0,), 0)


# The update


def test_smoothing() -> None:
    first = smoothed_losses(None, [4.0, None, 2.0], 0.9)
    assert first == (4.0, None, 2.0)
    assert smoothed_losses(first, [2.0, 3.0, None], 0.9) == (pytest.approx(3.8), 3.0, 2.0)
    assert smoothed_losses(first, [math.nan, math.inf, -1.0], 0.5) == first
    assert smoothed_losses(first, [1.0, 1.0, 1.0], 0.0) == (1.0, 1.0, 1.0)


def test_higher_loss_higher_weight() -> None:
    assert adapted_weights((0.25, 0.75), (3.0, 3.0), 0.5, 3.0) == pytest.approx((0.25, 0.75))
    assert adapted_weights((0.5, 0.5), (3.0, 1.0), 0.5, 3.0) == pytest.approx((0.75, 0.25))
    assert adapted_weights((0.5, 0.5), (9.0, 1.0), 0.5, 1.5) == pytest.approx((0.75, 0.25)), "clamped at both ends"
    assert adapted_weights((0.5, 0.5), (None, 2.0), 0.5, 3.0) == (0.5, 0.5), "what was never measured is left alone"
    assert adapted_weights((0.5, 0.5), (0.0, 0.0), 0.5, 3.0) == (0.5, 0.5)
    assert adapted_weights((2.0, 6.0), (None, None), 0.5, 3.0) == (0.25, 0.75)


def test_weights_are_never_zero_and_never_nothing() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        count = draw.randint(1, 6)
        base = [10 ** draw.uniform(-6, 3) for _ in range(count)]
        losses: list[Any] = [draw.choice([None, 0.0, 10 ** draw.uniform(-9, 9)]) for _ in range(count)]
        lowest, highest = draw.uniform(0.001, 1), draw.uniform(1, 1000)
        old = tuple(draw.choice([None, draw.uniform(0, 9)]) for _ in range(count))
        smoothed = smoothed_losses(old, losses, draw.uniform(0, 0.999))
        weights = adapted_weights(base, smoothed, lowest, highest)
        assert all(math.isfinite(weight) and weight > 0 for weight in weights) and sum(weights) == pytest.approx(1)
        factors = [weight / (share / sum(base)) for weight, share in zip(weights, base, strict=True)]
        assert max(factors) / min(factors) <= highest / lowest * 1.01 or min(weights) < 1e-8
        for number, loss in enumerate(smoothed):
            assert old[number] is None or loss is not None
        known = sorted((loss, factors[number]) for number, loss in enumerate(smoothed) if loss is not None)
        assert all(one[1] <= other[1] * 1.001 for one, other in zip(known, known[1:], strict=False)) or min(weights) < 1e-8
