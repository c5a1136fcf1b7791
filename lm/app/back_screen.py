"""Go back: an earlier snapshot becomes the current one, once the person has said so twice."""

from collections.abc import Callable
from datetime import UTC, datetime

from lm.app.details import Fragments, paragraph
from lm.app.earlier import KINDS, about, heading, label
from lm.app.list_screen import BACK, Entry, ListScreen
from lm.app.terminal import CHECKPOINTS, quieted, uninterrupted
from lm.app.words import counted, one_line
from lm.training.forgetting import kept_measures
from lm.training.headers import NAMES, Listed, SnapshotError, listed

KEYS, CONFIRM_KEYS = "↑↓ choose   Enter go back to it   q back", "↑↓ choose   Enter do it   q back"
NOTHING_THERE = "There is nothing to go back to yet: a run keeps two earlier snapshots as it goes, and its end."
ROOM_FOR_WORDS = 38  # columns; below that the list needs all lines


def back() -> str:
    """Until something was done or the person goes back. A line for the menu."""
    cursor, said = 0, ""
    while earlier := [each for each in listed(CHECKPOINTS) if each.kind != "current"]:
        entries = [Entry(label(each), _about(each), each.header is not None, "" if each.header else "✗") for each in earlier]
        picked = ListScreen(_head(_now(), said), entries, min(cursor, len(entries) - 1), {"enter": "go"}, ["go"], KEYS).run()
        if picked.action == BACK:
            return ""
        cursor, said = picked.index, ""
        if _confirmed(earlier[cursor]):
            try:
                return _gone_back(earlier[cursor])
            except SnapshotError as error:
                said = str(error)
            except KeyboardInterrupt:
                said = "Stopped: look again which snapshot is the current one."
    return NOTHING_THERE


def _about(each: Listed) -> Callable[[int], Fragments]:
    return lambda width: about(each, datetime.now(UTC), kept_measures(CHECKPOINTS), width)


def _now() -> str:
    """What is current, in a line."""
    current = next((each for each in listed(CHECKPOINTS) if each.kind == "current"), None)
    if current is None:
        return "There is no current snapshot."
    return heading("current", current.header) if current.header else f"current: {current.reason}"


def _head(words: str, said: str = "", in_short: str = "") -> Callable[[int], Fragments]:
    """`words` under the title, `in_short` where there is no room for them, and what the last thing done had to say."""

    def head(width: int) -> Fragments:
        out: Fragments = [("class:accent", "Perennial"), ("class:strong", "  go back\n")]
        out += paragraph("class:quiet", one_line(words if width >= ROOM_FOR_WORDS else in_short), width)
        return [*out, *paragraph("class:warning", one_line(said), width), ("", "\n")]

    return head


def _confirmed(each: Listed) -> bool:
    """Ask once more, and say what will happen."""
    words = f"{each.path.name} ({counted(each.header.life_tokens)} tokens) becomes the current snapshot, and the next run goes on from it. "
    words += f"What is current now becomes {NAMES['prev']} and is kept in the archive. Nothing is deleted."
    entries = [Entry("Stay as it is"), Entry(f"Go back to {KINDS[each.kind][0]}", _about(each))]
    picked = ListScreen(_head(words, in_short=f"{each.path.name} becomes current?"), entries, 0, {"enter": "do"}, [], CONFIRM_KEYS).run()
    return picked.action == "do" and picked.index == 1


def _gone_back(each: Listed) -> str:
    """Do it. What came of it, in a line; SnapshotError when it could not be done."""
    from rich.console import Console
    from rich.text import Text

    from lm.app.text import ACCENT, QUIET

    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    with console.status(Text("checking the snapshot", style=QUIET), spinner_style=ACCENT), quieted():
        with uninterrupted():
            from lm.training.going_back import go_back

        event = go_back(CHECKPOINTS, each.path)
    kept = f"; what was current is {NAMES['prev']} and {event['kept']}" if event["kept"] else ""
    return f"Gone back to {each.path.name}, at {counted(event['to']['life_tokens'])} tokens{kept}."
