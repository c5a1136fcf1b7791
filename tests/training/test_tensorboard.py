"""TensorBoard's curves, read back by TensorBoard itself."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from lm.preset import Preset
from lm.training import Halted, train
from lm.training.snapshots import NAMES, SnapshotError, Snapshots
from lm.training.tensorboard import FOLDER, HELD_OUT, TensorBoard
from tests.training.test_run import STEP, Recorder, trained

Tiny = Callable[..., Preset]
OFF = {"evaluate_every_tokens": 4 * STEP}
ON = {"tensorboard": True, **OFF}
STEPS = 12


def points(folder: Path, curve: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder / FOLDER)).Reload()
    return [(point.step, point.value) for point in read.Scalars(curve)]


def meant(recorder: Recorder, name: str) -> list[tuple[int, float]]:
    return [(event["life_tokens"], pytest.approx(event[name], rel=1e-6)) for event in recorder.of("step")]


@pytest.fixture
def at_once(tiny: Tiny, tmp_path: Path) -> Recorder:
    """A run with curves from its first step to its last, in the folder "once"."""
    return trained(tiny(train=ON), tmp_path / "once", STEPS)


def test_every_step_and_every_evaluation_is_a_point_and_none_comes_twice(tiny: Tiny, tmp_path: Path, at_once: Recorder) -> None:
    folder = tmp_path / "once"
    for name in ("loss", "learning_rate", "tokens_per_second", "gradient_norm"):
        assert points(folder, f"step/{name}") == meant(at_once, name)
    for curve in ("losses/next_token", "sources/reference"):  # one loss and one source: the same, summed up in another order
        assert points(folder, curve) == [(at, pytest.approx(value, rel=1e-5)) for at, value in points(folder, "step/loss")]
    brief = [event for event in at_once.of("evaluation") if event["brief"]]
    assert brief
    for measure in HELD_OUT:
        values = [(event["tokens"], pytest.approx(event["sources"]["reference"][measure], rel=1e-6)) for event in brief]
        assert points(folder, f"held_out_brief/{measure}/reference") == points(folder, f"held_out_brief/{measure}") == values
    assert points(folder, "held_out/bits_per_byte") == [(STEPS * STEP, pytest.approx(at_once.of("evaluation")[-1]["bits_per_byte"], rel=1e-6))]

    # Three steps without curves, four with them that a sudden end undoes, and the rest.
    folder = tmp_path / "curves"
    first = trained(tiny(train=OFF), folder, STEPS, stop_after=3)
    assert not (folder / FOLDER).exists()
    kept = (folder / NAMES["current"]).read_bytes()
    lost = trained(tiny(train=ON), folder, STEPS, stop_after=4)
    (folder / NAMES["current"]).write_bytes(kept)
    rest = trained(tiny(train=ON), folder, STEPS)
    assert [event["loss"] for event in first.of("step") + rest.of("step")] == [event["loss"] for event in at_once.of("step")]
    for sitting in (lost, rest):
        assert sitting.of("resume")[0]["exact"] and not sitting.of("resume")[0]["differs"], "the switch is no difference"
    assert lost.of("step")[0]["batch_hash"] == rest.of("step")[0]["batch_hash"]
    assert points(folder, "step/loss") == meant(at_once, "loss")[3:]
    ours, theirs = (Snapshots(place).read("current") for place in (tmp_path / "once", folder))
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_a_model_that_reads_from_both_ends_has_held_out_curves_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    """Its figures are far lower than those of the causal model that it may have been before."""
    folder = tmp_path / "masked"
    ended = trained(tiny(model={"bidirectional": "own"}, train=ON | {"objective": "mlm"}), folder, 6).of("evaluation")[-1]
    assert points(folder, "pseudo_held_out/bits_per_byte") == [(6 * STEP, pytest.approx(ended["bits_per_byte"], rel=1e-6))]
    curves = EventAccumulator(str(folder / FOLDER)).Reload().Tags()["scalars"]
    assert "pseudo_held_out_brief/perplexity/reference" in curves and not [name for name in curves if name.startswith("held_out")]


def test_without_the_package_it_halts_before_anything_begins(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.tensorboard.find_spec", lambda name: None)
    with pytest.raises(Halted) as caught:
        train(tiny(train=ON), tmp_path / "checkpoints", budget_tokens=STEP)
    assert "pip install tensorboard" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def step(life_tokens: int) -> Mapping[str, Any]:
    about = dict.fromkeys(("loss", "learning_rate", "tokens_per_second", "gradient_norm"), 1.0)
    return {"event": "step", "life_tokens": life_tokens, "losses": {}, "sources": {"waits": {"loss": None}}, **about}


def test_a_full_disk_ends_the_curves_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    board = TensorBoard(tmp_path, 0, said.append)
    board(step(10))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RecordWriter, "flush", full)
        board(step(20))
        board(step(30))
    board(step(40))
    board.close()
    assert said == [f"{tmp_path / FOLDER}: can't be written any more: No space left on device; training goes on"]
    assert points(tmp_path, "step/loss")[0] == (10, 1.0)


def test_a_place_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("another program's")
    with pytest.raises(SnapshotError, match="tensorboard: can't be written"):
        TensorBoard(tmp_path, 0, print)
