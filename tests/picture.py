"""docs/screen.svg: the live screen of a real run, drawn again from its journal.

python -m tests.picture checkpoints/run.jsonl docs/screen.svg
"""

import html
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from lm.app.curve import DOTS
from lm.app.dashboard import Dashboard
from lm.app.facts import Facts

THEME = TerminalTheme(
    (17, 22, 20),
    (214, 222, 216),
    [(17, 22, 20), (224, 108, 117), (127, 191, 124), (222, 184, 106), (97, 150, 200), (190, 140, 200), (90, 180, 180), (200, 206, 202)],
)


def picture(events: Iterable[Mapping[str, Any]], width: int = 120, height: int = 36) -> str:
    """The screen after `events`, as SVG."""
    facts = Facts()
    for event in events:
        facts.clock = partial(datetime.timestamp, datetime.fromisoformat(event["at"]))
        facts(event)
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Dashboard(facts))
    svg = console.export_svg(title="Perennial", theme=THEME)
    return re.sub(r'<text class="([^"]*)" x="([^"]*)" y="([^"]*)" textLength="([^"]*)"[^>]*>([^<]*[\u2801-\u28ff][^<]*)</text>', _dots, svg)


def _dots(text: re.Match[str]) -> str:
    """Braille as dots: few fonts have it, and a picture should not depend on one."""
    style, x, y, characters = text[1], float(text[2]), float(text[3]), html.unescape(text[5])
    wide = float(text[4]) / len(characters)
    dots = [
        f'<circle cx="{x + (place + 0.25 + column / 2) * wide:.1f}" cy="{y - 15.5 + 6.1 * row:.1f}" r="2.2"/>'
        for place, character in enumerate(characters)
        for column, bits in enumerate(DOTS)
        for row, bit in enumerate(bits)
        if "\u2800" <= character <= "\u28ff" and ord(character) & bit
    ]
    without = re.sub("[\u2800-\u28ff]", "\u00a0", text[0])
    return f'{without}<g class="{style}">{"".join(dots)}</g>'


def last_run(journal: Path) -> list[dict[str, Any]]:
    """The events of the newest run of a journal."""
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    starts = [number for number, event in enumerate(events) if event["event"] == "run"]
    return events[starts[-1] if starts else 0 :]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture(last_run(source)), encoding="utf-8")
