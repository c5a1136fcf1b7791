"""The live screen of a run: Facts in, lines out, for any size of terminal.

80 x 24                                     wide
head                                        head
progress                                    progress
curve          | numbers                    curve            | numbers
sources                                                      | held-out text
experts                                     sources          | what the model writes
memory                                      experts          |
losses                                      memory           |
held-out text                               losses           |
what the model writes                       log
log                                         keys
keys
"""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lm.app import panels
from lm.app.facts import Facts
from lm.app.text import QUIET, Lines, apart, beside, filled, fitted, spans

WIDE, NARROWEST, LOWEST = 110, 56, 14
KEYS, STOPPING = "Ctrl-C saves and stops", "Ctrl-C again leaves at once"


class Dashboard:
    """What rich draws again and again while a run goes on."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or options.size.height
        with self.facts.lock:
            lines = lines_of(self.facts, width, height)
        yield Text("\n", no_wrap=True, end="").join(lines)


def lines_of(facts: Facts, width: int, height: int) -> Lines:
    """The screen as exactly `height` lines of at most `width` cells."""
    if width < NARROWEST or height < LOWEST:
        lines = panels.small(facts, width)
        return [fitted(line, width) for line in filled(lines, height)]
    inner = width - 2
    draw = _wide if width >= WIDE and height >= 30 else _narrow
    lines = [*panels.head(facts, inner), *filled(draw(facts, inner, height - 4), height - 4), keys(facts, inner)]
    return [fitted(Text.assemble(" ", line, no_wrap=True, end=""), width) for line in lines]


def keys(facts: Facts, width: int) -> Text:
    """The last line: what can be done."""
    words = (STOPPING, "yellow") if facts.stopping else (KEYS, QUIET)
    return apart(spans(words), spans((facts.plan, QUIET)), width) if facts.plan else spans(words)


def _narrow(facts: Facts, width: int, height: int) -> Lines:
    """One column; the curve takes what the rest leaves."""
    sources = panels.sources(facts, width, max(height // 4, 4))
    losses = panels.losses(facts, width, height // 4)
    writes = panels.samples(facts, width, 2 + height // 12 - (len(losses) > 2))
    held_out = panels.held_out_line(facts, width)
    experts, memory = panels.experts(facts, width, height // 15), panels.memory(facts, width, height // 15)
    beside_them = [*experts, *memory, *losses]
    log = panels.log(facts, width, 2 + height // 10 - min(len(beside_them), 1 + (len(losses) > 2)))
    rest = height - len(sources) - len(writes) - len(held_out) - len(beside_them) - len(log)
    right = 24
    upper = beside(panels.loss(facts, width - right - 3, rest), panels.numbers(facts, right, rest), width - right - 3, right)
    return [*upper, *sources, *beside_them, *held_out, *writes, *log]


def _wide(facts: Facts, width: int, height: int) -> Lines:
    """Two columns above the log."""
    right = max(width * 3 // 10, 40)
    left = width - right - 3
    log = panels.log(facts, width, max(height // 7, 3))
    rest = height - len(log) - 1
    sources, losses = panels.sources(facts, left, rest // 3), panels.losses(facts, left, rest // 3)
    others = [*(panel(facts, left, rest // 6) for panel in (panels.experts, panels.memory)), losses]
    below = [Text(""), *sources, *(line for part in others if part for line in (Text(""), *part))]
    numbers, held_out = panels.numbers(facts, right, 11), panels.held_out_table(facts, right, rest // 3)
    writes = panels.samples(facts, right, rest - len(numbers) - len(held_out) - 2)
    first = [*panels.loss(facts, left, rest - len(below)), *below]
    second = [*numbers, Text(""), *held_out, *([Text("")] if held_out else []), *writes]
    return [*beside(filled(first, rest), filled(second, rest), left, right), Text(""), *log]
