"""A run after a finished one: its history, and no jump in the loss where it begins."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from lm.app.life import read_life
from lm.preset import Preset
from lm.training import train
from lm.training.snapshots import Snapshots
from tests.training.test_sources import STEP, of, trained

Tiny = Callable[..., Preset]
STEPS = 110


def test_a_new_run_begins_without_a_jump(tiny: Tiny, tmp_path: Path) -> None:
    """The learning rate rises from nothing again; the loss of its first steps is that of the last ones, and no moment is lost."""
    preset = tiny(train={"per_gpu_batch_size": 4, "learning_rate": 0.01, "warmup_share": 0.2, "decay_share": 0.2, "snapshot_every_minutes": 1000})
    first, second = trained(preset, tmp_path / "c", STEPS), trained(preset, tmp_path / "c", STEPS + 1)
    before, after = of(first, "step", "loss"), of(second, "step", "loss")
    rates = of(second, "step", "learning_rate")
    assert rates[0] < 0.05 * max(rates) and rates[0] < of(first, "step", "learning_rate")[-1]
    assert mean(before[:20]) - mean(before[-20:]) > 0.5, "something was learned"
    noise = max(before[-20:]) - min(before[-20:])
    assert mean(after[:20]) < mean(before[-20:]) + 0.5 * noise
    assert max(after[:20]) < max(before[-20:]) + 0.5 * noise
    assert mean(after[-20:]) < mean(before[-20:]), "and it goes on learning"


def test_the_life_tells_what_each_run_did(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for steps in (20, 21):
        trained(tiny(), folder, steps)
    snapshot = Snapshots(folder).newest()
    assert snapshot is not None
    first, second = snapshot.life["runs"]
    assert first["before"] == {} and first["after"] == second["before"] and set(first["after"]) == {"reference"}
    assert first["after"]["reference"]["at"] == 20 * STEP and second["after"]["reference"]["at"] == 41 * STEP
    assert second["after"]["reference"]["bits_per_byte"] < first["after"]["reference"]["bits_per_byte"]
    assert (first["tokens"], second["tokens"]) == (20 * STEP, 21 * STEP) and snapshot.life["sources"] == {"reference": 41 * STEP}


def test_a_run_that_read_nothing_was_none(tiny: Tiny, tmp_path: Path) -> None:
    """Stopped before its first step; then a run of another preset begins."""
    opened = []

    def stop() -> bool:
        return bool(opened)

    def observe(event: Mapping[str, Any]) -> None:
        opened.extend([1] * (event.get("text") == "opening the sources"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lm.training.setup.GLANCE", 30)  # the sources are reached before it looks
        train(tiny(), tmp_path, 20 * STEP, (observe,), stop)
    empty = Snapshots(tmp_path).read("current")
    assert [run["tokens"] for run in empty.life["runs"]] == [0] and "0 tokens in 1 run" in read_life(tmp_path).in_words()
    trained(tiny(data={"sources": [tiny().data.sources[0].model_dump() | {"name": "other"}], "vocab_size": 500}), tmp_path, 3)
    assert [run["tokens"] for run in Snapshots(tmp_path).read("current").life["runs"]] == [3 * STEP]
    assert f"{3 * STEP} tokens in 1 run · tiny at {3 * STEP} of {3 * STEP}" in read_life(tmp_path).in_words()
