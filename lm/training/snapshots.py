"""Snapshots: the whole of a model's life in one file, and three of them on disk.

A snapshot is written aside, synced, read back and checked, and only then takes its place: prev becomes prev2, current becomes
prev, the new one becomes current, each by a rename. At any instant a whole snapshot is there, and `newest` finds it.

A file holds {"format", "meta" (JSON text), "tensors" (flat, by path), "checksums" (SHA-256 by path, and of meta)}, and
torch.load(weights_only=True) opens it: nothing in it can run.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from data_sources.disk import discard, sync_folder
from lm.preset import Preset
from lm.training.headers import (
    ARCHIVE,
    FORMAT,
    NAMES,
    NEW,
    OF_HEADS,
    DamagedSnapshot,
    NewerSnapshot,
    SnapshotError,
    check_parts,
    newest_first,
    preset_of,
    read_header,
)

LEGACY, LOCK = "simple_lm_trained.pth", ".lock"
ARCHIVE_KEEPS = 3
TENSORS = ("weights", "optimizer", "random", "carried", "average")  # the parts of a snapshot that are tensors by name


class MissingSnapshot(SnapshotError):
    """There is no such file, or it has another name by now."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on, on the host."""

    preset: Preset
    tokenizer: str  # JSON text
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    cursor: dict[str, Any] | None  # place in the data
    run: dict[str, Any]  # see lm/training/run.py: tokens, budget, global_rows, ended, closed, lengths_from, adaptive, replay, memory, averaged
    life: dict[str, Any]  # the model's history, see lm/training/run.py
    carried: dict[str, Tensor] = field(default_factory=dict)  # states of the model by lane, see lm/training/carried.py
    certificate: dict[str, Any] = field(default_factory=dict)  # see lm/training/certificate.py
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, where one is kept (lm/training/averaging.py): of parameters alone
    path: Path | None = None

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """What the model is used with, without the heads that trained it, by its own names: the average of its weights, where one is kept."""
        return _inside("model.", self.weights | self.average)

    @property
    def trained_weights(self) -> dict[str, Tensor]:
        """The weights of the model as training left them."""
        return _inside("model.", self.weights)

    @property
    def head_weights(self) -> dict[str, Tensor]:
        """As `model_weights`, those of the heads, by their own names: "value.mean". Empty where it was trained without."""
        return _inside(OF_HEADS, self.weights | self.average)


def _inside(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of one part of the learner, by the names they have in it."""
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


class Snapshots:
    """The snapshots of one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._damaged: set[Path] = set()  # seen by newest, set aside by the next save

    def read(self, which: str) -> Snapshot:
        """The snapshot called "current", "prev" or "prev2". SnapshotError when it is not there, damaged, or not ours."""
        return read_snapshot(self.path_of(which))

    def path_of(self, which: str) -> Path:
        """Where the snapshot called `which` is. SnapshotError when it is not there."""
        if which not in NAMES:
            raise SnapshotError(f'no snapshot is called "{which}"; there are {", ".join(NAMES)}')
        path = self.folder / NAMES[which]
        if not path.exists():
            raise SnapshotError(f"{path}: there is no such snapshot yet")
        return path

    def newest(self, say: Callable[[str], None] = lambda line: None) -> Snapshot | None:
        """The newest whole snapshot, or None where there is none. `say` gets a line for each that is passed over or missing.

        SnapshotError when snapshots are there and none can be used: a life must not be begun anew by mistake.
        """
        refused, current = [], self.folder / NAMES["current"]
        for path in (self.folder / name for name in (NEW, *NAMES.values())):
            try:
                found = read_snapshot(path)
                if not (path.name == NEW or current.exists()):
                    say(f"{current}: is missing; taking the one before")
                return found
            except MissingSnapshot:
                continue
            except DamagedSnapshot as error:
                if path.name != NEW:  # an unfinished new one is what a sudden end leaves
                    self._damaged.add(path)
                    refused.append(str(error))
                    say(f"{error}; taking the one before")
        if refused:
            earlier = "choose one of the archive with Go back, or " if any((self.folder / ARCHIVE).glob("*.pth")) else ""
            raise SnapshotError(f"{self.folder}: no whole snapshot is left ({refused[0]}); {earlier}move the files away to begin a new life")
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
            read_snapshot(new, mapped=True)
            self._rotate(new, amends)
        except (OSError, RuntimeError) as error:
            discard(new)
            raise SnapshotError(f"{self.folder}: the snapshot can't be written: {_reason(error)}") from None
        return self.folder / NAMES["current"]

    def go_back(self, path: str | Path, then: Callable[[Snapshot, Path | None], None] = lambda chosen, kept: None) -> Snapshot:
        """Make an earlier snapshot, prev, prev2 or one of the archive, the current one. Nothing is deleted: what was current becomes
        prev, and it, and what else gives way, gets a name in the archive. While the folder is still held, `then` is called with the
        chosen one and the archive's name of what was current, if there was one.

        SnapshotError, and all stays as it was, when another process uses the folder, or the chosen one is not ours, damaged, or current.
        """
        new, current = self.folder / NEW, self.folder / NAMES["current"]
        with contextlib.closing(self.lock()):
            try:
                if new.exists() and self._settle(new):
                    raise SnapshotError(f"{self.folder}: a snapshot left by a sudden end has taken its place as the current one first; look again and choose")
                place = self._own(Path(path))
                chosen = read_snapshot(place)
                kept = self._keep(current)
                if place.parent == self.folder:
                    place.replace(new)  # from here on it is the newest; what follows can be done by the next save
                else:
                    self._keep(self.folder / NAMES["prev2"])
                    _copied(place, new)
                self._rotate(new)
            except OSError as error:
                how = "the next run goes back, the names of the files could not be changed yet" if new.exists() else "can't go back"
                raise SnapshotError(f"{self.folder}: {how}: {_reason(error)}") from None
            then(chosen, kept)
        return chosen

    def _own(self, path: Path) -> Path:
        """The name by which a snapshot that is not the current one is ours, prev and prev2 first."""
        if not path.exists():
            raise SnapshotError(f"{path}: there is no such snapshot")
        current, *others = (self.folder / name for name in NAMES.values())
        if current.exists() and path.samefile(current):
            raise SnapshotError(f"{path}: is the current one already")
        ours = (place for place in (*others, *(self.folder / ARCHIVE).glob("*.pth")) if place.exists() and path.samefile(place))
        if (place := next(ours, None)) is None:
            raise SnapshotError(f"{path}: is no snapshot of the model in {self.folder}")
        return place

    def _keep(self, path: Path) -> Path | None:
        """Give the snapshot at `path` a name in the archive for good. None when it is not there, or so damaged that it is set aside."""
        if not path.exists():
            return None
        try:
            place = self._archived("left", read_header(path).life_tokens, path)
        except DamagedSnapshot:
            self._damaged.add(path)
            return None
        if not place.exists():
            _copied(path, place)
        sync_folder(place.parent)
        return place

    def _settle(self, new: Path) -> bool:
        """A new one left by a sudden end: in its place when it is whole, else gone. Whether it was whole."""
        try:
            read_snapshot(new)
        except NewerSnapshot:
            raise
        except SnapshotError:
            new.unlink()
            return False
        self._rotate(new)
        return True

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
        sync_folder(self.folder)

    def archive(self, kind: str, number: int, path: Path | None = None) -> Path:
        """Link the snapshot at `path`, else the current one, into archive/ as "kind-number", and keep it and the newest others of the kind.

        SnapshotError where it can't be done.
        """
        target = path or self.folder / NAMES["current"]
        try:
            place = self._archived(kind, number, target)
            _copied(target, place)
            sync_folder(place.parent)
            # By date: a model that went back finishes runs with fewer tokens than those it left. What it went back to is of an old date itself.
            others = (path for path in place.parent.glob(f"{kind}-{'[0-9]' * 15}*.pth") if path != place)
            for old in newest_first(others)[ARCHIVE_KEEPS - 1 :]:
                old.unlink()
        except OSError as error:
            raise SnapshotError(f"{self.folder / ARCHIVE}: the snapshot can't be archived: {_reason(error)}") from None
        return place

    def _archived(self, kind: str, number: int, target: Path) -> Path:
        """The name of `target` in the archive, which it may have already. Another snapshot's is never taken."""
        folder = self.folder / ARCHIVE
        folder.mkdir(exist_ok=True)
        names = (f"{kind}-{number:015}{again}.pth" for again in chain([""], (f"-{time}" for time in count(2))))
        return next(place for name in names if not (place := folder / name).exists() or _is_same(place, target))

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


def _is_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same snapshot, as names of one file or as copies."""
    if one.samefile(other):
        return True
    try:
        return read_header(one).identity == read_header(other).identity
    except SnapshotError:
        return False


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


def _copied(target: Path, place: Path) -> None:
    """`place` as another name of `target`, or as a copy where the file system has no hard links. It is whole as soon as it is there."""
    _link(target, place)
    if place.exists():
        return
    aside = place.with_suffix(".link")
    try:
        shutil.copy2(target, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    except OSError:
        discard(aside)
        raise
    aside.replace(place)


def _write(path: Path, snapshot: Snapshot) -> None:
    tensors = {f"{part}.{name}": tensor.detach().cpu().contiguous() for part in TENSORS for name, tensor in getattr(snapshot, part).items()}
    about = {"saved": datetime.now(UTC).isoformat(timespec="seconds"), "preset": snapshot.preset.model_dump(mode="json"), "tokenizer": snapshot.tokenizer}
    meta = json.dumps(
        {**about, "cursor": snapshot.cursor, "run": snapshot.run, "life": snapshot.life, "certificate": snapshot.certificate}, separators=(",", ":")
    )
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()} | {"meta": hashlib.sha256(meta.encode()).hexdigest()}
    with path.open("wb") as file:
        torch.save({"format": FORMAT, "meta": meta, "tensors": tensors, "checksums": checksums}, file)
        file.flush()
        os.fsync(file.fileno())


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, shape and type."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    found = hashlib.sha256(head)
    found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def read_snapshot(path: Path, mapped: bool = False) -> Snapshot:
    """The snapshot in the file at `path`, checked. DamagedSnapshot, or SnapshotError for a file that is not ours or too new.

    mapped: its tensors are those of the file, which is to stay as it is, and take no memory of their own.
    """
    content = _opened(path, mapped)
    check_parts(path, content)
    found = {name: checksum(tensor) for name, tensor in content["tensors"].items()}
    found["meta"] = hashlib.sha256(content["meta"].encode()).hexdigest()
    if found != content["checksums"]:
        wrong = next((name for name in content["checksums"] if found.get(name) != content["checksums"][name]), "its list of parts")
        raise DamagedSnapshot(f"{path}: is damaged ({wrong} does not match its checksum)")
    return _built(path, json.loads(content["meta"]), content["tensors"])


def _opened(path: Path, mapped: bool) -> Any:
    of_torch = False
    try:
        with path.open("rb") as file:  # once: a run may give it another name meanwhile
            of_torch = b"/data.pkl" in file.read(256)  # the name of the first part: what else is in an archive stands at its end
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise DamagedSnapshot(f"{path}: is damaged (a part does not match its checksum)")
            file.seek(0)
            return torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise MissingSnapshot(f"{path}: there is no such snapshot") from None
    except SnapshotError:
        raise
    except pickle.UnpicklingError:
        raise SnapshotError(f"{path}: holds more than tensors and is refused, nothing of it was run; move it away") from None
    except Exception as error:  # a broken zip fails in many ways, and torch says the same of it as of another program's
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a place before the file's beginning
            raise SnapshotError(f"{path}: can't be read: {_reason(error)}") from None
        if isinstance(error, RuntimeError) and not of_torch:
            raise SnapshotError(f"{path}: was not written by this program; move it away, nothing is overwritten") from None
        raise DamagedSnapshot(f"{path}: is damaged or cut off, or was not written by this program") from None


def _built(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Snapshot:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in TENSORS}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    _renew_routers(parts["weights"], parts["average"])
    rest = {name: meta[name] for name in ("tokenizer", "cursor", "run", "life")}
    return Snapshot(preset_of(path, meta["preset"]), **rest, **parts, certificate=meta.get("certificate", {}), path=path)


def _renew_routers(weights: dict[str, Tensor], average: dict[str, Tensor]) -> None:
    """Routers as they are now: once the optimizer learned their thresholds, in tens of standard deviations, and their share of the step before was
    kept beside them."""
    for router in [name.removesuffix("share") for name in weights if name.endswith("router.share")]:
        del weights[f"{router}share"]
        weights[f"{router}threshold"] = 10 * weights[f"{router}threshold"]
        weights[f"{router}step_tokens"] = torch.tensor(0.0)
        average.pop(f"{router}threshold", None)
