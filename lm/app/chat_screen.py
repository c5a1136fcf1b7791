"""Chat: a person's words in, the model's words out as they come."""

import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.app.commands import COMMANDS, CommandError, changed, command_in, named_snapshot
from lm.app.flow import flow
from lm.app.terminal import CHECKPOINTS, quieted, unechoed
from lm.app.text import ACCENT, LABEL, QUIET
from lm.app.words import counted, one_line
from lm.generation.chat import Conversation
from lm.preset import Preset
from lm.preset.switches import GenerationConfig

PROMPT = FormattedText([("class:prompt", "› ")])
STYLE = Style.from_dict({"prompt": "ansigreen bold"})
ENDINGS = {"length": "(max_new_tokens reached; an empty line lets it go on)", "stopped": "(stopped; an empty line lets it go on)"}


class Partner(NamedTuple):
    """A snapshot that can be talked with."""

    which: str
    preset: Preset
    tokens: int  # read in its life
    conversation: Conversation


def chat() -> str:
    """Talk until the person has had enough. A line for the menu when it can't begin."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    try:
        with console.status(Text("loading the snapshot", style=QUIET), spinner_style=ACCENT), quieted():
            partner = load("current", None)
    except CommandError as error:
        return str(error)
    except KeyboardInterrupt:
        return ""
    Chat(console, partner).run()
    return ""


def load(which: str, settings: GenerationConfig | None) -> Partner:
    """The snapshot `which`, ready to talk. CommandError, one line, when it is not there or damaged."""
    import torch

    from data_sources.tokenizer import tokenizer_from_json
    from lm.generation.chat import frame_of
    from lm.model import build_model
    from lm.training.snapshots import SnapshotError, Snapshots

    try:
        snapshot = Snapshots(CHECKPOINTS).read(which)
    except SnapshotError as error:
        raise CommandError(one_line(str(error))) from None
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model = build_model(snapshot.preset, len(tokenizer))
    model.load_state_dict(snapshot.model_weights)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    conversation = Conversation(model, tokenizer, frame_of(snapshot.preset), settings or snapshot.preset.generation)
    return Partner(which, snapshot.preset, int(snapshot.life["tokens"]), conversation)


def _size() -> Size:
    columns, rows = shutil.get_terminal_size()
    return Size(rows=rows, columns=columns)


class Chat:
    """One sitting: reads lines, answers them, obeys commands."""

    def __init__(self, console: Console, partner: Partner) -> None:
        self.console, self.partner = console, partner
        # Without asking where the cursor is: a terminal that does not answer would be complained about.
        output = Vt100_Output(sys.stdout, _size, term=os.environ.get("TERM"), enable_cpr=False)
        self._session: PromptSession[str] = PromptSession(style=STYLE, output=output)

    def run(self) -> None:
        self._greet()
        self.console.print()
        for line in self._lines():
            try:
                command = command_in(line.strip())
                if command is None:
                    self._answer(line)
                elif command.name == "/quit":
                    return
                else:
                    self._obey(command.name, command.words)
                    self.console.print()
            except CommandError as error:
                self._note(str(error), "yellow")
                self.console.print()

    def _lines(self) -> Iterator[str]:
        """What the person types, until Ctrl-D. Ctrl-C clears the line."""
        while True:
            try:
                yield self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def _greet(self) -> None:
        partner = self.partner
        about = f"{one_line(partner.preset.name)} · {partner.which} snapshot · {counted(partner.tokens)} tokens read"
        self.console.print(Text.assemble(("Perennial", f"bold {ACCENT}"), ("  chat   ", "bold"), (about, QUIET)))
        self._note(f"A turn: {one_line(partner.conversation.frame.in_words)} · /help for commands, Ctrl-D to leave")

    def _note(self, words: str, style: str = QUIET) -> None:
        self.console.print(Text(one_line(words), style=style))

    def _answer(self, message: str) -> None:
        """Stream the answer. Ctrl-C breaks it off; what was written until then is kept."""
        conversation = self.partner.conversation
        if not message.strip() and not conversation.turns:
            return
        answer = conversation.say(message)
        with unechoed():  # what is typed meanwhile stands at the next prompt, not in the answer
            started = flow(answer, sys.stdout, lambda: _size().columns)
        conversation.settle(answer)
        self.console.print("" if started else Text("(no words)", style=QUIET))
        if answer.finished_by in ENDINGS:
            self._note(ENDINGS[answer.finished_by])
        self.console.print()

    def _obey(self, name: str, words: tuple[str, ...]) -> None:
        if name == "/help":
            self._table([(command, meaning) for command, meaning in COMMANDS.items()])
        elif name == "/reset":
            self.partner.conversation.reset()
            self._note("The conversation is forgotten.")
        elif name == "/settings":
            self._settings(words)
        else:
            self._change_snapshot(named_snapshot(words))

    def _settings(self, words: tuple[str, ...]) -> None:
        conversation = self.partner.conversation
        if words:
            conversation.settings = changed(self.partner.preset, conversation.settings, words)
        fields = type(conversation.settings).model_fields
        self._table([(name, f"{value}", fields[name].description or "") for name, value in conversation.settings.model_dump().items()])

    def _change_snapshot(self, which: str) -> None:
        with self.console.status(Text("loading the snapshot", style=QUIET), spinner_style=ACCENT), quieted():
            self.partner = load(which, self.partner.conversation.settings)
        self._greet()

    def _table(self, rows: list[tuple[str, ...]]) -> None:
        table = Table.grid(padding=(0, 3))
        for row in rows:
            table.add_row(Text(row[0], style=ACCENT), *(Text(cell, style=LABEL if cell == row[-1] else "") for cell in row[1:]))
        self.console.print(table)
