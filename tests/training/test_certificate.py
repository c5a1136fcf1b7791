"""A source that was changed since the snapshot is named by the certificate: on the screen and in run.jsonl."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.app.facts import Facts
from lm.preset import Preset
from lm.training import Halted
from lm.training.snapshots import Snapshots
from tests.training.conftest import TEXTS
from tests.training.test_headers import preset_in, rewritten
from tests.training.test_sources import of, trained

Tiny = Callable[..., Preset]
SAME_NAMES = "notes: its files hold other text than when it was last read"
OTHER_NAMES = "notes: its files are others than when it was last read"


def last_words(folder: Path) -> None:
    """What no batch of the next few reaches."""
    file = sorted(folder.glob("*.txt"))[-1]
    text = file.read_text(encoding="utf-8")
    file.write_text(text[:-3] + "abc", encoding="utf-8")


@pytest.fixture
def notes(tmp_path: Path) -> list[dict[str, Any]]:
    """Two sources, of which `notes` is a folder that can be changed."""
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(TEXTS[:10]):
        (tmp_path / "notes" / f"{number}.txt").write_text(text, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(TEXTS[-1], encoding="utf-8")
    return [{"type": "files", "name": name, "path": str(path), "repeat": True} for name, path in (("notes", tmp_path / "notes"), ("other", other))]


def test_a_changed_source_is_named(tiny: Tiny, notes: list[dict[str, Any]], tmp_path: Path) -> None:
    preset = tiny(data={"sources": notes, "vocab_size": 500})
    trained(preset, tmp_path / "before", 100, stop_after=4)

    def resumed(**switches: Any) -> list[Any]:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(tmp_path / "before", tmp_path / "c")
        return trained(tiny(data={"sources": notes, "vocab_size": 500}, train=preset.train.model_dump() | switches), tmp_path / "c", 100, stop_after=1)

    assert of(resumed(), "resume", "exact") == [True]
    last_words(tmp_path / "notes")
    for switches in ({}, {"loader_processes": 2}):
        events = resumed(**switches)
        assert of(events, "resume", "exact") == [False] and of(events, "resume", "differs") == [[SAME_NAMES]]
        journal = [json.loads(line) for line in (tmp_path / "c" / "run.jsonl").read_text(encoding="utf-8").splitlines()]
        assert of(journal, "resume", "differs")[-1] == [SAME_NAMES]
        facts = Facts()
        for event in events:
            facts(event)
        (shown,) = [line for line in facts.log if line.text.startswith("lm_current.pth")]
        assert shown.text.endswith(f"of 25,600 tokens; {SAME_NAMES}") and shown.tone == "warning"
    (tmp_path / "notes" / "more.txt").write_text("Some more. " * 30, encoding="utf-8")
    assert of(resumed(learning_rate=0.02), "resume", "differs") == [[OTHER_NAMES, "train.learning_rate was 0.01 and is 0.02"]]
    shutil.rmtree(tmp_path / "notes")
    assert of(resumed(), "resume", "differs") == [["notes: it can't be read any more"]]


def test_a_snapshot_of_an_older_program_is_gone_on_with_exactly(tiny: Tiny, notes: list[dict[str, Any]], tmp_path: Path) -> None:
    """One whose cursor tells the names of files and nothing more, and whose preset lacks switches; one of a newer program is refused."""
    preset = tiny(data={"sources": notes, "vocab_size": 500})
    trained(preset, tmp_path, 100, stop_after=4)
    snapshot = Snapshots(tmp_path).read("current")
    assert snapshot.cursor is not None and all(" text " in mark for _, mark in snapshot.cursor["sources"])
    names_only = snapshot.cursor | {"sources": [[name, mark.split(" ")[0]] for name, mark in snapshot.cursor["sources"]]}
    current = Snapshots(tmp_path).save(replace(snapshot, cursor=names_only))
    config = preset_in(current)
    rewritten(current, preset=config | {"train": {switch: value for switch, value in config["train"].items() if not switch.startswith("replay")}})
    assert of(trained(preset, tmp_path, 100, stop_after=1), "resume", "exact") == [True]
    last_words(tmp_path / "notes")
    assert of(trained(preset, tmp_path, 100, stop_after=1), "resume", "differs") == [[SAME_NAMES]], "and from then on it is known"
    rewritten(current, preset=config | {"slotformer": {"enabled": True}})
    with pytest.raises(Halted, match=r"lm_current.pth: was written by a newer version of this program \(slotformer is not known here\)") as caught:
        trained(preset, tmp_path, 100)
    assert "\n" not in str(caught.value)
