"""A screen that is written on line by line: a prompt, and above it what came of what was typed."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_sources.config import Config
from lm.app.commands import CommandError, changed, command_in
from lm.app.text import ACCENT, LABEL, QUIET
from lm.app.words import one_line
from lm.preset import Preset
from lm.preset.generation import GenerationConfig

PROMPT = FormattedText([("class:prompt", "› ")])
STYLE = Style.from_dict({"prompt": "ansigreen bold"})
STOPPED = "(stopped)"


def terminal_size() -> Size:
    columns, rows = shutil.get_terminal_size()
    return Size(rows=rows, columns=columns)


class Sitting:
    """Reads lines and prints. `leaving`: keys that end it, beside Ctrl-D."""

    def __init__(self, console: Console, leaving: Sequence[str] = ()) -> None:
        self.console = console
        # Without asking where the cursor is: a terminal that does not answer would be complained about.
        output = Vt100_Output(sys.stdout, terminal_size, term=os.environ.get("TERM"), enable_cpr=False)
        bindings = KeyBindings()
        for key in leaving:
            bindings.add(key, eager=True)(lambda event: event.app.exit(exception=EOFError))
        self._session: PromptSession[str] = PromptSession(style=STYLE, output=output, key_bindings=bindings)
        self._session.app.ttimeoutlen = 0.05

    def lines(self) -> Iterator[str]:
        """What the person types, until a key that ends it. Ctrl-C clears the line."""
        while True:
            try:
                yield self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def serve(self, answer: Callable[[str], None], obey: Callable[[str, tuple[str, ...]], None], commands: Collection[str]) -> None:
        """Have each line answered, or obeyed where it is one of `commands`, until a key or /quit ends it. What is refused is said in a line."""
        for line in self.lines():
            try:
                command = command_in(line.strip(), commands)
                if command is None:
                    answer(line)
                elif command.name == "/quit":
                    return
                else:
                    obey(command.name, command.words)
            except CommandError as error:
                self.note(str(error), "yellow")
            except KeyboardInterrupt:  # before a word was written: while a turn was prepared, or a snapshot loaded
                self.note(STOPPED)
            self.console.print()

    def note(self, words: str, style: str = QUIET) -> None:
        """A line about what happens."""
        self.console.print(Text(one_line(words), style=style))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of names, values, and what they mean."""
        table = Table.grid(padding=(0, 3))
        for row in rows:
            table.add_row(Text(row[0], style=ACCENT), *(Text(cell, style=LABEL if cell == row[-1] else "") for cell in row[1:]))
        self.console.print(table)

    def settings(self, preset: Preset, settings: GenerationConfig, words: tuple[str, ...]) -> GenerationConfig:
        """How the model writes, changed as `words` say, if there are any, and shown. CommandError says what is allowed."""
        if words:
            settings = changed(preset, settings, words)
        self.table(list(described(settings)))
        return settings


def described(section: Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Each switch of a section and of those inside it: its name, its value, and what it means."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Config):
            yield from described(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value), field.description or ""
