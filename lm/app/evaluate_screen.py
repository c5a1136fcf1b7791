"""Evaluate: how well the newest snapshot predicts text that it never trained on."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lm.app.pager import Pager
from lm.app.terminal import CHECKPOINTS, quieted
from lm.app.text import ACCENT, LABEL, QUIET
from lm.app.words import counted, figure, one_line

MEANING = "cross entropy in nats a token; bits per byte do not depend on the tokenizer"
COLUMNS = ("cross entropy", "perplexity", "bits per byte", "held-out tokens")


def evaluate() -> str:
    """Show the table until the person goes back. A line for the menu when there is nothing to show."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    try:
        with console.status(Text("measuring on held-out text (Ctrl-C goes back)", style=QUIET), spinner_style=ACCENT), quieted():
            event = _measured()
    except KeyboardInterrupt:
        return ""
    if not event.get("sources"):
        return event.get("text", "No text is held out yet: it is gathered while the model trains.")
    Pager("evaluation of the current snapshot", lambda width: Group(table_of(event), Text(""), Text(MEANING, style=QUIET))).run()
    return ""


def _measured() -> Mapping[str, Any]:
    from lm.training.evaluation import evaluate_snapshot
    from lm.training.snapshots import SnapshotError

    try:
        return evaluate_snapshot(str(CHECKPOINTS))
    except SnapshotError as error:
        return {"text": one_line(str(error))}


def table_of(event: Mapping[str, Any]) -> Table:
    """The measures by source, and over all of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    table.add_column("source")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, values in event["sources"].items():
        table.add_row(Text(one_line(name)), *_cells(values))
    if len(event["sources"]) > 1:
        table.add_row("all", *_cells({**event, "tokens": sum(each["tokens"] for each in event["sources"].values())}), style="bold")
    return table


def _cells(values: Mapping[str, float]) -> list[str]:
    return [figure(values["cross_entropy"], 4), figure(values["perplexity"], 2), figure(values["bits_per_byte"], 4), counted(int(values["tokens"]))]
