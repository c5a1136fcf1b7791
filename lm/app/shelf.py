"""The presets of configs/, each read and checked, so that a broken one can be shown with its reason instead of failing later."""

from dataclasses import dataclass
from pathlib import Path

from lm.app.words import one_line
from lm.preset import Preset, PresetError, load_preset

CONFIGS = Path("configs")
DEFAULT = "00_best_general"


@dataclass(frozen=True)
class Shelved:
    """A preset file: the preset, or the reason why it can't be picked."""

    path: Path
    preset: Preset | None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.preset.name if self.preset else self.path.stem

    @property
    def can_be_picked(self) -> bool:
        return self.preset is not None


def read_shelf(folder: Path = CONFIGS) -> list[Shelved]:
    """All presets in the order of their file names."""
    paths = sorted(path for path in folder.glob("*.json") if not path.name.endswith(".schema.json"))
    return [read_one(path) for path in paths]


def read_one(path: Path) -> Shelved:
    """The preset in a file."""
    try:
        return Shelved(path, load_preset(path))
    except PresetError as error:
        return Shelved(path, None, str(error).removeprefix(f"{path}: "))


def default_of(shelf: list[Shelved], last: str) -> Shelved | None:
    """What is trained when nobody is asked: the preset of the `last` run, by its name, else 00_best_general, else the first that can be picked."""
    valid = (shelved for shelved in shelf if shelved.can_be_picked)
    return min(valid, key=lambda shelved: (one_line(shelved.name) != last, shelved.path.stem != DEFAULT), default=None)
