"""Steps that read more rows as a life goes on: through stops, on other numbers of processes, and beside all that counts in rows."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.preset import Preset
from lm.training.snapshots import Snapshots
from tests.training.elastic import taken_over
from tests.training.test_run import Recorder, train

Tiny = Callable[..., Preset]
LENGTH, LAST = 64, 4
STAGES = [{"until_tokens": 7 * LENGTH, "rows": 1}, {"until_tokens": 30 * LENGTH, "rows": 3}]  # 7 steps, then 8
TOKENS = (7 * 1 + 8 * 3 + 8 * LAST) * LENGTH  # of twenty-three steps
RAMP = {"batch_curriculum": STAGES, "per_gpu_batch_size": 2, "accumulation_steps": 2}
STEP_KEYS = ("batch_hash", "loss", "losses", "units", "gradient_norm", "learning_rate", "tokens", "life_tokens", "step")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows that grow too": {"train": {"seq_length_curriculum": [{"until_tokens": 5 * LENGTH, "seq_length": 32}]}},
    "adaptive, with loaders": {"auxiliary": {"enable_adaptive_sources": True, "adaptive_interval_tokens": 500}, "train": {"loader_processes": 2}},
    "a memory": {"retro": {"enabled": True, "layers": [1], "chunk_size": 8, "memory_chunks": 2000}},
    "objectives": {"train": {"objectives": [{"until_tokens": 20 * LENGTH, "objective": "ul2"}]}},
    "states": {
        "s5": {"enabled": True},
        "train": {"long_context": {"enabled": True, "context_length": 200, "chunk_length": 32}},
    },
}


def run(preset: Preset, folder: Path, budget: int = TOKENS, stop_after: int | None = None) -> Recorder:
    recorder = Recorder(stop_after)
    train(preset, folder, budget, observers=(recorder,), should_stop=recorder.stop)
    return recorder


def ramp(tiny: Tiny, sections: Mapping[str, Any]) -> Preset:
    return tiny(**{**sections, "train": {**RAMP, **sections.get("train", {})}})


def sizes_of(steps: list[Mapping[str, Any]]) -> list[int]:
    return [after - before for before, after in pairwise([0, *(step["life_tokens"] for step in steps)])]


@pytest.mark.parametrize("sections", [pytest.param(each, marks=[pytest.mark.slow] * (name != "plain"), id=name) for name, each in KINDS.items()])
def test_steps_at_once_equal_those_before_and_after_stops_across_borders(sections: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    preset = ramp(tiny, sections)
    whole = run(preset, tmp_path / "once").of("step")
    if not sections.get("train", {}).keys() & {"seq_length_curriculum", "objectives"}:  # rows are short, or have gaps at their ends
        assert sizes_of(whole) == [LENGTH] * 7 + [3 * LENGTH] * 8 + [LAST * LENGTH] * 8
    steps = []
    for stop_after in (13, 5, None):  # the second border is after the fifteenth step
        part = run(preset, tmp_path / "parts", stop_after=stop_after)
        assert [event["exact"] for event in part.events if event["event"] in ("resume", "certificate")] == [True, True] * bool(steps)
        steps += part.of("step")
    for key in STEP_KEYS:
        assert [event[key] for event in steps] == [event[key] for event in whole], key
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("once", "parts"))
    for part in ("weights", "optimizer", "carried"):
        ours, theirs = getattr(one, part), getattr(two, part)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), part
    without_names = [[[place[:2] for place in run.pop("memory") or []], run] for run in (one.run, two.run)]  # of who wrote the memory
    assert one.cursor == two.cursor and without_names[0] == without_names[1]


def test_another_curriculum_begins_where_the_life_stands(tiny: Tiny, tmp_path: Path) -> None:
    first = run(ramp(tiny, {}), tmp_path, stop_after=9)
    assert sizes_of(first.of("step"))[-1] == 3 * LENGTH
    later = [{"until_tokens": 5 * LENGTH, "rows": 9}, {"until_tokens": 20 * LENGTH, "rows": 2}]
    second = run(ramp(tiny, {"train": {"batch_curriculum": later}}), tmp_path, stop_after=6)
    assert second.of("resume")[0]["differs"] == ["train.batch_curriculum is another"]
    life = 13 * LENGTH  # 7 steps of a row, 2 of three
    assert [size // LENGTH for size in sizes_of([{"life_tokens": life}, *second.of("step")])][1:] == [2, 2, 2, 2, LAST, LAST]


@pytest.mark.slow
@pytest.mark.parametrize("sections", [KINDS["plain"], KINDS["adaptive, with loaders"]], ids=["plain", "adaptive, with loaders"])
def test_steps_move_to_other_numbers_of_processes(sections: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    """On one, then on two across a border, of which one has no row at first; then on three."""
    preset = ramp(tiny, sections)
    whole = run(preset, tmp_path / "whole").of("step")
    moved = run(preset, tmp_path / "moved", stop_after=4).of("step")
    for processes, steps in ((2, 13), (3, 100)):
        told = taken_over(processes, preset, tmp_path, tmp_path / "moved", TOKENS, steps)
        moved += [event for event in told if event["event"] == "step"]
    for key in ("batch_hash", "tokens", "life_tokens", "step"):
        assert [event[key] for event in moved] == [event[key] for event in whole], key
    assert [event["loss"] for event in moved] == pytest.approx([event["loss"] for event in whole], rel=2e-4)
