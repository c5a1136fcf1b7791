"""A run after a finished one: its history, and no jump in the loss where it begins."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean

from lm.preset import Preset
from lm.training.snapshots import Snapshots
from tests.training.test_sources import STEP, of, trained

Tiny = Callable[..., Preset]
STEPS = 200


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
