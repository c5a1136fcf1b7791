"""Evaluate: how well the newest snapshot predicts text that it never trained on, and what it still knows of what it once knew."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lm.app.earlier import heading
from lm.app.forgetting import Panel, lines_of, panel_of
from lm.app.life import NO_MODEL
from lm.app.pager import Pager
from lm.app.terminal import CHECKPOINTS, quieted, uninterrupted
from lm.app.text import ACCENT, LABEL, QUIET, spans, wrapped
from lm.app.words import AS_TRAINED, counted, denoisers_in_words, figure, one_line
from lm.training.forgetting import keep_measures, kept_measures
from lm.training.headers import Header, Listed, SnapshotError, listed, read_header

MEANING = "cross entropy in nats a token; bits per byte do not depend on the tokenizer"
PSEUDO = "each word by those on both sides: not to be held against a causal model"
IN_GAPS = "what stood in the gaps of each denoiser, in nats a token"
COLUMNS = ("cross entropy", "perplexity", "bits per byte", "held-out tokens")
PSEUDO_COLUMNS = ("cross entropy", "pseudo-perplexity", "pseudo-bits/byte", "held-out tokens")
WORTH = "bits per byte; overlap: the longest run of a text that its neighbours have, too; by chance: with chunks drawn by lot"
MEASURE = {"m": "measure what is missing"}
Texts = Mapping[str, Sequence[str]]  # by source


def evaluate() -> str:
    """Show the page until the person goes back. A line for the menu when there is nothing to show."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    notes: list[str] = []
    try:
        with console.status(Text("measuring on held-out text (Ctrl-C goes back)", style=QUIET), spinner_style=ACCENT), quieted():
            header, texts, event = _measured(notes.append)
    except KeyboardInterrupt:
        return ""
    if not event.get("sources"):
        return event.get("text", "No text is held out yet: it is gathered while the model trains.")
    while True:
        panel = panel_of(event["sources"], header, listed(CHECKPOINTS), kept_measures(CHECKPOINTS))
        if not Pager("evaluation of the newest snapshot", _page(event, panel, notes), MEASURE if panel.missing else {}).run():
            return ""
        console.clear()
        notes = _measure(console, panel.missing, texts)


def _measured(say: Callable[[str], None]) -> tuple[Header | None, Texts, Mapping[str, Any]]:
    """The newest whole snapshot, all text that is held out, and the evaluation of the one on the other. `say` hears when it is not the current one."""
    with uninterrupted():
        from lm.training.snapshot_evaluation import evaluation_of, held_out_texts
        from lm.training.snapshots import Snapshots

    try:
        snapshot = Snapshots(CHECKPOINTS).newest(say)
        if snapshot is None or snapshot.path is None:
            return None, {}, {"text": NO_MODEL}
        header, texts = read_header(snapshot.path), held_out_texts(CHECKPOINTS)
        event = evaluation_of(snapshot, texts, CHECKPOINTS)
    except SnapshotError as error:
        return None, {}, {"text": one_line(str(error))}
    keep_measures(CHECKPOINTS, header.identity, event.get("sources", {}))
    return header, texts, event


def _measure(console: Console, missing: list[Listed], texts: Texts) -> list[str]:
    """Measure snapshots on the text that the current one was measured on. Lines about those that could not be."""
    from lm.training.snapshot_evaluation import evaluate_file

    notes = []
    for each in missing:
        words = f"measuring {heading(each.kind, each.header)} on held-out text (Ctrl-C stops)"
        try:
            with console.status(Text(words, style=QUIET), spinner_style=ACCENT), quieted():
                measures = evaluate_file(each.path, texts, CHECKPOINTS)["sources"]
            keep_measures(CHECKPOINTS, each.header.identity, measures)
        except SnapshotError as error:
            notes.append(one_line(str(error)))
        except KeyboardInterrupt:
            break
    return notes


def _page(event: Mapping[str, Any], panel: Panel, notes: list[str]) -> Callable[[int], Group]:
    def page(width: int) -> Group:
        said = [*([event["trouble"]] if "trouble" in event else []), *notes]
        lines = [*lines_of(panel, width), *(line for note in said for line in wrapped(spans((one_line(note), "yellow")), width, 3))]
        worth = [worth_table(event["memory"]), Text(WORTH, style=QUIET), Text("")] if event.get("memory") else []
        return Group(table_of(event), Text(PSEUDO if event.get("pseudo") else MEANING, style=QUIET), *_gaps(event), Text(""), *worth, Text("\n").join(lines))

    return page


def table_of(event: Mapping[str, Any]) -> Table:
    """The measures by source, and over all of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    table.add_column("source")
    for column in PSEUDO_COLUMNS if event.get("pseudo") else COLUMNS:
        table.add_column(column, justify="right")
    for name, values in event["sources"].items():
        table.add_row(Text(one_line(name)), *_cells(values))
    if len(event["sources"]) > 1:
        table.add_row("all", *_cells({**event, "tokens": sum(each["tokens"] for each in event["sources"].values())}), style="bold")
    if "without_average" in event:
        table.add_row(AS_TRAINED, *_cells(event["without_average"]))
    return table


def _gaps(event: Mapping[str, Any]) -> list[Text]:
    """A line about each denoiser's gaps, where it was trained with some."""
    if not event.get("denoisers"):
        return []
    return [Text.assemble(("gaps  ", LABEL), denoisers_in_words(event), (f"   {IN_GAPS}", QUIET))]


def worth_table(memory: Sequence[Mapping[str, Any]]) -> Table:
    """Bits per byte with the memory and without, by how much of the text it had."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    table.add_column("overlap")
    for column in ("memory on", "off", "by chance", "bytes"):
        table.add_column(column, justify="right")
    for row in memory:
        bits = [figure(row["bits"][way], 4) for way in ("on", "off", "chance")]
        table.add_row(row["overlap"], *bits, counted(row["bytes"]), style="bold" if row["overlap"] == "all" else "")
    return table


def _cells(values: Mapping[str, float]) -> list[str]:
    return [figure(values["cross_entropy"], 4), figure(values["perplexity"], 2), figure(values["bits_per_byte"], 4), counted(int(values["tokens"]))]
