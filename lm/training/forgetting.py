"""What a model still knows of every source it ever read: its bits per byte on that source's held-out text, now and at best.

Two kinds of measure are kept apart: those along the way read the first held-out tokens of each source, those at the end of a run all of them.
"""

from collections.abc import Mapping
from typing import Any

WORSE = 0.02  # past its best by this share, a source is being forgotten


def note_measures(life: dict[str, Any], measures: Mapping[str, Mapping[str, float]], kind: str) -> list[str]:
    """Put the measures by source into the life; a line for each source that the model knew better.

    A best is kept as long as the same text is measured: it grows until a source has enough of it.
    """
    known = life.setdefault("measured", {}).setdefault(kind, {})
    lines = []
    for name, found in measures.items():
        bits, tokens = found["bits_per_byte"], found["tokens"]
        held = known.get(name)
        if held is None or held["tokens"] != tokens or bits <= held["best"]:
            held = {"best": bits, "best_at": life["tokens"], "tokens": tokens}
        known[name] = {**held, "now": bits, "at": life["tokens"]}
        if bits > held["best"] * (1 + WORSE):
            more = bits / held["best"] - 1
            lines.append(f"{name}: {bits:.3f} bits per byte, {more:.0%} more than its best {held['best']:.3f}: it is being forgotten")
    return lines
