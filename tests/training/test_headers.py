"""Headers: what a snapshot says of itself is told without torch, without its tensors, and without running anything."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.model import build_model
from lm.preset import Preset
from lm.training.change import change_of
from lm.training.headers import ARCHIVE, NAMES, NEW, DamagedSnapshot, SnapshotError, listed, read_header
from lm.training.snapshots import Snapshot, Snapshots, read_snapshot
from tests.training.test_snapshots import Hostile, flip_a_byte, saved, snapshot


def test_a_header_says_what_the_snapshot_says(tmp_path: Path) -> None:
    preset = Preset.model_validate({"name": "p", "model": {"hidden_size": 24, "num_layers": 2, "num_heads": 3}, "data": {"sources": ["c4"]}})
    model = build_model(preset, 270)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {f"{name}/exp_avg": torch.zeros_like(tensor) for name, tensor in weights.items()}
    held = {"best": 1.5, "best_at": 700, "now": 1.75, "tokens": 30}
    life = {"tokens": 900, "measured": {"full": {"c4": {**held, "at": 900}, "old": {**held, "at": 899}}, "brief": {"c4": {**held, "at": 900}}}}
    meant = Snapshot(preset, "{}", weights, moments, {"cpu": torch.get_rng_state()}, {"row": 1}, {"tokens": 5}, life)
    path = Snapshots(tmp_path).save(meant)
    header = read_header(path)
    assert (header.life, header.run, header.preset) == (life, {"tokens": 5}, "p")
    assert header.life_tokens == 900 and header.bytes == path.stat().st_size
    assert abs(header.saved.timestamp() - path.stat().st_mtime) < 5
    parts = {f"{part}.{name}": tensor for part in ("weights", "optimizer", "random") for name, tensor in getattr(meant, part).items()}
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in parts.items()}
    assert header.weight_bytes == sum(4 * parameter.numel() for parameter in model.parameters())
    assert header.known() == {"c4": {"bits_per_byte": 1.75, "tokens": 30}}, "of these weights, on all of the text"
    again = Snapshots(tmp_path).archive("run", 900)
    assert read_header(again).identity == header.identity
    Snapshots(tmp_path).save(replace(meant, life={"tokens": 901}))
    assert read_header(path).identity != header.identity


def test_a_folder_is_listed_without_torch_and_each_file_once(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 3)
    keeper.archive("run", 3)  # the current one, by another name
    keeper.save(snapshot_of(tmp_path, "prev"))
    (tmp_path / ARCHIVE / "mine.pth").write_bytes(b"mine")
    program = "import sys, pathlib; from lm.training.headers import listed; "
    program += "print([(each.kind, each.path.name) for each in listed(pathlib.Path(sys.argv[1]))], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    expected = [("current", NAMES["current"]), ("prev", NAMES["prev"]), ("prev2", NAMES["prev2"])]
    assert done.stdout.strip() == f"{expected} False"
    keeper.save(snapshot_of(tmp_path, "prev"))
    keeper.save(snapshot_of(tmp_path, "prev"))
    assert [each.kind for each in listed(tmp_path)] == ["current", "prev", "prev2", "run"]


def snapshot_of(folder: Path, which: str):
    return Snapshots(folder).read(which)


def test_the_archive_is_listed_from_the_newest(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 1)
    for kind, tokens, at in (("run", 300, 1), ("before", 200, 3), ("left", 100, 2)):
        keeper.save(snapshot_of(tmp_path, "current"))
        os.utime(keeper.archive(kind, tokens), (at, at))
    for _ in range(3):
        keeper.save(snapshot_of(tmp_path, "current"))
    assert [each.kind for each in listed(tmp_path)] == ["current", "prev", "prev2", "before", "left", "run"]


def test_tensors_are_not_read(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / NAMES["current"]
    before = read_header(path)
    flip_a_byte(path, "data/0")
    with pytest.raises(DamagedSnapshot):
        read_snapshot(path)
    assert read_header(path) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: flip_a_byte(path, "data.pkl"), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: torch.save({"model": torch.zeros(3)}, path), "was not written by this program"),
        (
            lambda path: torch.save(torch.load(path, weights_only=True) | {"format": 99}, path),
            "newer version of this program \\(format 99, up to 1 is known here\\)",
        ),
        (lambda path: torch.save({"format": 1, "bad": Hostile(path.with_name("trace"))}, path), "is damaged .* or was not written by this program"),
        (lambda path: path.unlink(), "no such file"),
    ],
    ids=["flipped", "cut", "empty", "foreign", "newer", "hostile", "gone"],
)
def test_what_is_no_snapshot_is_a_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    saved(tmp_path, 2)
    path = tmp_path / NAMES["prev"]
    damage(path)
    with pytest.raises(SnapshotError, match=said) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists(), "nothing in it was run"
    current, *others = listed(tmp_path)
    assert current.header and [each.header for each in others] == [None] * path.exists()


def test_meta_that_was_changed_is_seen(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / NAMES["current"]
    content = torch.load(path, weights_only=True)
    meta = json.loads(content["meta"])
    meta["life"]["tokens"] += 1
    torch.save(content | {"meta": json.dumps(meta)}, path)
    with pytest.raises(DamagedSnapshot, match="meta does not match its checksum"):
        read_header(path)


def rewritten(path: Path, **meta: Any) -> None:
    """The snapshot at `path` with other metadata, whole."""
    content = torch.load(path, weights_only=True)
    text = json.dumps(json.loads(content["meta"]) | meta)
    path.unlink()  # its other names keep what they had
    torch.save(content | {"meta": text, "checksums": content["checksums"] | {"meta": hashlib.sha256(text.encode()).hexdigest()}}, path)


def preset_in(path: Path) -> dict[str, Any]:
    return read_header(path).config


NEWER: list[tuple[str, dict[str, Any]]] = [
    ("train.patience", {"train": {"patience": 3}}),
    ("slotformer", {"slotformer": {"enabled": True}}),
    ("train.optimizer", {"train": {"optimizer": "muon_9"}}),
    ("data.sources[0]", {"data": {"sources": [{"type": "radio", "name": "waves"}]}}),
]


@pytest.mark.parametrize(("what", "sections"), NEWER, ids=[what for what, _ in NEWER])
@pytest.mark.parametrize("which", ["current", "prev"])
def test_a_snapshot_of_a_newer_program(tmp_path: Path, what: str, sections: dict[str, Any], which: str) -> None:
    """It is refused in a line that says why, stays as it is, and so do the others; one before it can be gone back to."""
    keeper = saved(tmp_path, 3)
    path = tmp_path / NAMES[which]
    config = preset_in(path)
    rewritten(path, preset=config | {name: {**(config.get(name) or {}), **section} for name, section in sections.items()})
    contents = {file.name: file.read_bytes() for file in tmp_path.glob("lm_*.pth")}
    with pytest.raises(SnapshotError, match="was written by a newer version of this program") as caught:
        keeper.read(which)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and f"({what}" in said and "\n" not in said and len(said) < len(str(path)) + 140
    if which == "current":
        with pytest.raises(SnapshotError, match="newer version"):
            keeper.newest()
    else:
        assert keeper.newest().run["tokens"] == 3
    with pytest.raises(SnapshotError, match="newer version|current one already"):
        keeper.go_back(path)
    assert change_of(read_header(path), keeper.read("prev2").preset) is None, "it is no question of another model"
    shown = {each.kind: each for each in listed(tmp_path)}
    assert shown[which].header is None and "newer version" in shown[which].reason and len([each for each in shown.values() if each.header]) == 2
    assert {file.name: file.read_bytes() for file in tmp_path.glob("lm_*.pth")} == contents
    keeper.go_back(tmp_path / NAMES["prev2"])
    assert keeper.newest().run["tokens"] == 1
    assert contents[path.name] in [file.read_bytes() for file in tmp_path.rglob("*.pth")], "and the newer one is not lost"


def test_a_newer_one_left_by_a_sudden_end_is_not_thrown_away(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 3)
    os.rename(tmp_path / NAMES["current"], tmp_path / NEW)
    rewritten(tmp_path / NEW, preset=preset_in(tmp_path / NEW) | {"slotformer": {}})
    for act in (keeper.newest, lambda: keeper.go_back(tmp_path / NAMES["prev2"]), lambda: keeper.save(snapshot(9))):
        with pytest.raises(SnapshotError, match="newer version"):
            act()
    assert read_header(tmp_path / NEW).run == {"tokens": 3} and read_header(tmp_path / NAMES["prev"]).run == {"tokens": 2}


def test_a_snapshot_of_an_older_program_is_as_by_default(tmp_path: Path) -> None:
    """One whose preset lacks sections and switches that came later."""
    keeper = saved(tmp_path, 2)
    path = tmp_path / NAMES["current"]
    meant, config = keeper.read("current").preset, preset_in(path)
    old = {name: section for name, section in config.items() if name not in ("mamba2", "generation")}
    old["train"] = {switch: value for switch, value in config["train"].items() if not switch.startswith(("replay", "tensorboard"))}
    rewritten(path, preset=old)
    assert keeper.newest().preset == meant and read_header(path).config == old
    assert change_of(read_header(path), meant) is None
