"""The presets that are shipped, and each mechanism that is built, train on real text, stop and go on exactly."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sources.config import DataConfig
from lm.preset import MECHANISMS, Preset, load_preset
from lm.training import train


def steps(folder: Path) -> list[dict[str, Any]]:
    told = map(json.loads, (folder / "run.jsonl").read_text().splitlines())
    return [event for event in told if event["event"] == "step"]


@pytest.mark.parametrize("path", sorted(Path("configs").glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_shipped_presets_take_two_steps(path: Path, corpus: Path, tmp_path: Path) -> None:
    shipped = load_preset(path)
    text = DataConfig.model_validate({"sources": [{"type": "files", "path": str(corpus)}], "vocab_size": 500})
    preset = shipped.model_copy(update={"data": text, "train": shipped.train.model_copy(update={"eval_tokens": 1000})})
    train(preset, tmp_path, 2 * preset.step_rows * preset.model.seq_length)
    losses = [step["loss"] for step in steps(tmp_path)]
    assert len(losses) >= 2 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", [name for name, claim in MECHANISMS.items() if claim.built])
def test_each_mechanism_learns_and_goes_on_exactly(name: str, tiny: Callable[..., Preset], tmp_path: Path) -> None:
    preset = tiny(train={"eval_tokens": 1000, "snapshot_every_tokens": 5 * 256}, **{name: {"enabled": True}})
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train(preset, whole, 40 * 256)
    train(preset, halved, 40 * 256, should_stop=lambda: (halved / "run.jsonl").exists() and len(steps(halved)) >= 17)
    assert len(steps(halved)) < 40
    train(preset, halved, 40 * 256)
    losses, again = ([(step["tokens"], step["loss"], step["gradient_norm"]) for step in steps(folder)] for folder in (whole, halved))
    assert again == losses
    assert sum(loss for _, loss, _ in losses[-5:]) / 5 < losses[0][1] - 0.5
