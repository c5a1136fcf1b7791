"""Snapshots: the whole of a model's life in one file, and three of them on disk.

A snapshot is written aside, synced, read back and checked, and only then takes its place: prev becomes prev2, current becomes
prev, the new one becomes current, each by a rename. At any instant a whole snapshot is there, and `newest` finds it.

A file holds {"format", "meta" (JSON text), "tensors" (flat, by path), "checksums" (SHA-256 by path, and of meta)}, and
torch.load(weights_only=True) opens it: nothing in it can run.
"""

import fcntl
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lm.preset import Preset, PresetError, preset_from_json

FORMAT = 1
NAMES = {"current": "lm_current.pth", "prev": "lm_prev.pth", "prev2": "lm_prev2.pth"}
NEW, LEGACY, LOCK = "lm_new.pth", "simple_lm_trained.pth", ".lock"
ARCHIVE, ARCHIVE_KEEPS = "archive", 3
PARTS = {"format": int, "meta": str, "tensors": dict, "checksums": dict}


class SnapshotError(Exception):
    """A snapshot can't be read or written. The message is one line."""


class DamagedSnapshot(SnapshotError):
    """The file was cut off or changed since it was written."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on, on the host."""

    preset: Preset
    tokenizer: str  # JSON text
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    cursor: dict[str, Any] | None  # place in the data
    run: dict[str, Any]  # tokens, budget, global_rows, ended
    life: dict[str, Any]  # the model's history
    certificate: dict[str, Any] = field(default_factory=dict)  # see lm/training/certificate.py
    path: Path | None = None

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """The weights of the model alone, without the heads that trained it, by its own names."""
        return {name.removeprefix("model."): tensor for name, tensor in self.weights.items() if name.startswith("model.")}


class Snapshots:
    """The snapshots of one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._damaged: set[Path] = set()  # seen by newest, set aside by the next save

    def read(self, which: str) -> Snapshot:
        """The snapshot called "current", "prev" or "prev2". SnapshotError when it is not there, damaged, or not ours."""
        if which not in NAMES:
            raise SnapshotError(f'no snapshot is called "{which}"; there are {", ".join(NAMES)}')
        path = self.folder / NAMES[which]
        if not path.exists():
            raise SnapshotError(f"{path}: there is no such snapshot yet")
        return read_snapshot(path)

    def newest(self, say: Callable[[str], None] = lambda line: None) -> Snapshot | None:
        """The newest whole snapshot, or None where there is none. `say` gets a line for each that is passed over.

        SnapshotError when snapshots are there and none can be used: a life must not be begun anew by mistake.
        """
        refused = []
        for path in (self.folder / name for name in (NEW, *NAMES.values())):
            if not path.exists():
                continue
            try:
                return read_snapshot(path)
            except DamagedSnapshot as error:
                if path.name != NEW:  # an unfinished new one is what a sudden end leaves
                    self._damaged.add(path)
                    refused.append(str(error))
                    say(f"{error}; taking the one before")
        if refused:
            raise SnapshotError(f"{self.folder}: no whole snapshot is left ({refused[0]}); move the files away to begin a new life")
        return None

    def save(self, snapshot: Snapshot, amends: bool = False) -> Path:
        """Write `snapshot` as the current one, and keep the one before as prev, unless it `amends` it: then it takes its place.

        SnapshotError when there is no room; what was there stays.
        """
        new = self.folder / NEW
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if new.exists():
                self._settle(new)
            _write(new, snapshot)
            read_snapshot(new)
            self._rotate(new, amends)
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            raise SnapshotError(f"{self.folder}: the snapshot can't be written: {_reason(error)}") from None
        return self.folder / NAMES["current"]

    def _settle(self, new: Path) -> None:
        """A new one left by a sudden end: in its place when it is whole, else gone."""
        try:
            read_snapshot(new)
        except SnapshotError:
            new.unlink()
        else:
            self._rotate(new)

    def _rotate(self, new: Path, amends: bool = False) -> None:
        current, prev, prev2 = (self.folder / name for name in NAMES.values())
        for damaged in filter(Path.exists, self._damaged):
            # Kept for a person to look at, and out of the way, so that it pushes no good one out.
            damaged.replace(damaged.with_suffix(".damaged"))
        self._damaged.clear()
        legacy = self.folder / LEGACY
        ours = not legacy.exists() or any(path.exists() and legacy.samefile(path) for path in (current, prev, prev2))
        if prev.exists() and current.exists() and not amends:
            prev.replace(prev2)
        if current.exists() and not amends:
            current.replace(prev)
        new.replace(current)
        if ours:  # a file of that name from another program stays
            _link(current, legacy)
        _sync_folder(self.folder)

    def archive(self, kind: str, number: int, path: Path | None = None) -> Path:
        """Link the snapshot at `path`, else the current one, into archive/ as "kind-number", and keep the newest few of the kind."""
        folder = self.folder / ARCHIVE
        folder.mkdir(exist_ok=True)
        place = folder / f"{kind}-{number:015}.pth"
        _link(path or self.folder / NAMES["current"], place)
        for old in sorted(folder.glob(f"{kind}-{'[0-9]' * 15}.pth"))[:-ARCHIVE_KEEPS]:
            old.unlink()
        return place

    def lock(self) -> IO[bytes]:
        """Hold the folder for this process until the file that comes back is closed. SnapshotError when another holds it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # lockf and not flock: that lock would live on in forked children of a holder that was killed.
            file = open(self.folder / LOCK, "ab")  # noqa: SIM115 - it stays open as long as the lock is held
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SnapshotError(f"{self.folder}: another run is using this folder; stop it first") from None
        except OSError as error:
            raise SnapshotError(f"{self.folder}: can't be used for snapshots: {_reason(error)}") from None
        return file


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).splitlines()[0]
    # torch.save tells of a full disk in its own way.
    return "no space left on device" if "iostream error" in text or "PytorchStreamWriter" in text or "unexpected pos" in text else text


def _link(target: Path, place: Path) -> None:
    """`place` as another name of `target`; a copy is not made, and at no time is `place` missing."""
    aside = place.with_suffix(".link")
    aside.unlink(missing_ok=True)
    try:
        os.link(target, aside)
    except OSError:
        return  # a file system without hard links: the legacy name is a convenience
    aside.replace(place)
    aside.unlink(missing_ok=True)  # a rename onto the same file leaves both names


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, snapshot: Snapshot) -> None:
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous() for part in ("weights", "optimizer", "random") for name, tensor in getattr(snapshot, part).items()
    }
    about = {"preset": snapshot.preset.model_dump(mode="json"), "tokenizer": snapshot.tokenizer}
    meta = json.dumps({**about, "cursor": snapshot.cursor, "run": snapshot.run, "life": snapshot.life, "certificate": snapshot.certificate})
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()} | {"meta": hashlib.sha256(meta.encode()).hexdigest()}
    with path.open("wb") as file:
        torch.save({"format": FORMAT, "meta": meta, "tensors": tensors, "checksums": checksums}, file)
        file.flush()
        os.fsync(file.fileno())


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, shape and type."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot in the file at `path`, checked. DamagedSnapshot, or SnapshotError for a file that is not ours or too new."""
    content = _opened(path)
    if not isinstance(content, dict) or [type(content.get(part)) for part in PARTS] != list(PARTS.values()):
        raise SnapshotError(f"{path}: was not written by this program; move it away, nothing is overwritten")
    if content["format"] > FORMAT:
        raise SnapshotError(f"{path}: has format {content['format']}, this program reads up to {FORMAT}; use the newer program that wrote it")
    found = {name: checksum(tensor) for name, tensor in content["tensors"].items()}
    found["meta"] = hashlib.sha256(content["meta"].encode()).hexdigest()
    if found != content["checksums"]:
        wrong = next((name for name in content["checksums"] if found.get(name) != content["checksums"][name]), "its list of parts")
        raise DamagedSnapshot(f"{path}: is damaged ({wrong} does not match its checksum)")
    return _built(path, json.loads(content["meta"]), content["tensors"])


def _opened(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise DamagedSnapshot(f"{path}: is damaged (a part does not match its checksum)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SnapshotError(f"{path}: can't be read: {_reason(error)}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        raise DamagedSnapshot(f"{path}: is damaged or cut off, or was not written by this program") from None
    except pickle.UnpicklingError:
        raise SnapshotError(f"{path}: holds more than tensors and is refused, nothing of it was run; move it away") from None
    except RuntimeError:
        raise SnapshotError(f"{path}: was not written by this program; move it away, nothing is overwritten") from None


def _built(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Snapshot:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "random": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    try:
        preset = preset_from_json(json.dumps(meta["preset"]), str(path))
    except PresetError as error:
        raise SnapshotError(f"{error} (in the preset that the snapshot holds)") from None
    rest = {name: meta[name] for name in ("tokenizer", "cursor", "run", "life")}
    return Snapshot(preset, **rest, **parts, certificate=meta.get("certificate", {}), path=path)
