"""Going back: an earlier snapshot becomes the current one, whatever instant it is broken off at, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lm.training.snapshots as snapshots_module
from data_sources.tokenizer import tokenizer_from_json
from lm.preset import Preset
from lm.training.going_back import go_back
from lm.training.headers import ARCHIVE, NAMES
from lm.training.remembering import lookup_of
from lm.training.snapshots import LEGACY, LOCK, NEW, SnapshotError, Snapshots, read_snapshot
from tests.training.test_run import trained
from tests.training.test_snapshots import Stop, ended_at, flip_a_byte, is_whole, number_of, saved, snapshot

STEP = 4 * 64  # tokens of a step
RUN_END = f"{ARCHIVE}/run-{1:015}.pth"
PLACES = {"prev": NAMES["prev"], "prev2": NAMES["prev2"], "archive": RUN_END}
NUMBERS = {"prev": 4, "prev2": 3, "archive": 1}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots 5, 4 and 3, and 1 as the end of a run. Every snapshot in it says that its life has 1 token."""
    folder = tmp_path_factory.mktemp("lived")
    keeper = saved(folder, 1)
    keeper.archive("run", 1)
    for number in range(2, 6):
        keeper.save(snapshot(number))
    return folder


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    return linked(lived, tmp_path / "folder")


def linked(lived: Path, place: Path) -> Path:
    """A copy with the same files under its own names: none is ever written in place."""
    return Path(shutil.copytree(lived, place, copy_function=os.link))


def numbers(folder: Path) -> list[int]:
    """The numbers of current, prev and prev2."""
    return [number_of(folder / name) for name in NAMES.values()]


def all_numbers(folder: Path) -> set[int]:
    """The numbers of all whole snapshots under any name."""
    for path in folder.rglob("*.pth"):
        if (key := file_of(path)) not in READ:
            READ[key] = number_of(path) if is_whole(path) else None
    return {READ[file_of(path)] for path in folder.rglob("*.pth")} - {None}


READ: dict[tuple[int, int], int | None] = {}  # by file, whatever its name: none is written in place


def file_of(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.mark.parametrize(("chosen", "after"), [("prev", [4, 5, 3]), ("prev2", [3, 5, 4]), ("archive", [1, 5, 4])])
def test_what_was_current_becomes_prev_and_nothing_is_deleted(folder: Path, chosen: str, after: list[int]) -> None:
    keeper = Snapshots(folder)
    assert keeper.go_back(folder / PLACES[chosen]).run["tokens"] == NUMBERS[chosen]
    assert numbers(folder) == after
    assert all_numbers(folder) == {1, 3, 4, 5}
    assert (folder / LEGACY).samefile(folder / NAMES["current"])
    assert keeper.newest().run["tokens"] == NUMBERS[chosen]
    for number in (6, 7, 8):
        keeper.save(snapshot(number))
    assert numbers(folder) == [8, 7, 6]
    assert {1, 5} <= all_numbers(folder), "what was current outlives the saves to come"


def test_there_and_back_again(folder: Path) -> None:
    keeper = Snapshots(folder)
    for chosen in ("prev2", "prev", "prev2", "prev", "archive", "prev"):
        keeper.go_back(folder / PLACES[chosen])
    assert numbers(folder)[0] == 5 and all_numbers(folder) == {1, 3, 4, 5}
    names = {path.name for path in (folder / ARCHIVE).iterdir()}
    assert len(names) == len({path.stat().st_ino for path in (folder / ARCHIVE).iterdir()}) + 1, "one name for each that was left, and the run's end"


@pytest.mark.parametrize("chosen", PLACES)
def test_a_sudden_end_at_any_call_of_the_system_leaves_all_of_it(lived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """Ends the process, as it were, before each call in turn: every snapshot is whole under some name, and the newest is 5 or the chosen one."""
    names = [(os, "fsync"), (os, "link"), (os, "open"), (Path, "mkdir"), (Path, "replace"), (Path, "unlink"), (Path, "open")]
    names += [(snapshots_module, "read_snapshot"), (snapshots_module, "read_header")]
    found: list[int] = []
    for at in range(1, 100):
        folder = linked(lived, tmp_path / str(at))
        with ended_at(monkeypatch, names, at):
            try:
                Snapshots(folder).go_back(folder / PLACES[chosen])
            except Stop:
                pass
            else:
                break
        assert all_numbers(folder) == {1, 3, 4, 5}, f"at call {at}"
        found.append(Snapshots(folder).newest().run["tokens"])
        assert found[-1] == (NUMBERS[chosen] if (folder / NEW).exists() or found[-1] != 5 else 5)
        keeper = Snapshots(folder)
        if found[-1] == 5:  # once more, and now to the end
            keeper.go_back(folder / PLACES[chosen])
        keeper.save(snapshot(6))
        assert numbers(folder)[:2] == [6, NUMBERS[chosen]], "and the next save goes on from there"
        assert (folder / LEGACY).samefile(folder / NAMES["current"])
        assert {1, 5} <= all_numbers(folder)
    assert found == sorted(found, reverse=True) and {5, NUMBERS[chosen]} == set(found) and len(found) > 15


def test_a_snapshot_that_a_sudden_end_left_takes_its_place_before_anything_is_chosen(folder: Path) -> None:
    (folder / NAMES["current"]).replace(folder / NEW)
    with pytest.raises(SnapshotError, match="look again and choose"):
        Snapshots(folder).go_back(folder / NAMES["prev"])
    assert numbers(folder)[0] == 5
    Snapshots(folder).go_back(folder / NAMES["prev"])
    assert numbers(folder) == [4, 5, 3]


def foreign(path: Path) -> None:
    path.unlink()
    torch.save({"model": torch.zeros(3)}, path)


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # its other names keep what they had
    path.write_bytes(content)
    flip_a_byte(path, "data/0")


@pytest.mark.parametrize("chosen", PLACES)
@pytest.mark.parametrize(("damage", "said"), [(flipped, "is damaged"), (foreign, "not written by this program"), (Path.unlink, "no such snapshot")])
def test_what_is_not_whole_is_refused_and_all_stays(folder: Path, chosen: str, damage: Callable[[Path], None], said: str) -> None:
    path = folder / PLACES[chosen]
    damage(path)
    before = {file: file.stat().st_ino for file in folder.rglob("*.pth")}
    with pytest.raises(SnapshotError, match=said) as caught:
        Snapshots(folder).go_back(path)
    assert "\n" not in str(caught.value)
    assert {file: file.stat().st_ino for file in folder.rglob("*.pth")} == before


def test_what_is_current_or_of_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    saved(tmp_path / "other", 2)
    keeper = Snapshots(folder)
    end = keeper.archive("run", 5)
    for path, said in [
        (folder / NAMES["current"], "is the current one already"),
        (end, "is the current one already"),
        (folder / LEGACY, "is the current one already"),
        (tmp_path / "other" / NAMES["prev"], "is no snapshot of the model in"),
    ]:
        with pytest.raises(SnapshotError, match=said):
            keeper.go_back(path)
    assert numbers(folder) == [5, 4, 3]


def test_a_folder_that_is_in_use_is_left_alone(folder: Path) -> None:
    program = "import sys, fcntl; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", program, str(folder / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(SnapshotError, match="another run is using this folder; stop it first"):
        Snapshots(folder).go_back(folder / NAMES["prev"])
    assert numbers(folder) == [5, 4, 3] and not (folder / NEW).exists()
    other.communicate()
    Snapshots(folder).go_back(folder / NAMES["prev"])
    assert numbers(folder) == [4, 5, 3]


def test_a_damaged_current_one_is_set_aside(folder: Path) -> None:
    path = folder / NAMES["current"]
    path.unlink()
    path.write_bytes(b"x" * 100)
    Snapshots(folder).go_back(folder / NAMES["prev"])
    assert [number_of(folder / NAMES[which]) for which in ("current", "prev2")] == [4, 3]
    assert (folder / "lm_current.damaged").read_bytes() == b"x" * 100 and not (folder / NAMES["prev"]).exists()


def test_a_file_system_without_hard_links_gets_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    Snapshots(folder).go_back(folder / RUN_END)
    assert numbers(folder) == [1, 5, 4] and all_numbers(folder) == {1, 3, 4, 5}
    assert not list(folder.rglob("*.link"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    Snapshots(folder).save(snapshot(6))
    with pytest.raises(SnapshotError, match="can't go back: no space left on device"):
        Snapshots(folder).go_back(folder / NAMES["prev"])
    assert numbers(folder) == [6, 1, 5]


def test_the_archive_keeps_the_newest_ends_also_when_they_have_fewer_tokens(tmp_path: Path) -> None:
    keeper = Snapshots(tmp_path)
    for number, tokens in enumerate((300, 400, 500, 100, 400), start=1):
        keeper.save(snapshot(number))
        end = keeper.archive("run", tokens)
        os.utime(end, (number, number))
    kept = {path.name: number_of(path) for path in (tmp_path / ARCHIVE).iterdir()}
    assert kept == {f"run-{500:015}.pth": 3, f"run-{100:015}.pth": 4, f"run-{400:015}-2.pth": 5}, "and no name is taken from another"
    assert keeper.archive("run", 400).name == f"run-{400:015}.pth"


def test_a_run_goes_on_from_there_as_it_did_the_first_time(tiny: Callable[..., Preset], tmp_path: Path) -> None:
    """To the end of the first run and on, the same steps again; then back to what was left, and on from that."""
    trained(tiny(), tmp_path, 8)
    first = trained(tiny(), tmp_path, 8, stop_after=5)
    life = json.loads((tmp_path / "life.json").read_text(encoding="utf-8"))
    (end,) = (tmp_path / ARCHIVE).glob("run-*.pth")
    event = go_back(tmp_path, end)
    assert (event["from"]["life_tokens"], event["to"]["life_tokens"], event["to"]["file"]) == (13 * STEP, 8 * STEP, end.name)
    journal = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {key: value for key, value in journal[-1].items() if key != "at"} == event
    told = json.loads((tmp_path / "life.json").read_text(encoding="utf-8"))
    assert (told["life_tokens"], told["run_tokens"], told["runs"], told["sources"]) == (8 * STEP, 8 * STEP, 1, {"reference": 8 * STEP})
    assert told.keys() == life.keys() | {"went_back"} and told["parameters"] == life["parameters"] and told["vocab_size"] == life["vocab_size"]

    again = trained(tiny(), tmp_path, 8, stop_after=5)
    for key in ("batch_hash", "loss", "gradient_norm", "tokens", "life_tokens", "step"):
        assert [step[key] for step in again.of("step")] == [step[key] for step in first.of("step")], key
    (resume,) = again.of("resume")
    assert "gone back to on 20" in resume["text"] and f"from {13 * STEP:,} tokens of life" in resume["text"]
    assert "went_back" not in json.loads((tmp_path / "life.json").read_text(encoding="utf-8")), "a save followed"
    assert [note["tokens"] for note in Snapshots(tmp_path).read("current").life["went_back"]] == [8 * STEP]

    go_back(tmp_path, tmp_path / event["kept"])
    rest = trained(tiny(), tmp_path, 8)
    (resume,) = rest.of("resume")
    assert resume["exact"] and resume["tokens"] == 5 * STEP and "gone back to" in resume["text"]
    assert rest.of("step")[-1]["life_tokens"] == 16 * STEP


@pytest.mark.slow
def test_the_memory_goes_back_too(tiny: Callable[..., Preset], tmp_path: Path) -> None:
    """What follows is, bit for bit, what followed the first time, and the memory with it. What was left keeps the memory that it had."""
    preset, twice = tiny(retro={"enabled": True, "chunk_size": 8, "layers": "all"}), tmp_path / "twice"
    at_once = trained(preset, tmp_path / "once", 24).of("step")
    for steps in (12, 6):
        trained(preset, twice, 24, stop_after=steps)
    tokenizer = tokenizer_from_json(Snapshots(twice).read("current").tokenizer)
    older, newer = (lookup_of(Snapshots(twice).read(which), twice, tokenizer) for which in ("prev", "current"))
    assert older.length < newer.length
    questions = [passage.tokens[None] for passage in newer.memory.about(np.arange(older.length, newer.length))]
    asked = next(tokens for tokens in questions if newer.nearest(tokens).max() >= older.length)  # by which something is found that was read since
    found = newer.nearest(asked)
    event = go_back(twice, twice / NAMES["prev"])
    current = lookup_of(Snapshots(twice).read("current"), twice, tokenizer)
    assert current.length == older.length and np.array_equal(current.nearest(asked), older.nearest(asked)) and current.nearest(asked).max() < older.length
    again = trained(preset, twice, 24)
    assert again.of("resume")[0]["exact"]
    for key in ("batch_hash", "loss", "gradient_norm", "tokens"):
        assert [step[key] for step in again.of("step")] == [step[key] for step in at_once[12:]], key
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("once", "twice"))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    mine, theirs = (lookup_of(each, tmp_path / name, tokenizer) for each, name in ((one, "once"), (two, "twice")))
    assert mine.length == theirs.length
    every = np.arange(mine.length)
    for ours, other in zip(mine.memory.about(every), theirs.memory.about(every), strict=True):
        assert ours[:2] == other[:2] and np.array_equal(ours.tokens, other.tokens)
    left = lookup_of(read_snapshot(twice / event["kept"]), twice, tokenizer)
    assert left.length == newer.length and np.array_equal(left.nearest(asked), found) and found.max() >= older.length
