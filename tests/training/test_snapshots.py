"""Snapshots: three of them, whole at any instant, and a clear line for every file that is not."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import signal
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lm.training.snapshots as snapshots_module
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training.headers import listed
from lm.training.snapshots import LEGACY, NAMES, NEW, DamagedSnapshot, Snapshot, SnapshotError, Snapshots, read_snapshot


def snapshot(number: int) -> Snapshot:
    """A small snapshot that tells its number."""
    preset = Preset.model_validate({"name": "p", "data": {"sources": ["c4"]}})
    weights = {"w": torch.full((7, 3), float(number)), "empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)}
    return Snapshot(preset, "{}", weights, {"w/step": torch.tensor(3.0)}, {"cpu": torch.get_rng_state()}, {"row": number}, {"tokens": number}, {"tokens": 1})


def saved(folder: Path, count: int) -> Snapshots:
    keeper = Snapshots(folder)
    for number in range(1, count + 1):
        keeper.save(snapshot(number))
    return keeper


def number_of(path: Path) -> int:
    return read_snapshot(path).run["tokens"]


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    found, meant = saved(tmp_path, 1).newest(), snapshot(1)
    for part in ("weights", "optimizer", "random"):
        assert getattr(found, part).keys() == getattr(meant, part).keys()
        assert all(torch.equal(getattr(found, part)[name], tensor) for name, tensor in getattr(meant, part).items())
    assert (found.preset, found.tokenizer, found.cursor, found.run, found.life) == (meant.preset, "{}", {"row": 1}, {"tokens": 1}, {"tokens": 1})


def test_the_newest_three_are_kept_and_the_legacy_name_is_the_current_one(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 5)
    assert [number_of(tmp_path / name) for name in NAMES.values()] == [5, 4, 3]
    assert [keeper.read(which).run["tokens"] for which in NAMES] == [5, 4, 3]
    assert (tmp_path / LEGACY).samefile(tmp_path / NAMES["current"])
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES.values(), LEGACY}


def test_plain_torch_opens_it_safely(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    content = torch.load(tmp_path / NAMES["current"], weights_only=True)
    assert content["format"] == 1
    assert torch.equal(content["tensors"]["weights.w"], torch.ones(7, 3))


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert Snapshots(tmp_path / "none").newest() is None
    with pytest.raises(SnapshotError, match="there is no such snapshot yet"):
        Snapshots(tmp_path).read("prev")
    with pytest.raises(SnapshotError, match="no snapshot is called"):
        Snapshots(tmp_path).read("latest")


class Stop(BaseException):
    """A sudden end."""


@contextlib.contextmanager
def ended_at(monkeypatch: pytest.MonkeyPatch, calls: Sequence[tuple[Any, str]], at: int) -> Iterator[None]:
    """Ends the process, as it were, with Stop in place of call number `at` among `calls`."""
    count = 0
    with monkeypatch.context() as patched:
        for place, name in calls:
            honest = getattr(place, name)

            def counted(*given: Any, honest: Any = honest, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == at:
                    raise Stop
                return honest(*given, **named)

            patched.setattr(place, name, counted)
        yield


def test_a_sudden_end_at_any_file_operation_leaves_a_whole_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the process, as it were, before each file operation of a save in turn: the newest whole one is 3, or 4 once it was verified."""
    names = [(os, "fsync"), (os, "link"), (os, "open"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (snapshots_module, "read_snapshot")]
    ends = 0
    for at in range(1, 100):
        folder = tmp_path / str(at)
        saved(folder, 3)
        with ended_at(monkeypatch, names, at):
            try:
                Snapshots(folder).save(snapshot(4))
            except Stop:
                ends += 1
            else:
                break
        found = Snapshots(folder).newest().run["tokens"]
        assert found in (3, 4)
        whole = sorted(number_of(path) for path in folder.glob("lm_*.pth") if is_whole(path))
        assert found == whole[-1], "the newest whole one is found"
        assert len(set(whole)) >= 3
        Snapshots(folder).save(snapshot(5))
        assert [number_of(folder / name) for name in NAMES.values()] == [5, found, found - 1], "and the next save goes on from there"
    assert ends >= 8


def is_whole(path: Path) -> bool:
    try:
        read_snapshot(path)
    except SnapshotError:
        return False
    return True


def flip_a_byte(path: Path, part: str) -> None:
    """Change one byte inside a part of the archive, behind the back of its checksum."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(part))
    content = bytearray(path.read_bytes())
    name = info.header_offset + 30
    start = name + len(info.filename) + int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    content[start + info.file_size // 2] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["data.pkl", "data/0", "version"])
def test_a_flipped_byte_is_found_and_the_one_before_is_taken(tmp_path: Path, part: str) -> None:
    keeper = saved(tmp_path, 3)
    flip_a_byte(tmp_path / NAMES["current"], part)
    with pytest.raises(DamagedSnapshot, match="is damaged"):
        keeper.read("current")
    lines: list[str] = []
    assert keeper.newest(lines.append).run["tokens"] == 2
    assert len(lines) == 1
    assert "taking the one before" in lines[0]
    keeper.save(snapshot(4))
    assert [number_of(tmp_path / name) for name in NAMES.values()] == [4, 2, 1], "the damaged one pushed no good one out"
    assert (tmp_path / "lm_current.damaged").exists()


def test_the_one_before_is_taken_whatever_bit_of_the_archives_own_notes_is_flipped(tmp_path: Path) -> None:
    """Names, sizes, places and flags of the parts: they have no checksum."""
    keeper = saved(tmp_path, 2)
    path = tmp_path / NAMES["current"]
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        notes = [place for info in archive.infolist() for place in range(info.header_offset, info.header_offset + 30 + len(info.filename))]
        notes += range(archive.start_dir, len(good))
    path.unlink()  # which is the legacy name's file too
    taken = set()
    for number, place in enumerate(notes):
        flipped = bytearray(good)
        flipped[place] ^= 1 << number % 8
        path.write_bytes(flipped)
        taken.add(keeper.newest().run["tokens"])
    assert taken == {1, 2}, "some notes are read by nobody"


def test_what_did_not_come_to_the_disk_as_it_was_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, written = saved(tmp_path, 1), snapshots_module._write

    def write_badly(path: Path, snapshot: Snapshot) -> None:
        written(path, snapshot)
        content = torch.load(path, weights_only=True)
        content["tensors"]["weights.w"][0, 0] += 1
        torch.save(content, path)

    monkeypatch.setattr(snapshots_module, "_write", write_badly)
    with pytest.raises(DamagedSnapshot, match=r"weights\.w does not match its checksum"):
        keeper.save(snapshot(2))
    assert keeper.newest().run["tokens"] == 1


def test_a_tensor_that_does_not_match_its_checksum(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / NAMES["current"]
    content = torch.load(path, weights_only=True)
    content["tensors"]["weights.w"][0, 0] += 1
    torch.save(content, path)
    with pytest.raises(DamagedSnapshot, match=r"weights\.w does not match its checksum"):
        read_snapshot(path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_file_that_was_cut_off(tmp_path: Path, keep: int) -> None:
    keeper = saved(tmp_path, 2)
    path = tmp_path / NAMES["current"]
    path.write_bytes(path.read_bytes()[:keep])
    assert keeper.newest().run["tokens"] == 1


def test_a_missing_one_in_the_middle(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 3)
    (tmp_path / NAMES["current"]).unlink()
    lines: list[str] = []
    assert keeper.newest(lines.append).run["tokens"] == 2
    assert lines == [f"{tmp_path / NAMES['current']}: is missing; taking the one before"]
    keeper.save(snapshot(4))
    assert keeper.newest(lines.append).run["tokens"] == 4 and len(lines) == 1


def test_one_is_found_while_another_process_saves(tmp_path: Path) -> None:
    """What is being read, or was just seen, may get another name at any instant."""
    saved(tmp_path, 1)
    child = os.fork()
    if child == 0:  # nothing of pytest may run in here
        try:
            for number in range(2, 100_000):
                Snapshots(tmp_path).save(snapshot(number))
        finally:
            os._exit(1)
    try:
        found = [Snapshots(tmp_path).newest().run["tokens"] for _ in range(500)]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found[0] < found[-1]


def test_when_none_is_whole_no_new_life_is_begun_by_mistake(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 1)
    (tmp_path / NAMES["current"]).write_bytes(b"x" * 100)
    with pytest.raises(SnapshotError, match="no whole snapshot is left .* move the files away"):
        keeper.newest()
    keeper.save(snapshot(2))
    keeper.archive("run", 2)
    for path in tmp_path.glob("lm_*.pth"):
        path.unlink()  # its name in the archive keeps what it had
        path.write_bytes(b"x" * 100)
    with pytest.raises(SnapshotError, match="choose one of the archive with Go back"):
        keeper.newest()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 2)
    path = tmp_path / NAMES["current"]
    torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
    with pytest.raises(SnapshotError, match=r"newer version of this program \(format 99, up to 1 is known here\)"):
        keeper.newest()


def as_before(keeper: Snapshots, meant: Snapshot, config: dict[str, Any]) -> None:
    """The current snapshot, as the program of commit 29e8870 would have written it with `config` for a preset."""
    keeper.save(meant)
    content = torch.load(keeper.folder / NAMES["current"], weights_only=True)
    content["meta"] = json.dumps(json.loads(content["meta"]) | {"preset": config})
    content["checksums"]["meta"] = hashlib.sha256(content["meta"].encode()).hexdigest()
    torch.save(content, keeper.folder / NAMES["current"])


def test_snapshots_of_an_earlier_program_are_read(tmp_path: Path) -> None:
    """The whole preset that one wrote, with switches that there are no more; routers' thresholds mean what they meant."""
    config = json.loads(Path("tests/training/preset_of_29e8870.json").read_text(encoding="utf-8"))
    assert config["colt5"]["budget_weight"] == 1.0, "else the test could not tell"
    ours = load_preset("configs/10_conditional.json")
    weights = {f"model.{name}": tensor for name, tensor in build_model(ours, 300).state_dict().items()}
    routers = [name.removesuffix("threshold") for name in weights if name.endswith("router.threshold")]
    old, averaged = dict(weights), {name: tensor for name, tensor in weights.items() if name.endswith("threshold")}
    for router in routers:
        del old[f"{router}step_tokens"]
        old[f"{router}share"], old[f"{router}threshold"] = torch.tensor(0.25), weights[f"{router}threshold"] / 10
    as_before(Snapshots(tmp_path), replace(snapshot(1), preset=ours, weights=old, average=averaged), config)
    found = Snapshots(tmp_path).newest()
    assert found and found.preset == ours and len(routers) == 12
    assert found.weights.keys() == weights.keys() and not found.average
    for name, tensor in weights.items():
        torch.testing.assert_close(found.weights[name], tensor)
    build_model(found.preset, 300).load_state_dict(found.model_weights)
    assert [each.reason for each in listed(tmp_path)] == [""]


def test_a_file_of_another_program_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / NAMES["current"]
    torch.save({"model": torch.zeros(3)}, path)
    with pytest.raises(SnapshotError, match="was not written by this program"):
        Snapshots(tmp_path).newest()
    assert torch.load(path)["model"].shape == (3,)


class Hostile:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("as_archive", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, as_archive: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / NAMES["current"]
    if as_archive:
        torch.save({"format": 1, "bad": Hostile(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(SnapshotError):
        Snapshots(tmp_path).newest()
    assert not trace.exists()


def test_no_room_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = saved(tmp_path, 3)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match="no space left on device") as caught:
        keeper.save(snapshot(4))
    assert "\n" not in str(caught.value)
    assert [number_of(tmp_path / name) for name in NAMES.values()] == [3, 2, 1]
    assert not (tmp_path / NEW).exists()


def test_a_disk_that_becomes_read_only_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be deleted there either, not even what is not there."""
    keeper = saved(tmp_path, 2)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("open", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(SnapshotError, match="can't be written: read-only file system"):
        keeper.save(snapshot(3))
    monkeypatch.undo()
    assert [number_of(tmp_path / name) for name in ("lm_current.pth", "lm_prev.pth")] == [2, 1]


def test_the_archive_keeps_the_newest_three_of_a_kind_and_nothing_else_is_touched(tmp_path: Path) -> None:
    keeper = Snapshots(tmp_path)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "mine.pth").write_bytes(b"mine")
    for number in range(1, 6):
        keeper.save(snapshot(number))
        keeper.archive("run", number)
    keeper.archive("before", 4, tmp_path / NAMES["prev"])
    kept = {path.name: path for path in (tmp_path / "archive").iterdir()}
    assert set(kept) == {"mine.pth", "before-000000000000004.pth", *(f"run-{number:015}.pth" for number in (3, 4, 5))}
    assert [number_of(kept[name]) for name in ("run-000000000000003.pth", "before-000000000000004.pth")] == [3, 4]


def test_a_legacy_file_of_another_program_stays(tmp_path: Path) -> None:
    (tmp_path / LEGACY).write_bytes(b"not ours")
    saved(tmp_path, 2)
    assert (tmp_path / LEGACY).read_bytes() == b"not ours"


@pytest.mark.slow
def test_killed_at_any_instant_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    """A process that saves one after the other, ended by SIGKILL 200 times."""
    chance, last, ends = random.Random(0), 1, set()
    saved(tmp_path, 1)
    for _ in range(200):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # nothing of pytest may run in here
            try:
                for number in range(last + 1, last + 1000):
                    Snapshots(tmp_path).save(snapshot(number))
                    os.write(writing, number.to_bytes(4, "big"))
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(chance.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = b""
        while part := os.read(reading, 4096):
            told += part
        os.close(reading)
        done = int.from_bytes(told[-4:], "big") if told else last
        ends.add(tuple(sorted(path.name for path in tmp_path.iterdir())))
        found = Snapshots(tmp_path).newest()
        assert found is not None
        # What was told to be saved is there, or the one after it, whose rename was the last thing done.
        assert done <= found.run["tokens"] <= done + 1
        assert found.weights["w"][0, 0] == found.run["tokens"]
        last = found.run["tokens"]
    assert len(ends) >= 3, f"the kills hit too few different moments: {ends}"


def archived(folder: Path, kind: str) -> list[int]:
    """The numbers of the archived snapshots of a kind."""
    return sorted(number_of(path) for path in (folder / "archive").glob(f"{kind}-*.pth"))


def test_ends_of_runs_and_copies_from_before_a_change_do_not_push_each_other_out(tmp_path: Path) -> None:
    """Three of each stay, whatever comes of the other kind, and each can be gone back to."""
    keeper = Snapshots(tmp_path)
    for number in range(1, 13):
        keeper.save(snapshot(number))
        keeper.archive("run" if number < 5 or number > 9 else "before", number)
        if number == 4:
            assert (archived(tmp_path, "run"), archived(tmp_path, "before")) == ([2, 3, 4], [])
        if number == 9:
            assert (archived(tmp_path, "run"), archived(tmp_path, "before")) == ([2, 3, 4], [7, 8, 9])
    assert (archived(tmp_path, "run"), archived(tmp_path, "before")) == ([10, 11, 12], [7, 8, 9])
    for kind, number in (("before", 7), ("run", 11), ("before", 9)):
        keeper.go_back(tmp_path / "archive" / f"{kind}-{number:015}.pth")
        assert keeper.newest().run["tokens"] == number
    assert (archived(tmp_path, "run"), archived(tmp_path, "before")) == ([10, 11, 12], [7, 8, 9])


def test_a_copy_of_what_was_gone_back_to_stays(tmp_path: Path) -> None:
    """It is older than all others of its kind, and the one that was just made."""
    keeper = saved(tmp_path, 1)
    first = keeper.archive("run", 1)
    for number in range(2, 5):
        keeper.save(snapshot(number))
        keeper.archive("before", number)
    os.utime(first, (1, 1))
    keeper.go_back(first)
    keeper.archive("before", 1)
    assert archived(tmp_path, "before") == [1, 3, 4]


def test_the_same_snapshot_is_archived_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no hard links: a change that is begun again and again fills the archive with no copies."""

    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    keeper = saved(tmp_path, 1)
    for number in (2, 3):
        keeper.archive("before", 7)
        keeper.archive("before", 7)
        keeper.save(snapshot(number))
    assert archived(tmp_path, "before") == [1, 2] and len(list((tmp_path / "archive").iterdir())) == 2
