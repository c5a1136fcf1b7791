"""Export: the newest snapshot as a folder that transformers opens without this program."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from lm.app.life import NO_MODEL
from lm.app.pager import Pager
from lm.app.terminal import CHECKPOINTS, quieted
from lm.app.text import ACCENT, QUIET
from lm.app.words import one_line, size

EXPORTS = Path("exports")
CLOSING = "These lines open it here; elsewhere name the folder with its whole path, or move it: nothing else is needed."


def export() -> str:
    """Write the folder and show how it is opened. A line for the menu."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    said: list[str] = []
    try:
        with console.status(Text("reading the snapshot", style=QUIET), spinner_style=ACCENT) as status, quieted():
            place = _written(said.append, lambda step: status.update(Text(f"{step} (Ctrl-C stops it)", style=QUIET)))
    except KeyboardInterrupt:
        return "The export was stopped; nothing of it is left."
    if place is None:
        return one_line(said[-1])
    Pager("export", lambda width: _page(place, said)).run()
    return f"Exported to {place}."


def _written(say: Callable[[str], None], step: Callable[[str], None]) -> Path | None:
    """The folder that was written. None when there is none: then `say` has heard why."""
    from lm.export import ExportError, export_snapshot
    from lm.training.snapshots import SnapshotError, Snapshots

    try:
        snapshot = Snapshots(CHECKPOINTS).newest(say)
        if snapshot is not None:
            return export_snapshot(snapshot, EXPORTS, step)
        say(NO_MODEL)
    except (SnapshotError, ExportError) as error:
        say(str(error))
    return None


def _page(place: Path, said: list[str]) -> Group:
    from lm.export.card import IMPORTS, opening_lines

    told = [Text(f"{one_line(line)}\n", style="yellow") for line in said]
    whole = sum(path.stat().st_size for path in place.iterdir())
    head = Text.assemble((f"{place}", "bold"), (f"  {size(whole)}", QUIET), "\n")
    return Group(*told, head, Text(IMPORTS), *map(Text, opening_lines(place)), Text(f"\n{CLOSING}", style=QUIET))
