"""The snapshots of a folder in words: what each is, how old, how much it had read, how well it knew its sources."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lm.app.details import Fragments, paragraph, row
from lm.app.words import counted, duration, one_line, size
from lm.training.forgetting import Measures
from lm.training.headers import Header, Listed

KINDS = {
    "current": ("current", "the model as it is now"),
    "prev": ("prev", "the snapshot before the current one"),
    "prev2": ("prev2", "the snapshot before prev"),
    "run": ("run end", "the end of an earlier run"),
    "left": ("left", "was current when the model went back"),
    "before": ("before", "before the model took another shape"),
}


def label(listed: Listed) -> str:
    """A line of a list: what it is, how much it had read, and its day."""
    name = KINDS[listed.kind][0]
    return f"{name:<8}{counted(listed.header.life_tokens):>5}  {listed.header.saved.astimezone():%b %d}" if listed.header else name


def heading(kind: str, header: Header) -> str:
    """What it is, in a few words: "prev · 161,792 tokens · 2026-11-21 09:45:12". Two of one evening, late in a long life, must not look alike."""
    return f"{KINDS[kind][0]} · {header.life_tokens:,} tokens · {moment(header)}"


def moment(header: Header) -> str:
    """When it was taken, to the second, by the clock of this place."""
    return f"{header.saved.astimezone():%Y-%m-%d %H:%M:%S}"


def ago(header: Header, now: datetime) -> str:
    """ "12 min ago"."""
    return f"{duration(max((now - header.saved).total_seconds(), 0))} ago"


def about(listed: Listed, now: datetime, kept: Mapping[str, Measures], width: int) -> Fragments:
    """All that is known of a snapshot, in lines of at most `width` characters. kept: what it was asked to be measured for, by identity."""
    header = listed.header
    out: Fragments = [("class:strong", KINDS[listed.kind][0]), ("class:quiet", f"   {one_line(str(listed.path))}\n")]
    out += paragraph("", KINDS[listed.kind][1], width)
    if header is None:
        return [*out, *paragraph("class:bad", one_line(listed.reason), width)]
    runs = len(header.life.get("runs", []))
    out += [("", "\n")]
    out += row("saved", f"{moment(header)}, {ago(header, now)}", width)
    out += row("life", f"{counted(header.life_tokens)} tokens in {runs} run{'s' * (runs != 1)}", width)
    out += row("last run", f"{one_line(header.preset)} at {counted(header.run.get('tokens', 0))} of {counted(header.run.get('budget', 0))}", width)
    out += row("held-out", held_out(header, kept.get(header.identity)), width)
    return out + row("size", size(header.bytes), width)


def held_out(header: Header, asked: Measures | None) -> str:
    """The bits per byte by source of a snapshot: its own, where they were taken along the way or when somebody `asked`, else the last before it."""
    at, found = newest_measures(header)
    if asked and at != header.life_tokens:
        at, found = header.life_tokens, {name: held["bits_per_byte"] for name, held in asked.items()}
    if not found:
        return "not measured"
    figures = ", ".join(f"{one_line(name)} {bits:.3f}" for name, bits in found.items())
    return f"{figures} {'pseudo-' * header.is_pseudo}bits per byte" + ("" if at == header.life_tokens else f", measured at {counted(at)} tokens")


def newest_measures(header: Header) -> tuple[int, dict[str, float]]:
    """The newest measures that a snapshot holds of a model like its own: at how many tokens of its life, and the bits per byte by source."""
    kinds: dict[str, dict[str, Any]] = header.life.get("measured", {})
    own = [(name, held) for kind in ("brief", "full") for name, held in kinds.get(kind, {}).items() if held.get("pseudo", False) == header.is_pseudo]
    at = max((held["at"] for _, held in own), default=0)
    return at, {name: held["now"] for name, held in own if held["at"] == at}
