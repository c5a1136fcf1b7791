"""bfloat16 on a CPU is taken where it pays, as measured; and a run that goes on in another precision says so."""

import pytest
import torch

from lm.model import build_model
from lm.training.certificate import certified
from lm.training.distribution import Ranks, bfloat16_gain, chosen_precision
from tests.training.test_run import Tiny


@pytest.mark.parametrize(("gain", "precision"), [(0.1, "float32"), (1.2, "float32"), (1.5, "bfloat16")])
def test_a_cpu_takes_what_is_clearly_faster(gain: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.distribution.bfloat16_gain", lambda: gain)
    assert chosen_precision("auto", on_gpu=False) == precision
    assert [chosen_precision(asked, on_gpu=False) for asked in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_products_are_timed_without_a_draw_from_the_random_state_of_the_run() -> None:
    before = torch.get_rng_state()
    assert 0.001 < bfloat16_gain.__wrapped__() < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_another_precision_is_another_device_to_a_run_that_goes_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another number of threads (tests/training/test_threads.py), what the certificate holds then differs."""
    preset, told = tiny(train={"precision": "auto"}), []
    for gain in (0.5, 2.0):
        monkeypatch.setattr("lm.training.distribution.bfloat16_gain", lambda gain=gain: gain)
        told.append(certified(build_model(preset, 50), [], Ranks(preset.train))["environment"]["device"])
    assert told == ["CPU (1 thread), float32", "CPU (1 thread), bfloat16"]
