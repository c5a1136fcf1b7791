"""A run without a terminal: lines instead of a screen."""

import time
from collections.abc import Callable
from typing import TextIO

from lm.app.facts import Event, Facts
from lm.app.words import counted, duration, figure, one_line

SECONDS_BETWEEN_STEPS = 10.0


class Printed:
    """An observer that prints what happens, and a line about the steps now and then."""

    def __init__(self, facts: Facts, out: TextIO, clock: Callable[[], float] = time.monotonic, on_deaf: Callable[[], None] = lambda: None) -> None:
        self._facts, self._out, self._clock, self._on_deaf = facts, out, clock, on_deaf
        self._next = float("-inf")

    def __call__(self, event: Event) -> None:
        facts = self._facts
        before = facts.log[-1] if facts.log else None
        facts(event)
        if facts.log and facts.log[-1] is not before:
            self.line(facts.log[-1].text)
        elif event["event"] == "run":
            self.line(f"{facts.preset}: {counted(facts.parameters or 0)} parameters, {facts.plan}, on {facts.device}")
        elif event["event"] == "forecast":
            self.line(event["text"])
        elif event["event"] == "sample":
            self.line(f"it writes: {one_line(event['prompt'])} | {one_line(event['text'])}")
        elif event["event"] == "step" and self._clock() >= self._next:
            self._next = self._clock() + SECONDS_BETWEEN_STEPS
            self._step(event)

    def line(self, text: str) -> None:
        """One line with the time of day. `on_deaf` is called where nobody reads any more; what can't be written otherwise ends no run."""
        try:
            print(time.strftime("%H:%M:%S"), one_line(text), file=self._out, flush=True)
        except BrokenPipeError:
            self._on_deaf()
        except OSError:
            return

    def _step(self, event: Event) -> None:
        facts = self._facts
        left = "" if facts.seconds_left is None else f" · {duration(facts.seconds_left)} left"
        experts = "" if facts.busiest is None else f" · busiest expert {facts.busiest[1]:.2f} times the mean"
        memory = f" · {counted(facts.memory['chunks'])} chunks in memory" if facts.memory else ""
        done = f"{event['tokens']:,} of {counted(facts.budget)} tokens"
        self.line(f"{done} · loss {figure(event['loss'], 3)} · {figure(facts.pace, 0)} tokens/s{experts}{memory}{left}")
