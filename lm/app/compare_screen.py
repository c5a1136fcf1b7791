"""Compare: one prompt, answered by the model as it is and as it was, with the same settings and the same seed.

80 columns                          wide
› a prompt                          › a prompt
current · 12,402,688 tokens · ...   current · 12,...   prev · 11,...   run end · 100,...
its words                           2026-11-21 ...     2026-11-21 ...  2026-11-20 ...
prev · 11,583,488 tokens · ...      its words          its words       its words
its words
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lm.app.columns import Answer, in_columns, per_row
from lm.app.commands import COMPARING, GAPS, numbered, seed_in
from lm.app.earlier import ago, heading
from lm.app.flow import flow
from lm.app.partner import Cast, Partner
from lm.app.sitting import STOPPED, Sitting, terminal_size
from lm.app.terminal import CHECKPOINTS, Escape, quieted
from lm.app.text import ACCENT, LABEL, QUIET
from lm.app.words import one_line, size
from lm.training.headers import Listed, listed, preset_of

UNCHOSEN = ("left", "before")  # answer when they are asked to
WIDE = 60  # columns: from there on a snapshot's line is cut at its end and not wrapped
DRAWINGS_A_SECOND = 10
ALONE = "There is nothing to compare with yet: a run keeps two earlier snapshots as it goes, and its end."


def compare() -> str:
    """Until the person has had enough. A line for the menu when there is nothing to compare."""
    if len(_there()) < 2:
        return ALONE
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    Comparison(console).run()
    return ""


def _watched(writing: Iterable[str], partner: Partner, answer: Answer) -> Iterator[str]:
    """`writing`, and afterwards a note of what its partner had to do without. Nothing is kept of the partner, who may have to make room."""
    try:
        yield from writing
    finally:
        answer.trouble = partner.trouble


def _there() -> list[Listed]:
    return [each for each in listed(CHECKPOINTS) if each.header]


class Comparison(Sitting):
    """One sitting: reads prompts, has them answered, obeys commands."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, leaving=("escape", "c-c"))
        self.chosen = {each.path for each in _there() if each.kind not in UNCHOSEN}
        self.seed = 1
        self.preset = preset_of(_there()[0].path, _there()[0].header.config)
        self.write_by = self.preset.generation
        self._cast = Cast()

    def run(self) -> None:
        self.console.print(Text.assemble(("Perennial", f"bold {ACCENT}"), ("  compare", "bold")))
        self._list()
        self.note("Type the beginning of a text or a question: those with ● answer. /with 1 2 chooses others, /help for commands, Esc to leave")
        self.console.print()
        self.serve(self._ask, self._obey, COMPARING)

    def _list(self) -> None:
        """Each snapshot there is in a line: which it is, how much it had read, when it was taken, and in a run of which preset."""
        now, wide = datetime.now(UTC), self.console.width >= WIDE
        for number, each in enumerate(_there(), start=1):
            mark = ("● ", ACCENT) if each.path in self.chosen else "  "
            about = (f" · {ago(each.header, now)} · {one_line(each.header.preset)}", QUIET)
            line = Text.assemble((f"{number:>2} ", LABEL), mark, heading(each.kind, each.header), about)
            self.console.print(line, no_wrap=wide, overflow="ellipsis" if wide else None)

    def _obey(self, name: str, words: tuple[str, ...]) -> None:
        if name == "/help":
            self.table([*COMPARING.items(), GAPS])
        elif name == "/seed":
            self.seed = seed_in(words)
        elif name == "/settings":
            self.write_by = self.settings(self.preset, self.write_by, words)
        else:
            there = _there()
            if words:
                self.chosen = {there[number].path for number in numbered(words, len(there))}
            self._list()

    def _ask(self, prompt: str) -> None:
        """Have `prompt` answered. Esc or Ctrl-C stops it; what was written until then stands."""
        prompt = prompt.strip()
        answers = [Answer(each.kind, each.header) for each in _there() if each.path in self.chosen]
        if not prompt or not answers:
            return
        self.console.print()
        with Escape() as escape:
            try:
                side_by_side = per_row(len(answers), self.console.width) > 1
                (self._in_columns if side_by_side else self._in_turn)(answers, prompt, escape)
            except KeyboardInterrupt:
                self.note(STOPPED)
        for answer in answers:
            if answer.trouble:
                self.note(f"{heading(answer.kind, answer.header)}: {answer.trouble}", "yellow")
        models, held = self._cast.size
        self.note(f"seed {self.seed} · {models} model{'s' * (models != 1)} in memory, {size(held)}")
        self.seed += 1

    def _in_turn(self, answers: Sequence[Answer], prompt: str, escape: Escape) -> None:
        """One under the other, as they come."""
        for answer in answers:
            self.console.print(Text(heading(answer.kind, answer.header), style=f"bold {ACCENT}"))
            with self.console.status(Text("loading", style=QUIET), spinner_style=ACCENT):
                writing = self._begun(answer, prompt)
            started = flow(self._pieces(answer, writing, escape), sys.stdout, lambda: terminal_size().columns)
            self.console.print("\n" if started else Text(f"{answer.note}\n", style=QUIET))
            if answer.stopped:
                raise KeyboardInterrupt

    def _in_columns(self, answers: Sequence[Answer], prompt: str, escape: Escape) -> None:
        """Side by side: drawn again as words come, and left standing in full at the end."""
        width, next_drawing = self.console.width, 0.0
        try:
            with Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
                for answer in answers:
                    answer.note = "loading"
                    live.update(in_columns(answers, width, self.console.height - 1), refresh=True)
                    writing = self._begun(answer, prompt)
                    for _ in self._pieces(answer, writing, escape):
                        if time.monotonic() >= next_drawing:
                            live.update(in_columns(answers, width, self.console.height - 1), refresh=True)
                            next_drawing = time.monotonic() + 1 / DRAWINGS_A_SECOND
        finally:
            self.console.print(in_columns(answers, width))

    def _begun(self, answer: Answer, prompt: str) -> Iterable[str]:
        """What will be written, once the model is loaded; nothing, and a note of why, when it can't be."""
        try:
            with quieted():
                partner = self._cast.partner(answer.header)
            writing = partner.conversation(self.write_by, self.seed).say(prompt)
        except ValueError as error:  # a CommandError, or more gaps than there are tokens for
            answer.note = one_line(str(error))
            return ()
        answer.note = "(no words)"
        return _watched(writing, partner, answer)

    def _pieces(self, answer: Answer, writing: Iterable[str], escape: Escape) -> Iterator[str]:
        """The pieces of `writing`, noted in its answer. KeyboardInterrupt when the person has had enough of them."""
        answer.stopped = True
        for piece in writing:
            if escape.pressed():
                raise KeyboardInterrupt
            answer.text += piece
            yield piece
        answer.stopped = False
