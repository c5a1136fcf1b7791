"""The presets that are shipped, and each mechanism that is built, train on real text, stop and go on exactly."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sources.config import DataConfig
from lm.preset import MECHANISMS, Preset, layer_plan, load_preset
from lm.training import train

STEP = 4 * 64  # tokens
SHIPPED = sorted(Path("configs").glob("[0-9]*.json"))
MODELS = sorted({layer_plan(load_preset(path)): path for path in reversed(SHIPPED)}.values())  # one preset of each


def steps(folder: Path) -> list[dict[str, Any]]:
    told = map(json.loads, (folder / "run.jsonl").read_text().splitlines())
    return [event for event in told if event["event"] == "step"]


def shortened(path: Path, corpus: Path, rows: int, length: int, **train_switches: Any) -> Preset:
    """A shipped preset over the corpus, with rows of `length` and all that is measured by them in the same proportion."""
    shipped = load_preset(path)
    text = DataConfig.model_validate({"sources": [{"type": "files", "path": str(corpus), "repeat": True}], "vocab_size": 500})
    times = shipped.model.seq_length // length
    long = shipped.train.long_context
    stages = shipped.train.seq_length_curriculum
    sizes = {
        "per_gpu_batch_size": rows,
        "eval_tokens": 1000,
        "long_context": long.model_copy(update={"chunk_length": long.chunk_length // times}),
        "seq_length_curriculum": tuple(stage.model_copy(update={"until_tokens": rows * length, "seq_length": stage.seq_length // times}) for stage in stages),
    }
    model = shipped.model.model_copy(update={"seq_length": length})
    train_config = shipped.train.model_copy(update=sizes | train_switches)
    return Preset.model_validate(shipped.model_copy(update={"data": text, "model": model, "train": train_config}).model_dump())


def test_the_default_preset_takes_two_steps_of_a_short_row(corpus: Path, tmp_path: Path) -> None:
    two_steps(shortened(SHIPPED[0], corpus, rows=1, length=64), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_presets_take_two_steps(path: Path, corpus: Path, tmp_path: Path) -> None:
    shipped = load_preset(path)
    two_steps(shortened(path, corpus, shipped.train.per_gpu_batch_size, shipped.model.seq_length), tmp_path)


def two_steps(preset: Preset, folder: Path) -> None:
    train(preset, folder, 2 * preset.step_rows * preset.model.seq_length)
    losses = [step["loss"] for step in steps(folder)]
    assert len(losses) >= 2 and all(map(math.isfinite, losses))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_shipped_presets_predict_unseen_text_better(path: Path, corpus: Path, tmp_path: Path) -> None:
    """Their own widths, layers and learning rate, on shorter rows."""
    preset = shortened(path, corpus, rows=8, length=128, evaluate_every_tokens=10 * 256)
    told: list[Any] = []
    train(preset, tmp_path, 50 * 256, observers=(told.append,))
    measured = [event["cross_entropy"] for event in told if event["event"] == "evaluation"]
    assert math.log(500) > measured[0] > measured[-1] + 0.4, measured


EVERYTHING = {  # every mechanism that is built, and every option of the plan, in one model of twelve layers
    "model": {"num_layers": 12},
    "longformer": {"enabled": True, "layers": [1], "window": 16, "global_tokens": 2},
    "s5": {"enabled": True, "layers": [2], "state_size": 8},
    "hyena": {"enabled": True, "layers": [3]},
    "rwkv": {"enabled": True, "layers": [4]},
    "mamba2": {"enabled": True, "layers": [5], "state_size": 8},
    "gla": {"enabled": True, "layers": [6]},
    "deltanet": {"enabled": True, "layers": [7]},
    "colt5_attention": {"enabled": True, "layers": [8], "window": 8},
    "shared_attention": {"enabled": True, "layers": [9, 10, 11]},
    "retro": {"enabled": True, "layers": [1, 6, 9], "chunk_size": 8},
    "rwkv_channel": {"enabled": True, "layers": [4]},
    "moe": {"enabled": True, "layers": [1, 5, 9]},
    "colt5": {"enabled": True, "layers": [2, 6, 10]},
    "mixture_of_depths": {"enabled": True, "layers": [3, 5, 7]},
    "head_gating": {"enabled": True, "layers": [0, 3, 7], "ffn_groups": 0},
    "shared_ffn": {"enabled": True, "layers": [0, 3, 7, 8, 11]},
}


@pytest.mark.slow
def test_everything_at_once_stays_finite_and_learns(tiny: Callable[..., Preset], tmp_path: Path) -> None:
    assert {name for layer in layer_plan(tiny(**EVERYTHING)) for name in layer} == {"attention", "swiglu", *MECHANISMS}
    train(tiny(**EVERYTHING, train={"eval_tokens": 1000, "learning_rate": 0.003}), tmp_path, 200 * STEP)
    told = steps(tmp_path)
    assert len(told) >= 200 and told[-1]["skipped"] == 0
    assert all(math.isfinite(value) for step in told for value in (step["loss"], step["gradient_norm"], *step["losses"].values()))
    assert sum(step["loss"] for step in told[-10:]) / 10 < told[0]["loss"] - 1


def whole_and_halved(name: str, tiny: Callable[..., Preset], folder: Path, count: int) -> list[float]:
    """The losses of `count` steps, found the same at once and through a stop between two snapshots."""
    preset = tiny(train={"eval_tokens": 1000, "snapshot_every_tokens": 5 * STEP}, **{name: {"enabled": True}})
    whole, halved = folder / "whole", folder / "halved"
    train(preset, whole, count * STEP)
    train(preset, halved, count * STEP, should_stop=lambda: (halved / "run.jsonl").exists() and len(steps(halved)) >= count * 2 // 5)
    assert len(steps(halved)) < count
    train(preset, halved, count * STEP)
    losses, again = ([(step["tokens"], step["loss"], step["gradient_norm"]) for step in steps(each)] for each in (whole, halved))
    assert again == losses and len(losses) >= count
    return [loss for _, loss, _ in losses]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MECHANISMS, "head_gating", "shared_ffn"])
def test_each_mechanism_learns_and_goes_on_exactly(name: str, tiny: Callable[..., Preset], tmp_path: Path) -> None:
    losses = whole_and_halved(name, tiny, tmp_path, 40)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
