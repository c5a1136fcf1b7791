"""What can be typed in a chat or a comparison beside words for the model, apart from any screen.

/settings   /settings temperature 0.5   /reset   /snapshot prev   /with 1 3   /seed 7   /help   /quit
"""

import json
from collections.abc import Collection
from typing import NamedTuple

from lm.preset import Preset, PresetError, preset_from_json
from lm.preset.generation import GenerationConfig

COMMANDS = {
    "/settings": "show how the model writes; /settings NAME VALUE changes it for this chat",
    "/reset": "forget the conversation",
    "/snapshot": "talk with another snapshot: current, prev or prev2",
    "/memory": "/memory WORDS shows what of all it read is nearest to them; /memory off answers your last words again without, /memory on with it",
    "/help": "these lines",
    "/quit": "back to the menu, as Ctrl-D does; Ctrl-C stops an answer",
}
COMPARING = {
    "/with": "list the snapshots; /with 1 3 has those two answer",
    "/settings": "show how they write; /settings NAME VALUE changes it for all",
    "/seed": "/seed NUMBER draws the next answers with it; each prompt takes the next one",
    "/help": "these lines",
    "/quit": "back to the menu, as Esc and Ctrl-D do; while they write, Esc and Ctrl-C stop them",
}
GAPS = ("___", "a gap in a message: a model that was taught gaps fills it, and that is no turn")
SNAPSHOTS = ("current", "prev", "prev2")


class Command(NamedTuple):
    """A command and the words after it."""

    name: str
    words: tuple[str, ...]


class CommandError(ValueError):
    """What was typed can't be done. The message is one line."""


def command_in(line: str, known: Collection[str]) -> Command | None:
    """The command in a line, or None for words to the model. CommandError for one that is not known."""
    if not line.startswith("/"):
        return None
    name, *words = line.split()
    if name not in known:
        raise CommandError(f"{name} is no command; there are {', '.join(known)}")
    return Command(name, tuple(words))


def changed(preset: Preset, settings: GenerationConfig, words: tuple[str, ...]) -> GenerationConfig:
    """`settings` with one of them changed, by the rules of a preset. CommandError says what is allowed."""
    if len(words) != 2:
        raise CommandError("write /settings NAME VALUE, such as /settings temperature 0.5")
    name, value = words
    whole = preset.model_dump(mode="json")
    whole["generation"] = section = settings.model_dump(mode="json")
    *parents, last = name.split(".")  # planner.depth
    for parent in parents:
        section = section.get(parent)
        if not isinstance(section, dict):
            raise CommandError(f"{name} is no setting; /settings shows them all")
    section[last] = _value(value)
    try:
        return preset_from_json(json.dumps(whole), "settings").generation
    except PresetError as error:
        raise CommandError(str(error).removeprefix("settings: generation.")) from None


def _value(text: str) -> bool | int | float | str | None:
    if text in ("true", "false", "null"):
        return json.loads(text)
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if abs(number) < 1e18 else text
    return text


def named_snapshot(words: tuple[str, ...]) -> str:
    """Which snapshot is meant. CommandError for none of the three."""
    if len(words) != 1 or words[0] not in SNAPSHOTS:
        raise CommandError(f"write /snapshot and one of {', '.join(SNAPSHOTS)}")
    return words[0]


def numbered(words: tuple[str, ...], count: int) -> list[int]:
    """Which of `count` things are meant, from 0, each once. CommandError says how to name them."""
    if not all(word.isdecimal() and 1 <= int(word) <= count for word in words):
        raise CommandError(f"write /with and numbers from 1 to {count}")
    return [int(word) - 1 for word in dict.fromkeys(words)]


def seed_in(words: tuple[str, ...]) -> int:
    """The seed that is meant. CommandError for anything but a number."""
    if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 18:
        raise CommandError("write /seed NUMBER, such as /seed 7")
    return int(words[0])
