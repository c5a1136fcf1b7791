"""What it has read: the sources of the model's whole life, and what went wrong with them last."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from lm.app.life import Life, read_life
from lm.app.pager import Pager
from lm.app.panels import STATE_STYLES
from lm.app.past import TROUBLES
from lm.app.reading import SourceReading, read_reading, when
from lm.app.terminal import CHECKPOINTS
from lm.app.text import LABEL, QUIET, Lines, fitted, spans, wrapped
from lm.app.words import NOTHING, counted, one_line

LEAST_NAME, MOST_NAME, FIGURES, STATE = 16, 48, 33, 18  # widths of the columns
ERROR_LINES = 3
NO_MODEL = "There is no model yet: what it has read is told here once a run has saved it."


def reading() -> str:
    """Show the page until the person goes back. A line for the menu when there is no model."""
    life = read_life(CHECKPOINTS)
    if not life.has_begun:
        return NO_MODEL
    sources = read_reading(CHECKPOINTS)
    Pager("what it has read", lambda width: Text("\n").join(page(life, sources, width, datetime.now(UTC)))).run()
    return ""


def page(life: Life, sources: Sequence[SourceReading], width: int, now: datetime) -> Lines:
    """The page in lines of at most `width` cells: a table, or a few lines a source where there is no room for one."""
    if not sources:
        return wrapped(spans("Nothing is known of it: neither life.json nor run.jsonl in checkpoints/ tells of a source."), width, 9)
    total = sum(source.tokens for source in sources)
    documents = sum(source.documents for source in sources)
    since = f" since {life.born[:10]}" if life.born else ""
    whole = f"{counted(total)} tokens of {counted(documents)} documents{since}, as of the last snapshot"
    room = min(width - FIGURES - STATE, MOST_NAME)
    longest = max(len("source"), *(Text(one_line(source.name)).cell_len for source in sources))
    lines = [*wrapped(spans((whole, QUIET)), width, 9), Text("")]
    lines += [_columns(min(longest, room))] if room >= LEAST_NAME else []
    for source in sources:
        share = f"{100 * source.tokens / total:.0f}%" if source.tokens else NOTHING
        lines += [_row(source, share, min(longest, room))] if room >= LEAST_NAME else _stacked(source, share, width)
        lines += _error(source, width, now)
    return lines


def _columns(name_width: int) -> Text:
    return spans((f"{'source':<{name_width}}{'documents':>11}{'tokens':>9}{'share':>7}{'epoch':>6}  {'last state'}", LABEL))


def _row(source: SourceReading, share: str, name_width: int) -> Text:
    figures = f"{counted(source.documents):>11}{counted(source.tokens):>9}{share:>7}{_epoch(source):>6}  "
    return spans(fitted(Text(one_line(source.name)), name_width), figures, _state(source))


def _stacked(source: SourceReading, share: str, width: int) -> Lines:
    name = Text(one_line(source.name), style="bold")
    counts = f"{counted(source.tokens)} tokens ({share}), {counted(source.documents)} documents, epoch {_epoch(source)}"
    return [*wrapped(name, width, 2), *wrapped(spans(counts), width, 4), _state(source)]


def _epoch(source: SourceReading) -> str:
    return f"{source.epochs + 1}" if source.documents else NOTHING


def _state(source: SourceReading) -> Text:
    state = one_line(source.state)
    return spans(("● ", STATE_STYLES.get(state, QUIET)), state) if state else spans(("in earlier runs", QUIET))


def _error(source: SourceReading, width: int, now: datetime) -> Lines:
    """The last thing that went wrong, indented."""
    if not source.last_error:
        return []
    at = f" {when(source.last_error_at, now)}" if source.last_error_at else ""
    words = spans((f"last error{at}: {one_line(source.last_error)}", "yellow" if source.state in TROUBLES else QUIET))
    return [spans("  ", line) for line in wrapped(words, max(width - 2, 1), ERROR_LINES)]
