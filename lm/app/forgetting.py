"""What the model still knows of every source it ever read: bits per byte on held-out text, now, at best, and in earlier snapshots.

Only measures of the same text, taken in the same way, stand side by side, and only those of that very snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from data_sources.config import PAST
from lm.app.earlier import KINDS
from lm.app.text import LABEL, QUIET, Lines, fitted, spans, title, wrapped
from lm.app.words import counted, figure, one_line
from lm.training.forgetting import Measures, are_alike, is_forgotten, remedy, warning
from lm.training.headers import Header, Listed

COLUMN, LEAST_NAME, MOST_NAME = 8, 12, 40
SHOWN = ("prev", "prev2", "run")
MEANING = "bits per byte; less is better; – was not measured on this text"

Bits = Mapping[str, float]  # by source


@dataclass(frozen=True)
class Panel:
    """The figures of the page."""

    tokens: str  # in the current model's life, in words
    sources: list[str]
    now: Bits
    best: Bits
    earlier: list[tuple[Listed, Bits]]
    replayed: float = 0.0  # share of the past in the current model's last run

    @property
    def missing(self) -> list[Listed]:
        """The snapshots that were not measured on all of the text."""
        return [each for each, bits in self.earlier if bits.keys() < self.now.keys()]

    @property
    def warnings(self) -> list[str]:
        """A line for each source that is being forgotten, and what to do about it."""
        lost = [warning(one_line(name), bits, self.best[name]) for name, bits in self.now.items() if is_forgotten(bits, self.best[name])]
        return [*lost, remedy(self.replayed)] if lost else []


def panel_of(measures: Measures, current: Header | None, snapshots: Sequence[Listed], kept: Mapping[str, Measures]) -> Panel:
    """The panel for the current model's `measures`. What others are known by is in their headers, or was kept when it was asked for."""
    life = current.life if current else {}
    full = life.get("measured", {}).get("full", {})
    now = {name: found["bits_per_byte"] for name, found in measures.items()}
    pseudo = any(found.get("pseudo") for found in measures.values())
    others = [each for each in snapshots if each.kind in SHOWN and each.header and each.header.is_pseudo == pseudo]
    earlier = [(each, _same_text({**kept.get(each.header.identity, {}), **each.header.known()}, measures)) for each in others]
    bests = [_same_text({name: {**held, "bits_per_byte": held["best"]} for name, held in full.items()}, measures)]
    bests += [now, *(bits for each, bits in earlier if current and current.came_from(each.header))]  # what it never learned is not forgotten
    best = {name: min(bits[name] for bits in bests if name in bits) for name in now}
    tokens = counted(current.life_tokens) if current else ""
    names = [*now, *(name for name in {**life.get("sources", {}), **full} if name not in (*now, PAST))]
    replay = current.run.get("replay") if current else None
    return Panel(tokens, names, now, best, earlier, replay["share"] if replay else 0.0)


def _same_text(found: Measures, measures: Measures) -> dict[str, float]:
    """The bits per byte of those measures that were taken of the same text, in the same way."""
    return {name: held["bits_per_byte"] for name, held in found.items() if name in measures and are_alike(held, measures[name])}


def lines_of(panel: Panel, width: int) -> Lines:
    """The panel in lines of at most `width` cells: a table, or a few lines a source where there is no room for one."""
    columns = [("now", panel.tokens, panel.now), ("best", "", panel.best)]
    columns += [(KINDS[each.kind][0], counted(each.header.life_tokens), bits) for each, bits in panel.earlier]
    room = min(width - COLUMN * len(columns), MOST_NAME)
    longest = max((Text(one_line(name)).cell_len for name in panel.sources), default=0)
    lines = [fitted(title("what it still knows", width), width)]
    if room >= LEAST_NAME:
        name_width = min(max(longest, LEAST_NAME), room)
        lines += [_heads("", [name for name, _, _ in columns], name_width), _heads("source", [tokens for _, tokens, _ in columns], name_width)]
        lines += [_row(panel, name, [bits for _, _, bits in columns], name_width) for name in panel.sources]
    else:
        for name in panel.sources:
            figures = [" ".join(filter(None, (head, tokens, f"{bits[name]:.3f}"))) for head, tokens, bits in columns if name in bits]
            lines += [*wrapped(Text(one_line(name), style="bold"), width, 2), *wrapped(spans(", ".join(figures) or "not measured"), width, 9)]
    lines += [line for words in panel.warnings for line in wrapped(spans((words, "yellow")), width, 9)]
    return [*lines, *wrapped(spans((MEANING, QUIET)), width, 9)]


def _heads(first: str, words: Sequence[str], name_width: int) -> Text:
    return spans((f"{first:<{name_width}}" + "".join(f"{word:>{COLUMN}}" for word in words), LABEL))


def _row(panel: Panel, name: str, columns: Sequence[Bits], name_width: int) -> Text:
    lost = name in panel.now and is_forgotten(panel.now[name], panel.best[name])
    cells = [(f"{figure(bits.get(name), 3):>{COLUMN}}", "yellow" if lost and not number else "") for number, bits in enumerate(columns)]
    return spans(fitted(Text(one_line(name)), name_width), *cells)
