"""A preset that would make another model of the one there is: a person sees what would become of it, and decides."""

import contextlib
import os

import pytest

from lm.preset import preset_from_json
from lm.training import train
from tests.app.conftest import TINY, write_preset
from tests.app.person import MAIN, Person

DEEPER = TINY | {"name": "deeper", "model": TINY["model"] | {"num_layers": 3}}
TOKENS = 8 * 64


@pytest.mark.slow
def test_another_model_is_asked_about(small_folder):
    write_preset(small_folder, "01_deeper", DEEPER)
    with contextlib.chdir(small_folder):
        train(preset_from_json((small_folder / "configs/00_best_general.json").read_text(), "tiny"), "checkpoints", TOKENS)
    born = os.stat(small_folder / "checkpoints/lm_current.pth").st_ino
    with Person(MAIN, small_folder) as person:
        person.waits_for("q quit")
        person.types("down", "enter")
        text = person.waits_for("Enter do it")
        assert "deeper describes another model" in text and "❯ Go on" in text
        assert [line.split()[:3] for line in text.splitlines() if "tensors," in line] == [["kept", "18", "tensors,"], ["new", "8", "tensors,"]]
        assert "layer 2" in text
        person.types("q")
        person.waits_for("q quit")
        assert os.stat(small_folder / "checkpoints/lm_current.pth").st_ino == born, "nothing is done"

        person.types("down", "enter")
        person.waits_for("Enter do it")
        person.types("down", "enter")
        person.waits_for(r"step\s+[1-9]")
        person.types("ctrl-c")
        person.waits_for("Stopped and saved")
        assert "in 1 run ·" in person.text
    assert [path.stat().st_ino for path in small_folder.glob("checkpoints-*/lm_current.pth")] == [born]
