"""What a snapshot says of itself, read without its tensors and without torch, so that a page of many large ones opens at once.

A snapshot (lm/training/snapshots.py) is a zip archive: torch pickles the dictionary, and puts the bytes of each tensor beside it.
Here the pickle alone is read, by a reader that puts a shape in the place of a tensor and refuses whatever else would be built.
"""

import hashlib
import io
import json
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from lm.preset import Preset, PresetError, preset_from_json

FORMAT = 1
NAMES = {"current": "lm_current.pth", "prev": "lm_prev.pth", "prev2": "lm_prev2.pth"}
OF_HEADS = "heads."  # what the names of tensors and stats of auxiliary heads begin with
NEW = "lm_new.pth"  # on its way to be the current one
ARCHIVE = "archive"
PARTS = {"format": int, "meta": str, "tensors": dict, "checksums": dict}
ARCHIVED = re.compile(r"(run|left|before)-\d{15}(-\d+)?\.pth")  # the end of a run, gone back from, before the model grew
UPDATE = "update the program to use it"
GONE = {(section, "budget_weight") for section in ("colt5", "colt5_attention", "mixture_of_depths")}  # switches that there are no more

Shape = tuple[int, ...]


class SnapshotError(Exception):
    """A snapshot can't be read or written. The message is one line."""


class DamagedSnapshot(SnapshotError):
    """The file was cut off or changed since it was written."""


class NewerSnapshot(SnapshotError):
    """Written by a program that knows more than this one. It may be whole, and is left alone."""


@dataclass(frozen=True)
class Header:
    """A snapshot without its tensors. Their checksums are not looked at."""

    path: Path
    bytes: int
    saved: datetime
    preset: str  # its name
    life: dict[str, Any]
    run: dict[str, Any]
    shapes: dict[str, Shape]  # by part and name, "weights.model.norm.weight"
    identity: str  # of the content: equal for the same snapshot under another name
    config: dict[str, Any]  # the whole preset, as JSON

    @property
    def life_tokens(self) -> int:
        return int(self.life["tokens"])

    @property
    def weight_bytes(self) -> int:
        """What the model alone takes up in memory, in float32."""
        return 4 * sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith("weights.model."))

    def came_from(self, other: "Header") -> bool:
        """Whether this model was once what `other` holds: that is neither later in life nor left behind where the model went back."""
        left = (note["tokens"] < other.life_tokens and other.saved <= datetime.fromisoformat(note["at"]) for note in self.life.get("went_back", ()))
        return other.life_tokens <= self.life_tokens and not any(left)

    def known(self) -> dict[str, dict[str, float]]:
        """By source what was measured on this very model, on all held-out text: {"bits_per_byte", "tokens"}, and "pseudo" where it reads from both ends."""
        full = self.life.get("measured", {}).get("full", {})
        own = {name: held for name, held in full.items() if held["at"] == self.life_tokens}
        return {name: {"bits_per_byte": held["now"]} | {key: held[key] for key in ("tokens", "pseudo") if key in held} for name, held in own.items()}

    @property
    def is_pseudo(self) -> bool:
        """Whether what is measured of it is by words on both sides, so that no causal model's can be held against it."""
        return self.config.get("model", {}).get("bidirectional", "off") != "off"


class Listed(NamedTuple):
    """A file that holds, or should hold, a snapshot of this model."""

    kind: str  # "current", "prev", "prev2", "run", "left" or "before"
    path: Path
    header: Header | None
    reason: str = ""  # why there is no header, in a line


def listed(folder: Path) -> list[Listed]:
    """The snapshots of a folder: the three by name, then those of the archive, newest first. Another name of the same file is left out."""
    places = [(kind, folder / name) for kind, name in NAMES.items()]
    archived = [path for path in (folder / ARCHIVE).glob("*.pth") if ARCHIVED.fullmatch(path.name)]
    places += [(path.name.split("-")[0], path) for path in newest_first(archived)]
    found: dict[tuple[int, int], Listed] = {}
    for kind, path in places:
        try:
            about = path.stat()
        except OSError:
            continue
        if (about.st_dev, about.st_ino) not in found:
            found[about.st_dev, about.st_ino] = _listed(kind, path)
    return list(found.values())


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sorted by the dates of the files, which are those of their writing: another name or place does not change them."""
    return sorted(sorted(paths, reverse=True), key=lambda path: -path.stat().st_mtime_ns)


def plain(name: str) -> str:
    """A tensor's name for a person."""
    return name.removeprefix("model.").removesuffix(".weight")


def preset_of(path: Path, config: dict[str, Any]) -> Preset:
    """The preset that the snapshot at `path` holds; what it lacks, since the program that wrote it knew no such switch, is as by default, and what
    this one has no more is left out.

    NewerSnapshot where this program does not understand it.
    """
    known = {
        name: {switch: value for switch, value in section.items() if (name, switch) not in GONE} if isinstance(section, dict) else section
        for name, section in config.items()
    }
    try:
        return preset_from_json(json.dumps(known), str(path))
    except PresetError as error:
        what = str(error).removeprefix(f"{path}: ").split(":")[0]
        raise NewerSnapshot(f"{path}: was written by a newer version of this program ({what} is not known here); {UPDATE}") from None


def _listed(kind: str, path: Path) -> Listed:
    try:
        header = read_header(path)
        preset_of(path, header.config)
        return Listed(kind, path, header)
    except SnapshotError as error:
        return Listed(kind, path, None, str(error).removeprefix(f"{path}: "))


def read_header(path: Path) -> Header:
    """The header of the file at `path`. DamagedSnapshot, or SnapshotError for a file that is not there, not ours or of a newer format."""
    content = _unpickled(path)
    check_parts(path, content)
    if hashlib.sha256(content["meta"].encode()).hexdigest() != content["checksums"].get("meta"):
        raise DamagedSnapshot(f"{path}: is damaged (meta does not match its checksum)")
    meta, about = json.loads(content["meta"]), path.stat()
    saved = datetime.fromisoformat(meta["saved"]) if "saved" in meta else datetime.fromtimestamp(about.st_mtime, UTC)
    identity = hashlib.sha256(json.dumps(content["checksums"], sort_keys=True).encode()).hexdigest()[:16]
    return Header(path, about.st_size, saved, meta["preset"]["name"], meta["life"], meta["run"], content["tensors"], identity, meta["preset"])


def check_parts(path: Path, content: Any) -> None:
    """SnapshotError when what a file holds is not a snapshot, or one that only a newer program understands."""
    if not isinstance(content, dict) or [type(content.get(part)) for part in PARTS] != list(PARTS.values()):
        raise SnapshotError(f"{path}: was not written by this program; move it away, nothing is overwritten")
    if content["format"] > FORMAT:
        raise NewerSnapshot(f"{path}: was written by a newer version of this program (format {content['format']}, up to {FORMAT} is known here); {UPDATE}")


def _unpickled(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((info for info in archive.infolist() if info.filename.endswith("/data.pkl")), None)
            if pickled is None or pickled.compress_type != zipfile.ZIP_STORED:  # what is packed could unpack to any size
                raise SnapshotError(f"{path}: was not written by this program; move it away, nothing is overwritten")
            return _Reader(io.BytesIO(archive.read(pickled))).load()
    except OSError as error:
        raise SnapshotError(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from None
    except SnapshotError:
        raise
    except Exception:  # a broken zip or pickle fails in many ways
        raise DamagedSnapshot(f"{path}: is damaged or cut off, or was not written by this program") from None


class _Reader(pickle.Unpickler):
    """Builds what a snapshot is made of, and nothing else."""

    def persistent_load(self, pid: Any) -> None:
        """The bytes of a tensor stay where they are."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, *rest: tuple(size)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return type(None)
        raise pickle.UnpicklingError(f"{module}.{name}")
