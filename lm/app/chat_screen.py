"""Chat: a person's words in, the model's words out as they come."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from lm.app.commands import COMMANDS, GAPS, CommandError, named_snapshot
from lm.app.flow import flow
from lm.app.life import NO_MODEL
from lm.app.partner import Partner, awoken, load
from lm.app.sitting import Sitting, terminal_size
from lm.app.terminal import CHECKPOINTS, quieted, unechoed, uninterrupted
from lm.app.text import ACCENT, ACCENTED, LABEL, QUIET, Lines, spans, wrapped
from lm.app.words import counted, one_line
from lm.preset.generation import GenerationConfig
from lm.training.headers import NAMES, SnapshotError

if TYPE_CHECKING:
    from lm.generation.chat import Conversation
    from lm.generation.drafting import Paces
    from lm.generation.writing import Writing
    from lm.memory.memory import Passage

PASSAGES = 4  # shown under an answer
INDENT = 2  # cells, of their text
ENDINGS = {"length": "max_new_tokens reached", "stopped": "stopped"}
GOES_ON = "; an empty line lets it go on"


class Talk(NamedTuple):
    """A conversation with one of the snapshots."""

    which: str
    partner: Partner
    conversation: "Conversation"
    draft_length: int  # as the person wants it, whether this snapshot can draft or not

    @property
    def wanted(self) -> GenerationConfig:
        """The settings, as the person wants them."""
        return self.conversation.settings.model_copy(update={"draft_length": self.draft_length})


def chat() -> str:
    """Talk until the person has had enough. A line for the menu when it can't begin."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    said: list[str] = []
    try:
        with console.status(Text("loading the snapshot", style=QUIET), spinner_style=ACCENT), quieted():
            talk = _newest_talk(said)
    except SnapshotError as error:
        return one_line(str(error))
    except KeyboardInterrupt:
        return ""
    if talk is None:
        return NO_MODEL
    Chat(console, talk).run(said)
    return ""


def _newest_talk(said: list[str]) -> Talk | None:
    """A conversation with the newest whole snapshot, which is what a run would go on from. `said` gets a line when that is not the current one."""
    with uninterrupted():
        from lm.training.snapshots import Snapshots

    snapshot = Snapshots(CHECKPOINTS).newest(said.append)
    if snapshot is None or snapshot.path is None:
        return None
    which = next((which for which, name in NAMES.items() if name == snapshot.path.name), "newest")
    partner = awoken(snapshot, CHECKPOINTS)
    return Talk(which, partner, partner.conversation(), partner.preset.generation.draft_length)


def talk_with(which: str, settings: GenerationConfig) -> Talk:
    """A conversation with the snapshot `which`. CommandError, one line, when it is not there or damaged."""
    with uninterrupted():
        from lm.training.snapshots import Snapshots

    try:
        partner = load(Snapshots(CHECKPOINTS).path_of(which))
    except SnapshotError as error:
        raise CommandError(one_line(str(error))) from None
    return Talk(which, partner, partner.conversation(settings), settings.draft_length)


def passage_lines(passage: "Passage", text: str, width: int, lines: int) -> Lines:
    """Where a passage is from, and in up to so many lines `text`, as it reads."""
    where = " · ".join(one_line(words) for words in (passage.source, passage.place) if words)
    body = wrapped(spans((text, LABEL)), width - INDENT, lines)
    return [*wrapped(spans(("▪ ", ACCENT), (where, ACCENT)), width, lines), *(spans(" " * INDENT, line) for line in body)]


def paces_in_words(paces: "Paces") -> str:
    """What drafts came to: how many were kept, how many tokens a pass wrote, and how many times as fast that was."""
    drafted = paces.drafted
    kept = f"{100 * drafted.kept / drafted.drafts:.0f} % of {drafted.drafts:,} kept" if drafted.drafts else "none was sure enough"
    return f"drafts: {kept} · {drafted.tokens / drafted.passes:.1f} tokens a pass" + (
        f" · {paces.speed_up:.1f} times as fast as without" if paces.speed_up else ""
    )


class Chat(Sitting):
    """One sitting: reads lines, answers them, obeys commands."""

    def __init__(self, console: Console, talk: Talk) -> None:
        super().__init__(console)
        self.talk, self._told = talk, ""

    def run(self, said: Sequence[str] = ()) -> None:
        for line in said:
            self.note(one_line(line), "yellow")
        self._greet()
        self.console.print()
        self.serve(self._answer, self._obey, COMMANDS)

    def _greet(self) -> None:
        which, partner, conversation, wanted = self.talk
        about = f"{one_line(partner.preset.name)} · {which} snapshot · {counted(partner.tokens)} tokens read"
        self.console.print(Text.assemble(("Perennial", f"bold {ACCENT}"), ("  chat   ", "bold"), (about, QUIET)))
        self.note(f"A turn: {one_line(conversation.in_words)} · /help for commands, Ctrl-D to leave")
        if wanted and not partner.drafts:
            self.note("without drafts: this snapshot has no dynamics head to draft with", "yellow")
        self._told = ""
        self._tell_trouble()

    def _answer(self, message: str) -> None:
        """Answer a line; an empty one lets the answer before it go on."""
        conversation = self.talk.conversation
        if not message.strip() and not conversation.turns:
            return
        try:
            answer = conversation.say(message)
        except ValueError as error:  # more gaps than there are tokens for
            raise CommandError(str(error)) from None
        self._stream(answer)

    def _stream(self, answer: "Writing") -> None:
        """Stream an answer. Ctrl-C breaks it off; what was written until then is kept."""
        conversation = self.talk.conversation
        with unechoed():  # what is typed meanwhile stands at the next prompt, not in the answer
            accented = ACCENTED if self.console.color_system else ("", "")
            started = flow(answer, sys.stdout, lambda: terminal_size().columns, lambda: answer.fills, accented)
        conversation.settle(answer)
        self.console.print("" if started else Text("(no words)", style=QUIET))
        if answer.finished_by in ENDINGS:
            self.note(f"({ENDINGS[answer.finished_by]}{GOES_ON * answer.begun})")
        self._show(self.talk.partner.used(conversation)[:PASSAGES])
        if answer.paces.drafted.passes:
            self.note(paces_in_words(answer.paces))
        self._tell_trouble()

    def _tell_trouble(self) -> None:
        """Say once why the model talks without its memory."""
        trouble = self.talk.partner.trouble
        if trouble and trouble != self._told:
            self.note(trouble, "yellow")
        self._told = trouble

    def _show(self, passages: "Sequence[Passage]", lines: int = 3) -> None:
        """Passages of the memory: where each is from, and in so many lines how it reads."""
        for passage in passages:
            for line in passage_lines(passage, self.talk.partner.text(passage.tokens), self.console.width, lines):
                self.console.print(line, end="\n")

    def _remember(self, words: tuple[str, ...]) -> None:
        memory = self.talk.partner.memory
        if memory is None:
            raise CommandError(self.talk.partner.trouble or "this model has no memory of what it read (retro.enabled in its preset)")
        if words in (("on",), ("off",)):
            before, memory.is_on = memory.is_on, words == ("on",)
            again = self.talk.conversation.again() if before != memory.is_on else None
            self.note(f"The memory is {words[0]}{'; your last words are answered again:' if again else '.'}")
            if again:
                self._stream(again)
        elif not words:
            raise CommandError("write /memory and some words, /memory off or /memory on")
        else:
            found = self.talk.partner.found(" ".join(words))
            self._show(found, lines=8)
            self._tell_trouble()
            if not found:
                self.note("Nothing was found.")

    def _obey(self, name: str, words: tuple[str, ...]) -> None:
        conversation = self.talk.conversation
        if name == "/help":
            self.table([*COMMANDS.items(), GAPS])
        elif name == "/reset":
            conversation.reset()
            self.note("The conversation is forgotten.")
        elif name == "/settings":
            conversation.settings = self.settings(self.talk.partner.preset, conversation.settings, words)
            if self.talk.partner.drafts or "draft_length" in words:
                self.talk = self.talk._replace(draft_length=conversation.settings.draft_length)
        elif name == "/memory":
            self._remember(words)
        else:
            self._change_snapshot(named_snapshot(words))

    def _change_snapshot(self, which: str) -> None:
        with self.console.status(Text("loading the snapshot", style=QUIET), spinner_style=ACCENT), quieted():
            before, self.talk = self.talk, talk_with(which, self.talk.wanted)
        if before.partner.memory and self.talk.partner.memory:
            self.talk.partner.memory.is_on = before.partner.memory.is_on
        self._greet()
