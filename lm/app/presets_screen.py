"""Presets: look at one with every default written out, and with what its switches were measured to bring, or open it in an editor and have it
checked again.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator

from pygments import lex
from pygments.lexers.data import JsonLexer
from pygments.token import Keyword, Name, Number, String, Token
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from lm.app.cards import Card, cards_in_use, read_cards, switches
from lm.app.details import Fragments, details, paragraph, row
from lm.app.list_screen import BACK, Entry, ListScreen
from lm.app.pager import Pager
from lm.app.shelf import CONFIGS, Shelved, read_one, read_shelf
from lm.app.timing import time_steps
from lm.app.words import clean, one_line

KEYS = "↑↓ choose  Enter view  e edit  t time a few steps  q back"
EDITORS = ("nano", "vi")
MEASURED, GAP = "blue", 3
AGAINST = "against a small model of attention alone; fewer bits are better"
COLOURS = ((Name.Tag, "green"), (String, ""), (Number, "yellow"), (Keyword, "yellow"), (Token, "dim"))


def presets() -> str:
    """Until the person goes back."""
    cursor, said, cards = 0, "", read_cards()
    while shelf := read_shelf():
        entries = [Entry(one_line(each.path.name), _about(each, cards), mark="" if each.can_be_picked else "✗") for each in shelf]
        picked = ListScreen(_head(said), entries, min(cursor, len(shelf) - 1), {"enter": "view", "e": "edit", "t": "time"}, ["time"], KEYS).run()
        cursor, said = picked.index, ""
        if picked.action == BACK:
            return ""
        if picked.action == "view":
            page = coloured(written_out(shelf[cursor]), cards if shelf[cursor].preset else ())
            Pager(one_line(str(shelf[cursor].path)), page).run()
        elif picked.action == "time":
            said = time_steps(shelf[cursor].preset, None) if shelf[cursor].preset else ""
        else:
            said = edit(shelf[cursor])
    return f"{CONFIGS}: there are no presets"


def _about(shelved: Shelved, cards: tuple[Card, ...]) -> Callable[[int], Fragments]:
    used = list(cards_in_use(shelved.preset, cards)) if shelved.preset else []

    def about(width: int) -> Fragments:
        told = [AGAINST, *(f"{card.switch} {card.words}" for card in used)] if used else []
        rows = [row("measured" if not number else "", one_line(words), width) for number, words in enumerate(told)]
        return [*details(shelved, width, None), *(fragment for lines in rows for fragment in lines)]

    return about


def _head(said: str) -> Callable[[int], Fragments]:
    head: Fragments = [("class:accent", "Perennial"), ("class:strong", "  presets\n")]
    return lambda width: [*head, *paragraph("class:warning", one_line(said), width), ("", "\n")]


def written_out(shelved: Shelved) -> str:
    """The preset as JSON with every default; a broken one as it stands in its file."""
    if shelved.preset is None:
        return shelved.path.read_text(encoding="utf-8", errors="replace")
    return json.dumps(shelved.preset.model_dump(mode="json"), indent=2, ensure_ascii=False)


def coloured(text: str, cards: tuple[Card, ...] = ()) -> Callable[[int], Group]:
    """JSON in colours, for a width, each switch with its cards; what is longer than a line goes on below its own beginning."""
    whole = Text.assemble(*((part, next(colour for kind, colour in COLOURS if token in kind)) for token, part in lex(clean(text), JsonLexer())))
    lines = whole.split("\n", allow_blank=True)
    known = [[card.words for card in cards if card.switch == path] for path in switches([line.plain for line in lines])]
    head = [Text(f"In blue, what was measured {AGAINST}.\n", MEASURED)] if any(known) else []
    return lambda width: Group(*head, *(part for line, words in zip(lines, known, strict=True) for part in _told(line, words, width)))


def _told(line: Text, words: list[str], width: int) -> Iterator[Padding]:
    """A line, and words of cards: beside it where there is room for all that is one, else below it."""
    if len(words) == 1 and line.cell_len + GAP + len(words[0]) <= width:
        yield _indented(Text.assemble(line, " " * GAP, (words[0], MEASURED)))
        return
    yield _indented(line)
    for each in words:
        yield Padding(Text(each, MEASURED), (0, 0, 0, len(line.plain) - len(line.plain.lstrip()) + 2), expand=False)


def _indented(line: Text) -> Padding:
    margin = len(line.plain) - len(line.plain.lstrip())
    return Padding(line[margin:] if line.plain else line, (0, 0, 0, margin), expand=False)


def edit(shelved: Shelved) -> str:
    """Open the file in the person's editor and check it again. What came of it, in a line."""
    editor = editor_of(dict(os.environ))
    if not editor:
        return "There is no editor: set the environment variable EDITOR to the name of one."
    try:
        subprocess.run([*editor, str(shelved.path)], check=False)
    except OSError as error:
        return f"The editor {editor[0]} can't be started ({error.strerror}): set the environment variable EDITOR to the name of one that can."
    after = read_one(shelved.path)
    return f"{shelved.path.name}: {after.reason}" if after.reason else f"{shelved.path.name} is valid."


def editor_of(environment: dict[str, str]) -> list[str]:
    """The editor's command: of VISUAL, EDITOR, or one that most machines have. Empty when there is none."""
    named = environment.get("VISUAL") or environment.get("EDITOR")
    if named:
        return shlex.split(named)
    return next(([name] for name in EDITORS if shutil.which(name)), [])
