"""Training in front of a person: the live screen or printed lines, Ctrl-C, and one line about how it ended."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from lm.app.facts import Event, Facts
from lm.app.interrupts import Interrupts
from lm.app.life import read_life
from lm.app.past import past_losses
from lm.app.printed import Printed
from lm.app.terminal import CHECKPOINTS, LEAVE_SCREEN, Keyboard, diverted, in_a_line, log_traceback
from lm.app.words import counted, figure, one_line
from lm.preset import Preset

DRAWINGS_A_SECOND = 2
LEFT_AT_ONCE = "Left at once, without saving: training goes on from the last snapshot."


class Outcome(NamedTuple):
    """How a run ended: a line for a person, the exit status, and whether the program ends with it."""

    line: str
    status: int
    ends: bool = False


def train_with_screen(preset: Preset, is_alone: bool) -> Outcome:
    """Train until the run ends or the person stops it, on a live screen.

    With other processes beside this one Ctrl-C is taken from the keyboard: they agree to stop at the same step, save and end in
    good order. As a signal it would reach torchrun, which reports a failure and kills after 30 seconds.
    """
    facts = Facts(preset=one_line(preset.name), phase="loading")
    with diverted() as screen, Keyboard() as keyboard, _live(facts, screen):
        interrupts = Interrupts(facts.stop, lambda: _left(screen, keyboard))
        if not is_alone:
            keyboard.take_interrupts(interrupts.pressed)
        return train_watched(preset, facts, facts, interrupts)


def train_with_lines(preset: Preset) -> Outcome:
    """The same for a log file or a pipe."""
    facts = Facts(preset=one_line(preset.name))
    with diverted() as screen:
        interrupts = Interrupts(lambda: printed.line("stopping and saving"), lambda: None)
        printed = Printed(facts, screen, on_deaf=interrupts.ask)
        printed.line(f'nobody to ask: training the preset "{preset.name}"')
        outcome = train_watched(preset, facts, printed, interrupts)
        printed.line(outcome.line)
        return outcome


def train_unseen(preset: Preset) -> Outcome:
    """The same for a process that helps the first one."""
    with diverted():
        return train_watched(preset, Facts(), lambda event: None, Interrupts(lambda: None, lambda: None))


def train_watched(preset: Preset, facts: Facts, observer: Callable[[Event], None], interrupts: Interrupts) -> Outcome:
    """The same for any observer of its events, stopped by `interrupts`."""

    def with_past(event: Event) -> None:
        observer(event)
        if event["event"] == "resume" and event["tokens"]:
            facts.remember(past_losses(CHECKPOINTS / "run.jsonl", event["tokens"], event["life_tokens"]), read_life(CHECKPOINTS).saved_at)

    with interrupts:
        try:
            from lm.training import Halted, train

            try:
                summary = train(preset, checkpoint_dir=str(CHECKPOINTS), observers=(with_past,), should_stop=interrupts.asked)
            except Halted as halt:
                if halt.__cause__:
                    log_traceback(halt)
                return Outcome(f"Halted: {one_line(str(halt))}", 1, interrupts.ends)
        except Exception as error:
            log_traceback(error)
            return Outcome(f"Stopped by an error. {in_a_line(error)}", 1, interrupts.ends)
    so_far = f"{counted(summary.tokens)} of {counted(facts.budget)} tokens" + (f", loss {figure(facts.loss, 3)}" if facts.loss else "")
    if summary.stopped and not facts.step:
        return Outcome("Stopped before anything new was read.", 0, interrupts.ends)
    if summary.unsaved:
        return Outcome(f"{'Stopped' if summary.stopped else 'Ended'} at {so_far}: {summary.unsaved}.", 0 if summary.stopped else 1, interrupts.ends)
    if summary.stopped:
        return Outcome(f"Stopped and saved at {so_far}; goes on from here.", 0, interrupts.ends)
    perplexity = summary.evaluation.get("perplexity") if summary.evaluation else None
    return Outcome(f"The run is done: {so_far}, held-out perplexity {figure(perplexity, 1)}{_forgotten()}.", 0, interrupts.ends)


def _forgotten() -> str:
    """What the run's last snapshot says of sources that were known better, to be added to a line."""
    from lm.training.forgetting import forgotten_in_words
    from lm.training.headers import NAMES, SnapshotError, read_header

    try:
        words = forgotten_in_words(read_header(CHECKPOINTS / NAMES["current"]).life)
    except SnapshotError:
        return ""
    return words and f"; {one_line(words)}"


@contextlib.contextmanager
def _live(facts: Facts, screen: TextIO) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    from lm.app.dashboard import Dashboard

    console = Console(file=screen, force_terminal=True, highlight=False, markup=False, emoji=False)
    drawing = Dashboard(facts)
    live = Live(
        get_renderable=lambda: drawing,
        console=console,
        screen=True,
        refresh_per_second=DRAWINGS_A_SECOND,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )
    with contextlib.suppress(OSError), live:  # a terminal that was closed can't be left in good order
        yield


def _left(screen: TextIO, keyboard: Keyboard) -> None:
    """The terminal as it was, by the shortest way: the process ends right after."""
    os.write(screen.fileno(), f"{LEAVE_SCREEN}{LEFT_AT_ONCE}\n".encode())
    keyboard.put_back()
