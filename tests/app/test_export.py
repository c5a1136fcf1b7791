"""Export from the menu: what is shown, what is written, and what it says where it can't."""

from pydoc_data.topics import topics

import pytest

from data_sources.tokenizer import tokenizer_to_json, trained_bpe
from lm.app import menu
from lm.app.life import Life
from lm.training.snapshots import Snapshots
from tests.app.person import MAIN, Person
from tests.export.conftest import preset_of, snapshot_of


def goes_to_export(person):
    person.waits_for("q quit")
    for _ in range(20):
        if "❯ Export" in person.text:
            return
        person.types("down")
    raise AssertionError(f"the menu has no Export\n{person.text}")


@pytest.mark.timeout(90)
def test_export_from_the_menu(small_folder):
    tokenizer = tokenizer_to_json(trained_bpe(iter(list(topics.values())[:5]), 300))
    Snapshots(small_folder / "checkpoints").save(snapshot_of(preset_of("mine"), tokenizer))
    with Person(MAIN, small_folder, 100, 40) as person:
        goes_to_export(person)
        person.types("enter")
        text = person.waits_for('(?s)tokenizer = .*"exports/mine-12345".*q back', 60)
        for words in ("from transformers import AutoModelForCausalLM, AutoTokenizer", 'from_pretrained("exports/mine-12345", trust_remote_code=True)'):
            assert words in text
        person.types("q")
        person.waits_for("(?s)Exported to exports/mine-12345.*q quit", 20)
        assert (small_folder / "exports" / "mine-12345" / "model.safetensors").exists()

        (small_folder / "exports").rename(small_folder / "moved")
        (small_folder / "exports").write_text("another program's")
        goes_to_export(person)
        person.types("enter")
        assert "be written: file exists" in " ".join(person.waits_for("(?s)exports: the export.*q quit", 20).split())

        (small_folder / "checkpoints" / "lm_current.pth").write_bytes(b"damaged")
        goes_to_export(person)
        person.types("enter")
        person.waits_for("(?s)no whole snapshot is left.*q quit", 20)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw


def test_without_a_model_it_can_not_be_picked():
    entry = menu._action("export", Life())
    assert not entry.can_be_picked and "There is no model yet" in "".join(text for _, text in entry.about(200))
