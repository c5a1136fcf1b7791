"""The training loop.

    while run.tokens < budget and not stopped:
        batch, run.cursor = next(stream)
        step = teacher.step(batch)            # losses, backward, agree, sum, clip, optimizer
        tell the observers; write a sample, save and evaluate where that is due

What changes training is a line of the loop. Observers get each event and only look.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_sources import Batch
from data_sources.documents import Stopped
from lm.preset import RUN_TOKENS, Preset
from lm.preset.counting import operations_per_token
from lm.preset.learned import check_objectives, learned_in_words
from lm.preset.options import check_options
from lm.preset.plan import check_plan
from lm.training.distribution import device_in_words
from lm.training.divergence import Watch
from lm.training.forecast import duration_told, peak_products
from lm.training.headers import OF_HEADS
from lm.training.paces import Pace, keep_pace
from lm.training.session import Session, batch_hash
from lm.training.setup import Halted, Observer, open_session
from lm.training.snapshots import SnapshotError
from lm.training.step import Step, TooLarge
from lm.training.tensorboard import tensorboard_missing

BAD_STEPS_IN_A_ROW = 10
STEPS_TIMED = 4
BESIDE = 0.02  # of the time: brief evaluations and samples wait past it. They fall due by tokens, of which a fast device reads so many in a moment


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    tokens: int  # of this run, by now
    loss: float  # nats a token, smoothed over the last steps
    evaluation: dict[str, Any]  # the last one: cross_entropy, perplexity, bits_per_byte, sources; empty without held-out text
    stopped: bool  # asked to stop before the budget was read
    unsaved: str = ""  # why no snapshot was left of the last steps, in a line


def train(
    preset: Preset,
    checkpoint_dir: str | Path = "checkpoints",
    budget_tokens: int = RUN_TOKENS,
    observers: Sequence[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Read `budget_tokens` more tokens into the model that lives in `checkpoint_dir`, going on where its run stopped.

    Every rank under torchrun calls this with the same preset; observers are called on rank 0. Halted, one line, when the preset
    asks for what can't be, the folder can't be used, all sources failed, or ten steps in a row were not finite.
    """
    try:
        check_plan(preset)
        check_options(preset)
        check_objectives(preset)
    except ValueError as error:
        raise Halted(f"{preset.name}: {error}") from None
    if preset.train.tensorboard and (absent := tensorboard_missing()):
        raise Halted(f"{preset.name}: {absent}")
    try:
        with open_session(preset, Path(checkpoint_dir), budget_tokens, observers, should_stop) as session:
            return Loop(session, should_stop).run_out()
    except Stopped:
        return Summary(0, float("nan"), {}, stopped=True)
    except (SnapshotError, TooLarge) as error:
        raise Halted(str(error)) from None


class Turn(NamedTuple):
    """What the ranks agree on before a step."""

    batch: Batch | None  # None: no rank has anything left to read
    cursor: dict[str, Any] | None  # goes on after the batch
    batch_hash: str  # SHA-256 over the step's rows
    stop: bool
    save: bool
    has_time: bool  # for evaluations and samples along the way
    asked_at: float  # when the batch was asked for
    waited: float  # seconds until it came
    asked_seconds: float = 0.0  # that the memory took to answer the batch's readers, on the rank where it took longest


class Loop:
    """The loop over one session: what it counts between steps is for the screen and the clock, never for the model."""

    def __init__(self, session: Session, should_stop: Callable[[], bool]) -> None:
        self.session, self.run, self.should_stop = session, session.run, should_stop
        self.train = session.run.preset.train
        self.first_step = self.run.life["steps"]
        self.saved_at, self.saved_tokens = time.monotonic(), self.run.tokens
        self.skipped = self.bad_in_a_row = 0
        self.fitted = 0  # the longest rows that it is known of how many are read at a time
        self.reading: int | None = None  # bytes that they take
        self.foreseen = False  # whether it was told how long the run will take
        self.peak: float | None = None  # operations a second that all devices can do, once that was told; known on rank 0
        self.work: dict[int, float] = {}  # operations for a token, by the length of its row
        self.told_short = False  # whether it was told that there is no memory for looks at the losses' shares
        self.smooth_loss = float("nan")
        self.watch, self.stage = Watch(len(session.tokenizer)), self.stage_now()
        self.remembered: tuple[Batch, float] | None = None  # the last batch that was as well known as ever, and the nats a token that it should cost
        self.evaluation: dict[str, Any] = {}
        self.evaluates = self.samples = False  # what is due, once there is time for it
        self.beside = 0.0  # seconds that such looks and snapshots took
        self.began = self.stepped_at = time.monotonic()
        self.pace: list[tuple[float, int]] = [(self.stepped_at, 0)]  # (when, tokens read until then)

    def run_out(self) -> Summary:
        """Train until the budget is read, the sources end, or a stop is asked for. Saves at the end."""
        run, turn = self.run, None
        while run.tokens < run.budget:
            turn = self.next_turn()
            if turn.batch is None or turn.stop:
                break
            if (length := self.row_length()) > self.fitted:
                self.foresee_memory(turn.batch, length)
            before, run.cursor = run.tokens, turn.cursor
            step = self.session.teacher.step(turn.batch, len(run.data.sources), run.tokens, run.budget, run.life["steps"])
            self.session.drawn = None
            if compiling := self.session.teacher.compiled.news():
                self.session.report({"event": "compiled", **compiling})
            self.session.count(step, turn.batch, turn.cursor)
            if not step.tokens:
                continue  # of lanes that have ended, near the end of a finite mix
            self.tell(step, turn, length)
            if len(self.pace) > STEPS_TIMED and run.tokens < run.budget and not self.foreseen:
                self.foresee_time(length)
            self.session.compare(turn.batch_hash)
            self.halt_when_unsound(step, turn.batch)
            self.look_around(turn, before)
        return self.close(turn)

    def foresee_memory(self, batch: Batch, length: int) -> None:
        """What steps with rows of `length` tokens will need, before the first of them; where that is too much for what is free, fewer rows are read
        at a time."""
        teacher = self.session.teacher
        asked, need = teacher.micro_rows, teacher.fit_memory(batch)
        self.session.report({"event": "forecast", **need.told(teacher.micro_rows, asked, length)})
        if teacher.compiled.is_on and not self.fitted:
            self.session.report({"event": "phase", "text": "compiling, which makes the first step a long one"})
        self.fitted, self.reading = length, teacher.micro_rows * need.row

    def row_length(self) -> int:
        """Of the rows that come next: the same on every rank, also where one has none left."""
        return self.run.lengths.at(self.run.cursor["next_row"] if self.run.cursor else 0)

    def foresee_time(self, length: int) -> None:
        """What the run will take, by the first steps, of which the very first is slower and not counted; the last had rows of `length` tokens."""
        run, ranks = self.run, self.session.ranks
        peak = peak_products(ranks.device, ranks.precision) if ranks.is_first else None
        self.peak = peak and ranks.size * peak
        about = duration_told(run.budget - run.tokens, self.tokens_per_second(), self.operations(length), self.peak)
        self.note_pace()
        self.session.report({"event": "forecast", **about})
        self.foreseen, self.stepped_at = True, time.monotonic()
        self.pace = [(self.stepped_at, 0)]

    def tokens_per_second(self) -> float:
        """The pace of the last steps; the first of them is slower, and left out once there are others."""
        (since, had), (until, have) = self.pace[min(1, len(self.pace) - 2)], self.pace[-1]
        return (have - had) / max(until - since, 1e-9)

    def operations(self, length: int) -> float:
        """For a token in a row of `length`."""
        if length not in self.work:
            self.work[length] = operations_per_token(self.run.preset, len(self.session.tokenizer), length)
        return self.work[length]

    def note_pace(self) -> None:
        """Keep the pace of late for the menu, unless it is that of very few steps."""
        if self.session.ranks.is_first and len(self.pace) > STEPS_TIMED:
            pace = self.tokens_per_second()
            share = self.operations(self.row_length()) * pace / self.peak if self.peak else None
            keep_pace(self.session.snapshots.folder, self.run.preset, Pace(pace, device_in_words(self.session.ranks), share, self.reading))

    def look_around(self, turn: Turn, before: int) -> None:
        """What is due after a step, when the run stood at `before` tokens: a snapshot, and once there is time a sample and an evaluation."""
        self.samples |= self.crossed(before, self.train.sample_every_tokens)
        self.evaluates |= self.crossed(before, self.train.evaluate_every_tokens)
        samples, evaluates = (due and turn.has_time for due in (self.samples, self.evaluates and self.run.tokens < self.run.budget))
        if not (samples or turn.save or evaluates):
            return
        began = time.monotonic()
        if samples:
            self.session.write_sample()
            self.samples = False
        if turn.save and not self.watch.risen:
            self.begin_save()
        if evaluates:
            self.evaluation = self.session.evaluate(brief=True, should_stop=self.should_stop) or self.evaluation
            self.evaluates = False
        self.stepped_at = time.monotonic()  # what took time beside the steps is no part of their pace
        self.pace = [(self.stepped_at, 0)]
        self.beside += self.stepped_at - began

    def next_turn(self) -> Turn:
        """The next batch of every rank, and what to do with it. Halted when the sources of a rank have all failed."""
        asked = time.monotonic()
        batch, cursor, failure = self.session.next_batch(self.should_stop)
        waited = time.monotonic() - asked
        self.session.tell_sources()
        self.session.tell_saved()
        alive = batch is not None and not batch.last
        due, asked_seconds = (self.save_is_due(), self.has_time()), batch.asked_seconds if batch else 0.0
        mine = (batch.digests() if batch else [], cursor, failure, alive, self.should_stop(), due, asked_seconds)
        digests, cursors, failures, alive, stops, dues, asked_for = zip(*self.session.ranks.gathered(mine), strict=True)
        if any(failures):
            self.settle_rise()
            unsaved = self.save_news()
            raise Halted("; ".join(filter(None, (next(filter(None, failures)), unsaved)))) from self.session.failure
        if not any(alive):
            return Turn(None, None, "", any(stops), False, False, asked, waited)
        cursor = None if any(stops) else self.session.joined(cursors)  # a rank that stops may have come without one
        return Turn(batch, cursor, batch_hash(digests), any(stops), *dues[0], asked, waited, max(asked_for))

    def save_is_due(self) -> bool:
        every = self.train.snapshot_every_tokens
        late = time.monotonic() - self.saved_at >= 60 * self.train.snapshot_every_minutes
        due = late or (every is not None and self.run.tokens - self.saved_tokens >= every)
        return due and not self.watch.risen  # a model that may have come apart takes no place of a good one

    def has_time(self) -> bool:
        """Whether what was done beside the steps has taken little enough of this sitting for more of it."""
        return self.beside <= BESIDE * (time.monotonic() - self.began)

    def crossed(self, before: int, every: int) -> bool:
        """Whether the run has passed a multiple of `every` tokens since it stood at `before`."""
        return self.run.tokens // every > before // every

    def save_news(self) -> str:
        """A last snapshot, unless nothing has happened since the one that was gone on from: starting and stopping wears out none. Nor does a
        model that may have come apart: why it is not saved, in a line, is then given back."""
        unsaved = self.watch.unsaved()
        if unsaved:
            self.session.report.notice(unsaved)
        elif self.run.life["steps"] > self.first_step or self.run.ended or not self.run.certificate:
            self.last_save()
        return unsaved

    def last_save(self, amends: bool = False) -> None:
        """A snapshot that must be on disk before anything else is done. SnapshotError, on all ranks, when it can't be written."""
        self.begin_save(amends)
        self.session.finish_save()

    def begin_save(self, amends: bool = False) -> None:
        """A snapshot, written while training goes on. The pace is that of the run by now: its first steps may have been small ones."""
        self.note_pace()
        self.session.begin_save(amends)
        self.saved_at, self.saved_tokens = time.monotonic(), self.run.tokens

    def halt_when_unsound(self, step: Step, batch: Batch) -> None:
        self.watch.saw(step.nats, step.scored)
        if (level := self.watch.well_known(step.nats, step.scored)) is not None:
            self.remembered = batch, level
        if self.watch.is_apart:
            said = self.watch.in_words(self.train.learning_rate)
            self.settle_rise()
            if self.watch.risen:
                raise Halted(said)
        if self.watch.is_idle:
            self.session.report.notice(self.watch.idle_in_words(self.train.learning_rate))
        if self.stage != (stage := self.stage_now()):
            self.stage, self.watch, self.remembered = stage, Watch(len(self.session.tokenizer)), None  # another objective has another loss
            self.session.report({"event": "stage", "text": f"from now on it learns {learned_in_words(self.run.preset, stage)[0]}"})
        self.bad_in_a_row = 0 if step.sound else self.bad_in_a_row + 1
        self.skipped += not step.sound
        if self.bad_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise Halted(
                f"{BAD_STEPS_IN_A_ROW} steps in a row had no finite loss and gradient (loss {step.loss}, gradient norm {step.gradient_norm}); "
                "the last snapshot is kept: lower train.learning_rate"
            )

    def settle_rise(self) -> None:
        """Where the loss has risen: find out whether it is the model that is worse, or only the text that is harder, by text that was well known.
        All ranks together."""
        if self.watch.risen and self.remembered:
            batch, level = self.remembered
            nats, scored = self.session.teacher.nats_of(batch)
            if scored and not self.watch.is_worse(level, nats / scored):
                self.watch.accept()

    def stage_now(self) -> int:
        """How many stages of train.objectives are over for the rows that come next."""
        next_row = self.run.cursor["next_row"] if self.run.cursor else 0
        tokens = self.run.lengths.tokens_before(next_row) if self.train.objectives else 0
        return sum(tokens >= stage.until_tokens for stage in self.train.objectives)

    def tell(self, step: Step, turn: Turn, length: int) -> None:
        """The step's event; its rows had `length` tokens."""
        if step.loss == step.loss and step.sound:
            self.smooth_loss = step.loss if self.smooth_loss != self.smooth_loss else 0.9 * self.smooth_loss + 0.1 * step.loss
        if step.shares is None and not self.told_short:
            self.told_short = True
            self.session.report.notice("there is no memory to measure what share of the gradient each loss makes; training goes on as it would")
        self.stepped_at = time.monotonic()
        self.pace = [*self.pace[-20:], (self.stepped_at, self.pace[-1][1] + step.tokens)]
        pace = self.tokens_per_second()
        self.session.report(
            {
                "event": "step",
                "step": self.run.life["steps"],
                "tokens": self.run.tokens,
                "life_tokens": self.run.life["tokens"],
                "loss": step.loss,
                "losses": step.losses,
                "units": {name: value.tolist() for name, value in step.stats.items() if not name.startswith(OF_HEADS)},
                **({"gradient_shares": step.shares} if step.shares else {}),
                "tokens_per_second": pace,
                **({"device_share": self.operations(length) * pace / self.peak} if self.peak else {}),
                "learning_rate": step.learning_rate,
                "gradient_norm": step.gradient_norm,
                "memory_bytes": self.session.memory_in_use(),
                "data_wait": turn.waited / max(self.stepped_at - turn.asked_at, 1e-9),
                "skipped": self.skipped + (not step.sound),
                "batch_hash": turn.batch_hash,
                "sources": self.session.sources_now(step),
                **self.session.memory_now(turn.asked_seconds),
            }
        )

    def close(self, turn: Turn | None) -> Summary:
        """Save; then the last events of the run: how good the model is now, and why it ends. What a sudden end leaves undone of that, the
        next start does."""
        stopped = turn is not None and turn.stop
        self.settle_rise()
        done = not stopped and not self.watch.risen  # what has risen is read again from the last snapshot
        self.run.ended = turn is not None and turn.batch is None and not turn.stop
        self.run.closed = done and not self.session.find_held_out()
        unsaved = self.save_news()
        if done and not self.run.closed:
            measured = self.session.evaluate(brief=False, should_stop=self.should_stop)
            self.run.closed = measured is not None
            if self.run.closed:
                self.evaluation = measured or self.evaluation
                self.last_save(amends=True)  # with what was measured
        if self.run.closed:
            self.session.archive()
        ended = "every source has been read to its end" if self.run.tokens < self.run.budget else "the run's tokens are read"
        self.session.report({"event": "end", "reason": "stopped" if stopped else ended, "tokens": self.run.tokens, "loss": self.smooth_loss})
        return Summary(self.run.tokens, self.smooth_loss, self.evaluation, stopped, unsaved)
