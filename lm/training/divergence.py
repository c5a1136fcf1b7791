"""Whether learning has come apart: the loss has left what it was, and stays away.

With clipped gradients a learning rate that is too high gives no infinite loss: it throws the model back, to worse than what it knew or even than
a guess. Each source is held against itself, since a change of the mix changes the loss, too. And a source may have easy stretches and hard ones:
only a model that is worse at text which it knew well has come apart.
"""

import math
from collections.abc import Sequence

RISE = 1.5  # nats over a source's best
FALL = RISE / 10  # nats below what it was some 50 steps ago: what falls so is learned, however badly it is known
IDLE = 150  # steps after which a model should know more than nothing
PATIENCE = 50  # steps in a row
SETTLED = 5  # steps with a source before it is judged: a rate that is too high shows soon after the warm-up
SMOOTHING, SLOW_SMOOTHING = 0.9, 0.98


class Smoothed:
    """A source's loss, smoothed, what it was some time ago, and the best that it was."""

    def __init__(self) -> None:
        self.steps, self.now, self.before, self.best = 0, 0.0, 0.0, math.inf

    def add(self, loss: float) -> None:
        self.now = loss if not self.steps else SMOOTHING * self.now + (1 - SMOOTHING) * loss
        self.before = loss if not self.steps else SLOW_SMOOTHING * self.before + (1 - SLOW_SMOOTHING) * loss
        self.steps += 1
        if self.steps >= SETTLED:
            self.best = min(self.best, self.now)

    @property
    def is_settled(self) -> bool:
        return self.steps > SETTLED

    @property
    def is_falling(self) -> bool:
        """Whether it is being learned, however badly it is known: well below what it was some 50 steps ago, and not far over its best."""
        return self.now <= min(self.best + RISE, self.before - FALL)


class Watch:
    """Sees every step of a sitting. Every rank sees the same numbers, and so comes to the same."""

    def __init__(self, vocab_size: int) -> None:
        self.guess = math.log(vocab_size)  # nats of one who knows nothing
        self.sources: dict[int, Smoothed] = {}
        self.risen = 0  # steps in a row, but for those whose loss is no number
        self.falls = False  # whether most of what has risen is on its way down again
        self.judged = 0  # steps whose loss is one
        self.is_idle = False  # at the step by which a model should know more than nothing, where this one does not

    def saw(self, nats: Sequence[float], scored: Sequence[float]) -> None:
        """A step's nats and scored tokens by source."""
        away = falling = known_tokens = 0.0
        for source, (of_source, tokens) in enumerate(zip(nats, scored, strict=True)):
            if not (tokens and math.isfinite(of_source)):
                continue
            known = self.sources.setdefault(source, Smoothed())
            known.add(of_source / tokens)
            known_tokens += tokens
            is_away = known.is_settled and self.is_worse(known.best, known.now)
            away += tokens * is_away
            falling += tokens * (is_away and known.is_falling)
        self.is_idle = False
        if known_tokens:
            self.judged += 1
            settled = [known.best for known in self.sources.values() if known.is_settled]
            self.is_idle = self.judged == IDLE and bool(settled) and min(settled) > self.guess - RISE / 4
            self.risen = self.risen + 1 if away > known_tokens / 2 else 0
            self.falls = falling > away / 2

    def is_worse(self, best: float, now: float) -> bool:
        """Whether a loss of `now` nats is far over the `best` there was, or over what one has who knows nothing."""
        return not now <= min(best + RISE, self.guess + RISE / 4)  # what is no number is worse

    def well_known(self, nats: Sequence[float], scored: Sequence[float]) -> float | None:
        """The best nats a token that there were of a step's mix of sources; None unless they are better than a guess, and the step itself nearly as
        good."""
        of_step = [(self.sources.get(source), tokens) for source, tokens in enumerate(scored) if tokens]
        if not of_step or not all(known and known.is_settled for known, _ in of_step):
            return None
        tokens = sum(scored)
        best = sum(known.best * tokens for known, tokens in of_step) / tokens
        return best if sum(nats) / tokens <= best + RISE / 3 and not self.is_worse(best, best) else None

    def accept(self) -> None:
        """It was the text: what each source costs now is what it is held against."""
        for known in self.sources.values():
            if known.is_settled and self.is_worse(known.best, known.now):
                known.best = known.now
        self.risen, self.falls = 0, False

    @property
    def is_apart(self) -> bool:
        return self.risen >= PATIENCE and not self.falls

    def idle_in_words(self, learning_rate: float) -> str:
        """One line."""
        best = min(source.best for source in self.sources.values() if source.is_settled)
        return (
            f"after {IDLE} steps the loss stands at {best:.2f} nats, and {self.guess:.2f} are those of one who knows nothing: "
            f"train.learning_rate ({learning_rate:g}) may be much too high, or too low"
        )

    def unsaved(self) -> str:
        """Why a run that ends while the loss has risen leaves no snapshot, in a line; empty where it may leave one."""
        if not self.risen:
            return ""
        steps = f"{self.risen} step{'s' * (self.risen > 1)}"
        return f"the loss has risen for {steps}: what was learned since the last snapshot is not saved, and the next start goes on from that one"

    def in_words(self, learning_rate: float) -> str:
        """One line."""
        worst = max(self.sources.values(), key=lambda source: source.now - source.best)
        than = f"it was {worst.best:.2f} before" if worst.now > worst.best + RISE else f"{self.guess:.2f} are those of one who knows nothing"
        return (
            f"for {self.risen} steps the loss stands at {worst.now:.2f} nats, and {than}: learning has come apart; "
            f"the last snapshot from before is kept: lower train.learning_rate ({learning_rate:g})"
        )
