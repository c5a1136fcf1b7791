"""Before a run: a preset that would make another model of the one there is, or asks for another tokenizer, is asked about."""

import contextlib
from collections.abc import Callable

from lm.app.details import Fragments, paragraph, row
from lm.app.list_screen import BACK, Entry, ListScreen
from lm.app.terminal import CHECKPOINTS, in_a_line
from lm.app.words import counted, one_line
from lm.preset import Preset
from lm.training.change import Change, begin_new_life, change_of
from lm.training.headers import NAMES, NEW, Header, SnapshotError, read_header

KEYS = "↑↓ choose   Enter do it   q back"
GO_ON = "What fits is kept with all that it has learned, what is new begins beside it. A copy of the model as it is now goes to checkpoints/archive/ first."
KEEP = "The model goes on with its own tokenizer, and reads with it what the preset names."
ANEW = "The folder checkpoints/ gets another name, with the model and all that belongs to it, and another model is born. Nothing is deleted."
SWITCHES_SHOWN = 4
STAY = "Nothing is done."


def settled(preset: Preset) -> str | None:
    """None where the run can begin, after a person was asked if there was something to ask. Else a line for the menu."""
    header = _newest()
    change = change_of(header, preset) if header else None
    if change is None:
        return None
    entries = [Entry("Go on", _about(GO_ON if change.parts else KEEP)), Entry("New life", _about(ANEW)), Entry("Back", _about(STAY))]
    picked = ListScreen(_head(preset, change), entries, 0, {"enter": "do"}, [], KEYS).run()
    if picked.action == BACK or picked.index == 2:
        return ""
    if picked.index == 1:
        try:
            begin_new_life(CHECKPOINTS)
        except (SnapshotError, OSError) as error:
            return f"Nothing has begun. {in_a_line(error)}"
    return None


def _newest() -> Header | None:
    """The header of the snapshot that training would go on from, as far as headers tell."""
    for name in (NEW, *NAMES.values()):
        with contextlib.suppress(SnapshotError):
            return read_header(CHECKPOINTS / name)
    return None


def _about(text: str) -> Callable[[int], Fragments]:
    return lambda width: paragraph("", text, width)


def _head(preset: Preset, change: Change) -> Callable[[int], Fragments]:
    name = one_line(preset.name)

    def head(width: int) -> Fragments:
        if not change.parts:
            return [*paragraph("class:warning", f"{name}: {one_line(change.tokenizer)}.", width), ("", "\n")]
        out = paragraph("class:strong", f"{name} describes another model than the one there is", width)
        for part in change.parts:
            if part.tensors:
                size = f"{part.tensors} tensor{'s' * (part.tensors > 1)}, {counted(part.parameters)} parameters"
                out += row(part.fate, f"{size}: {one_line(part.names)}", width)
            elif part.fate == "kept":
                out += row(part.fate, "nothing", width)
        shown, more = change.switches[:SWITCHES_SHOWN], len(change.switches) - SWITCHES_SHOWN
        for number, line in enumerate([*shown, *[f"and {more} more"] * (more > 0)]):
            out += row("" if number else "because", one_line(line), width)
        out += paragraph("class:warning", f"Also, {one_line(change.tokenizer)}.", width) if change.tokenizer else []
        return [*out, ("", "\n")]

    return head
