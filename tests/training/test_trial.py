"""Steps that are timed before a run: what they tell is what a run then tells, and what can't be taken is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.preset import load_preset
from lm.preset.counting import operations_per_token
from lm.preset.holding import expected_vocabulary
from lm.training import train, trial
from lm.training.paces import kept_pace
from lm.training.trial import NO_MEMORY, Trial, tried
from tests.training.test_presets import SHIPPED, shortened
from tests.training.test_run import STEP, Tiny


def test_a_process_of_its_own_tells_it_in_a_line(tiny: Tiny) -> None:
    asked = {"preset": tiny().model_dump(mode="json"), "vocab_size": 500}
    done = subprocess.run([sys.executable, "-m", "lm.training.trial"], input=json.dumps(asked), capture_output=True, text=True, check=True)
    found = Trial(**json.loads(done.stdout))
    assert found.tokens_per_second and found.tokens_per_second > STEP and "CPU" in found.devices and 0 < found.device_share < 1
    assert found.text.startswith("100,000,000 tokens are to be read: about ") and " are free" in found.text


def test_it_foretells_the_pace_of_the_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a factor of two: this machine may have other work."""
    monkeypatch.setattr(trial, "peak_products", lambda device, precision: 1e10)
    preset = tiny(model={"hidden_size": 96, "num_layers": 4})
    found = tried(preset, 500)
    assert found.device_share == pytest.approx(operations_per_token(preset, 500) * found.tokens_per_second / 1e10)
    train(preset, tmp_path, 12 * STEP)
    pace = kept_pace(tmp_path, preset)
    assert pace and pace.devices == found.devices and pace.reading_bytes == found.reading_bytes > 0
    assert 0.5 < pace.tokens_per_second / found.tokens_per_second < 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_preset_can_be_tried(path: Path, corpus: Path) -> None:
    """With short rows: two of 64 tokens, as a step of the preset is cut and carried."""
    preset = shortened(path, corpus, 2, 64)
    assert tried(preset, expected_vocabulary(preset)).tokens_per_second


def test_what_is_too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = load_preset("configs/00_best_general.json")
    huge = preset.model_copy(update={"model": preset.model.model_copy(update={"hidden_size": 65_536, "num_heads": 256})})
    found = tried(huge, 8192)
    assert found.tokens_per_second is None and "lower model.hidden_size" in found.text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_memory_that_runs_out_is_told(error: Exception, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise error

    monkeypatch.setattr("lm.training.step.Teacher.step", fails)
    assert tried(tiny(), 500) == Trial(NO_MEMORY)
