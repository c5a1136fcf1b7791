"""The first screen: presets, then what else there is. Nothing here imports torch, and Enter on the first line trains."""

from collections.abc import Callable
from typing import NamedTuple

from lm.app.details import Fragments, details, paragraph
from lm.app.life import NO_MODEL, Life, read_life
from lm.app.list_screen import BACK, GAP_ENTRY, Entry, ListScreen
from lm.app.shelf import Shelved, default_of, read_shelf
from lm.app.terminal import CHECKPOINTS
from lm.app.words import one_line
from lm.preset import Preset

KEYS = "↑↓ choose   Enter start   t time a few steps   q quit"
ACTIONS = {
    "chat": ("Chat", "Talk with the model as it is now."),
    "evaluate": ("Evaluate", "Measure the newest snapshot on held-out text: cross entropy, perplexity and bits per byte, by source."),
    "reading": ("What it has read", "Its sources over its whole life: documents, tokens, epochs and shares, and what went wrong with each last."),
    "presets": ("Presets", "Look at a preset with every default written out, or open one in your editor."),
    "compare": ("Compare", "One prompt, answered by the model as it is now and as it was: current, prev, prev2 and the ends of earlier runs."),
    "back": ("Go back", "Make an earlier snapshot the current one: of the last half hour, or the end of an earlier run. Nothing is deleted."),
    "export": ("Export", "Write the newest snapshot as a folder that transformers opens without this program, into exports/."),
    "quit": ("Quit", "The model stays in checkpoints/ and goes on from there next time."),
}
NEEDS_A_MODEL = ("chat", "evaluate", "reading", "compare", "back", "export")


class Choice(NamedTuple):
    """What a person wants: "train" with a preset, or one of ACTIONS."""

    action: str
    preset: Preset | None = None


def ask(said: str = "") -> Choice:
    """Show the menu until something is chosen. `said` is what the last thing done had to say."""
    shelf, life = read_shelf(), read_life(CHECKPOINTS)
    entries = [*_presets(shelf, life), GAP_ENTRY, *(_action(name, life) for name in ACTIONS)]
    cursor = _first(shelf, life)
    while True:
        picked = ListScreen(_head(said, life), entries, cursor, {"enter": "start", "t": "time"}, ["start", "time"], KEYS).run()
        if picked.action == BACK:
            return Choice("quit")
        preset = shelf[picked.index].preset if picked.index < len(shelf) else None
        if picked.action == "time":
            cursor, said = picked.index, timed(preset, life.vocab_size)
        elif preset:
            return Choice("train", preset)
        else:
            return Choice(list(ACTIONS)[picked.index - (len(entries) - len(ACTIONS))])


def timed(preset: Preset | None, vocab_size: int | None) -> str:
    """What a few steps took, in a line. Nothing where there is no preset to take them with."""
    if preset is None:
        return ""
    from lm.app.timing import time_steps

    return time_steps(preset, vocab_size)


def _presets(shelf: list[Shelved], life: Life) -> list[Entry]:
    return [Entry(one_line(each.name), _about(each, life.vocab_size), each.can_be_picked, "" if each.can_be_picked else "✗") for each in shelf]


def _about(shelved: Shelved, vocab_size: int | None) -> Callable[[int], Fragments]:
    return lambda width: details(shelved, width, vocab_size)


def _action(name: str, life: Life) -> Entry:
    label, about = ACTIONS[name]
    missing = name in NEEDS_A_MODEL and not life.has_begun
    words = NO_MODEL if missing else ""
    return Entry(label, lambda width: [("class:strong", f"{label}\n"), *paragraph("", about, width), *paragraph("", words, width)], not missing)


def _first(shelf: list[Shelved], life: Life) -> int:
    """Where the cursor stands: on the preset that Enter goes on with, else on the first action."""
    default = default_of(shelf, life.last_preset)
    return shelf.index(default) if default else len(shelf) + 1


def _head(said: str, life: Life) -> Callable[[int], Fragments]:
    def head(width: int) -> Fragments:
        out: Fragments = [("class:accent", "Perennial"), ("class:quiet", "  a language model that never stops learning" if width > 60 else ""), ("", "\n")]
        if width < 38:
            return out
        out += paragraph("class:quiet", life.in_words(), width)
        out += paragraph("class:warning", one_line(said), width) if said else []
        return [*out, ("", "\n")]

    return head
