"""What a run has told so far: an observer that keeps what the screen shows, and nothing else."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lm.app.curve import Curve, Point
from lm.app.words import AS_TRAINED, denoisers_in_words, duration, one_line, size

Event = Mapping[str, Any]
SMOOTHING = 0.95  # of the losses shown as numbers
OF_DENOISERS = "ul2_"  # what their losses begin with
LOG_LINES, SAMPLES = 50, 12


class Line(NamedTuple):
    """A line of the log."""

    clock: str
    text: str
    tone: str  # "quiet", "good", "warning" or "bad"


@dataclass
class SourceFacts:
    """A source as the screen shows it."""

    name: str
    loss: float | None = None
    share: float = 0.0
    tokens: int = 0
    state: str = ""
    reason: str = ""
    next_try: float | None = None  # seconds since the epoch
    epoch: int = 0
    documents: int = 0


TONES = {"reading": "good", "waiting": "warning", "given up": "bad", "finished": "quiet"}


@dataclass
class Facts:
    """An observer: call it with each event of a run."""

    clock: Callable[[], float] = time.time
    preset: str = ""
    parameters: int | None = None
    plan: str = ""
    device: str = ""
    world_size: int = 1
    budget: int = 0
    begun_at: int = 0  # tokens that the run had read before this sitting
    life_tokens: int | None = None
    phase: str = "starting"
    is_training: bool = False
    step: Event = field(default_factory=dict)  # the last step
    loss: float | None = None
    denoisers: dict[str, float] = field(default_factory=dict)  # losses of UL2's, smoothed
    pace: float | None = None  # tokens a second, smoothed
    steps: int = 0  # seen
    device_share: float | None = None  # of what the device could multiply, as last told
    memory: dict[str, Any] | None = None  # of what was read: as the last step told, seconds smoothed
    weights: dict[str, float] = field(default_factory=dict)  # of the losses beside the next token's
    losses: dict[str, float] = field(default_factory=dict)  # the means of these, smoothed
    shares: dict[str, float] = field(default_factory=dict)  # of the trunk's gradient, by loss, as last measured
    sources: dict[str, SourceFacts] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)
    evaluation: Event = field(default_factory=dict)
    samples: deque[Event] = field(default_factory=lambda: deque(maxlen=SAMPLES))  # newest first
    saved_at: float | None = None
    log: deque[Line] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> None:
        """Take in an event. The screen draws in a thread of its own and holds the lock meanwhile."""
        kinds: dict[str, Callable[[Event], None]] = {
            "phase": self._on_phase,
            "run": self._on_run,
            "resume": self._on_resume,
            "certificate": self._on_certificate,
            "weights": self._on_weights,
            "forecast": self._on_forecast,
            "compiled": self._on_compiled,
            "step": self._on_step,
            "stage": self._on_stage,
            "source": self._on_source,
            "notice": self._on_notice,
            "evaluation": self._on_evaluation,
            "sample": self._on_sample,
            "snapshot": self._on_snapshot,
            "end": self._on_end,
        }
        if kind := kinds.get(event["event"]):
            with self.lock:
                kind(event)

    @property
    def tokens(self) -> int:
        return self.step.get("tokens", self.begun_at)

    @property
    def seconds_left(self) -> float | None:
        """Until the run's budget is read, at the pace of late. The first step, which waits for the sources, says nothing of that."""
        return (self.budget - self.tokens) / self.pace if self.pace and self.steps > 1 else None

    @property
    def loads(self) -> dict[int, list[float]]:
        """Tokens of the last step by expert, by layer; empty where no layer has experts."""
        paths = {path: load for path, load in self.step.get("units", {}).items() if path.endswith(".moe.load") and any(load)}
        return {int(path.split(".")[0]): load for path, load in paths.items()}

    @property
    def busiest(self) -> tuple[int, float] | None:
        """The layer whose busiest expert is furthest above the mean of its experts, and how many times the mean that is."""
        return max(((layer, over_mean(load)) for layer, load in self.loads.items()), key=lambda found: found[1], default=None)

    def say(self, text: str, tone: str = "quiet") -> None:
        """Add a line to the log."""
        self.log.append(Line(time.strftime("%H:%M:%S", time.localtime(self.clock())), one_line(text), tone))

    def stop(self) -> None:
        """Show that the run was asked to stop."""
        self.stopping = True

    def remember(self, points: Iterable[Point], saved_at: float | None) -> None:
        """What was before this sitting: losses of the run, for the curve, and when the model was last saved."""
        with self.lock:
            self.saved_at = self.saved_at or saved_at
            for x, y in points:
                self.curve.add(x, y)

    def _on_phase(self, event: Event) -> None:
        self.phase, self.is_training = one_line(event["text"]), False
        if not self.step:
            self.say(event["text"])

    def _on_run(self, event: Event) -> None:
        self.preset, self.plan, self.device = (one_line(str(event[key])) for key in ("preset", "plan", "device"))
        self.parameters, self.world_size, self.budget = event["parameters"], event["world_size"], event["budget"]
        self.begun_at, self.life_tokens = event["tokens"], event["life_tokens"]
        self.sources = {name: SourceFacts(one_line(name)) for name in event["sources"]}
        self.weights = event.get("loss_weights", {})

    def _on_resume(self, event: Event) -> None:
        self.begun_at, self.life_tokens = event["tokens"], event["life_tokens"]
        self.say(event["text"], "warning" if event.get("differs") else "good")

    def _on_certificate(self, event: Event) -> None:
        self.say(event["text"], "good" if event["exact"] else "warning")

    def _on_weights(self, event: Event) -> None:
        shares = ", ".join(f"{name} {weight:.0%}" for name, weight in event["weights"].items())
        self.say(f"sources are now read by their losses: {shares}")

    def _on_forecast(self, event: Event) -> None:
        """Memory is told as often as it is counted; the time is on the screen all the while."""
        self.device_share = event.get("device_share", self.device_share)
        if "needs_bytes" in event:
            self.say(event["text"], "warning" if event["tight"] else "quiet")

    def _on_compiled(self, event: Event) -> None:
        self.say(event["text"], "quiet" if event["compiled"] else "warning")

    def _on_step(self, event: Event) -> None:
        self.steps += 1
        self.pace = _smoothed(self.pace if self.steps > 2 else None, event["tokens_per_second"])
        self.device_share = event.get("device_share", self.device_share)
        self.step, self.phase, self.is_training = event, "training", True
        self.life_tokens = event["life_tokens"]
        self.loss = _smoothed(self.loss, event["loss"])
        told = {name.removeprefix(OF_DENOISERS): loss for name, loss in event["losses"].items() if name.startswith(OF_DENOISERS)}
        self.denoisers |= {kind: _smoothed(self.denoisers.get(kind), loss) for kind, loss in told.items()}
        self.losses |= {name: _smoothed(self.losses.get(name), event["losses"][name]) for name in self.weights if name in event["losses"]}
        if told := event.get("memory"):
            before = self.memory or {}
            seconds = {key: _smoothed(before.get(key), told[key]) for key in ("asked_seconds", "added_seconds")}
            self.memory = {**seconds, "chunks": told["chunks"]}
        self.shares = event.get("gradient_shares") or self.shares
        self.curve.add(event["tokens"], event["loss"])
        for name, told in event["sources"].items():
            self._source(name, told)
            known = self.sources[name]
            known.loss = _smoothed(known.loss, told["loss"])
            known.share, known.tokens, known.epoch, known.documents = told["share"], told["tokens"], told["epoch"], told["documents"]

    def _on_stage(self, event: Event) -> None:
        self.denoisers = {}  # of what was learned until now
        self.say(event["text"])

    def _source(self, name: str, told: Event) -> None:
        known = self.sources.setdefault(name, SourceFacts(one_line(name)))
        known.state, known.reason = one_line(told["state"] or ""), one_line(told["reason"] or "")
        known.next_try = told.get("next_try")

    def _on_source(self, event: Event) -> None:
        self._source(event["name"], event)
        reason = f": {event['reason']}" if event["reason"] else ""
        self.say(f"{event['name']} is {event['state']}{reason}", TONES.get(event["state"], "quiet"))

    def _on_notice(self, event: Event) -> None:
        source = event.get("source", "")
        self.say(event["text"] if event["text"].startswith(source) else f"{source}: {event['text']}", "warning")

    def _on_evaluation(self, event: Event) -> None:
        self.evaluation = {**event, "after": self.tokens}
        more = f"; gaps: {by_denoiser} nats a token" if (by_denoiser := denoisers_in_words(event)) else ""
        if itself := event.get("without_average"):
            more = f" ({itself['bits_per_byte']:.3f} {AS_TRAINED}){more}"
        pseudo = "pseudo-" * event.get("pseudo", False)
        self.say(f"held-out text: {pseudo}perplexity {event['perplexity']:,.1f}, {event['bits_per_byte']:.3f} {pseudo}bits per byte{more}", "good")

    def _on_sample(self, event: Event) -> None:
        self.samples.appendleft({"tokens": event["tokens"], "prompt": one_line(event["prompt"]), "text": one_line(event["text"])})

    def _on_snapshot(self, event: Event) -> None:
        self.saved_at = self.clock()
        self.say(f"snapshot saved: {size(event['bytes'])} in {max(event['seconds'], 0.1):.1f} s")

    def _on_end(self, event: Event) -> None:
        self.phase, self.is_training = one_line(event["reason"]), False
        self.say(f"the run ends: {event['reason']}", "good")

    def state_of(self, source: SourceFacts) -> str:
        """A source's state in words: "waiting: no route to host; next try in 12 s"."""
        words = source.state or "not opened yet"
        if source.reason and source.state != "reading":
            words += f": {source.reason}"
        if source.next_try is not None and source.state == "waiting":
            words += f"; next try in {duration(max(source.next_try - self.clock(), 0))}"
        return words


def over_mean(load: list[float]) -> float:
    """The highest over the mean."""
    return max(load) * len(load) / sum(load)


def _smoothed(before: float | None, new: float | None) -> float | None:
    if new is None or new != new:
        return before
    return new if before is None else SMOOTHING * before + (1 - SMOOTHING) * new
