"""One sitting of a run on this rank: the stream it reads, the model it teaches, and what is done now and then beside the steps."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import torch

from data_sources import Batch, merge_cursors
from data_sources.documents import SourcesFailed, Stopped
from data_sources.held_out import HeldOutStore
from data_sources.past import Read
from data_sources.prefetch import Prefetch
from data_sources.stream import Stream
from lm.generation import generate
from lm.generation.infilling import filler_of, with_a_gap
from lm.training.carried import together
from lm.training.certificate import PROBE_TOKENS, certified
from lm.training.distribution import Ranks, is_out_of_memory
from lm.training.evaluation import Place, brief_tokens, encoded, evaluate, first_texts, in_all
from lm.training.forgetting import FULL, note_measures, remedy
from lm.training.headers import listed
from lm.training.journal import life_in_numbers, write_life
from lm.training.remembering import Remembering
from lm.training.replay import PastKeeper
from lm.training.run import Run, now
from lm.training.saving import Saved, Saver
from lm.training.snapshots import NAMES, Snapshot, SnapshotError, Snapshots
from lm.training.step import Step, Teacher

SAMPLE_TOKENS, PROMPT_WORDS = 60, 8
GLANCE = 0.2  # seconds between looks at whether to stop
LONGEST_PEEK = 1.0  # seconds that a snapshot waits to know at least one batch that comes next


@dataclass
class Session:
    """What the loop works with. Every method but the plain look-ups is called by all ranks together."""

    ranks: Ranks
    run: Run
    teacher: Teacher
    tokenizer: Any
    stream: Stream
    ahead: Prefetch  # the stream's batches, some steps early
    store: HeldOutStore  # written on rank 0
    snapshots: Snapshots
    saver: Saver  # used on rank 0
    report: Callable[[Mapping[str, Any]], None]  # tells the observers of rank 0
    expected: list[str]  # hashes of the batches that come next, where a snapshot told them
    past: PastKeeper | None  # on rank 0, where a sample of what is read is kept
    memory: Remembering | None = None  # of what is read, where the preset has one
    begun: list[Read] = field(default_factory=list)  # documents that this rank has read since the last snapshot, for the sample
    drawn: Batch | None = None  # taken from the stream, and not trained on yet
    failure: Exception | None = None  # that reading ended with
    on_disk: int = 0  # tokens of the run that the newest snapshot holds; known on rank 0

    def __post_init__(self) -> None:
        self.on_disk = self.run.tokens

    def next_batch(self, should_stop: Callable[[], bool]) -> tuple[Batch | None, dict[str, Any] | None, str | None]:
        """This rank's next batch and its cursor; no batch at the end, and a line when reading failed, which `failure` then tells more of."""
        try:
            while not self.ahead.wait(GLANCE):
                if should_stop():  # a source may be waited for: a person must not be
                    return None, None, None
            self.drawn, cursor = next(self.ahead)
        except StopIteration:
            return None, None, None
        except SourcesFailed as failure:
            return None, None, str(failure)
        except Exception as failure:  # whatever it is, what was learned until now must be saved
            self.failure = failure
            return None, None, f"reading failed: {' '.join(str(failure).split()) or type(failure).__name__}"
        return self.drawn, cursor, None

    def joined(self, cursors: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """One cursor for the whole step out of those of the ranks that still read."""
        reading = [cursor for cursor in cursors if cursor is not None]
        return merge_cursors(reading) if len(reading) > 1 else reading[0]

    def tell_sources(self) -> None:
        """Pass on what happened to the sources."""
        for text in self.take_changes():
            self.report({"event": "certificate", "exact": False, "text": text})

    def take_changes(self) -> list[str]:
        """Sources that were found to be others than when the snapshot was taken, in words. What else happened to sources is passed on."""
        found = []
        for event in self.stream.events():
            if event["event"] == "changed":
                found.append(f"{event['source']}: {event['text']}")
                continue
            if event["event"] == "source" and event["reason"]:
                self.run.life.setdefault("faults", {})[event["name"]] = {"last_error": event["reason"], "last_error_at": now()}
            self.report(event)
        return found

    def count(self, step: Step, batch: Batch, cursor: Mapping[str, Any]) -> None:
        """Note what a step has read, and where the data stands after it."""
        self.begun += batch.begun
        if self.memory:
            self.memory.take_in(batch, cursor["next_row"])
        names = [source.name for source in self.run.data.sources]
        self.run.counted(step.tokens, {name: int(count) for name, count in zip(names, step.read, strict=True) if count})
        if step.sound:
            self.run.teaches(step.taught, int(sum(step.scored)))
        if self.run.adaptive:
            nothing = [0.0] * len(names)
            nats, scored = (step.nats, step.scored) if step.sound else (nothing, nothing)
            if self.run.adaptive.measured(nats, scored, cursor["next_row"]):
                self.report({"event": "weights", "tokens": self.run.tokens, "weights": self.run.adaptive.weights})

    def sources_now(self, step: Step) -> dict[str, dict[str, Any]]:
        """Each source on the screen: loss and tokens of this step, share of this life, and its state."""
        life, weights = self.run.life["sources"], self.run.adaptive.weights if self.run.adaptive else {}
        total = max(sum(life.values()), 1)
        return {
            state.name: {
                "loss": nats / scored if scored and math.isfinite(nats) else None,
                "weight": weights.get(state.name),
                "tokens": life.get(state.name, 0),
                "share": life.get(state.name, 0) / total,
                "state": state.state,
                "reason": state.reason,
                "next_try": state.next_try,
                "epoch": state.epoch,
                "documents": state.documents,
            }
            for state, nats, scored in zip(self.stream.sources, step.nats, step.scored, strict=True)
        }

    def memory_now(self, asked_seconds: float) -> dict[str, Any]:
        """The memory of what was read on the screen: chunks that can be found, and what it took to ask for this step's, beside training, and to
        take in what it ended. Nothing without one. On rank 0."""
        if self.memory is None or not self.ranks.is_first:
            return {}
        return {"memory": {"chunks": self.memory.chunks, "asked_seconds": asked_seconds, "added_seconds": self.memory.added_seconds}}

    def memory_in_use(self) -> int:
        """Bytes that this process holds, on the device where it has one."""
        if self.ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.ranks.device)
        return psutil.Process().memory_info().rss

    def begin_save(self, amends: bool = False) -> None:
        """Have a snapshot written in the background, with the held-out text gathered until now beside it. amends: see Snapshots.save."""
        began = time.monotonic()
        self.keep_held_out()
        if self.drawn is None:
            self.ahead.wait(LONGEST_PEEK)
        ahead = [self.drawn] * (self.drawn is not None) + [batch for batch, _ in self.ahead.peek()]
        coming = self.ranks.gathered([batch.digests() for batch in ahead])
        begun, self.begun = self.ranks.gathered(self.begun), []
        carried = together(self.ranks.gathered(self.run.carried.tensors())) if self.run.carried else {}
        if self.memory and self.run.cursor:
            self.run.memory = self.memory.noted(self.run.cursor["next_row"])
        if self.ranks.is_first:
            self.tell_saved(wait=True)
            probe = self.run.certificate.get("probe") or self._probe(ahead)
            hashes = [batch_hash(digests) for digests in zip(*coming, strict=False)]  # as many as every rank has ready
            self.run.certificate = certified(self.run.learner.model, probe, self.ranks) | {"coming": hashes}
            write_sample = self.past.writer([read for of_rank in begun for read in of_rank], self.run.life) if self.past else lambda life: None

            def write_what_is_named(own: Snapshot) -> None:
                write_sample(own.life)
                if self.memory and own.run["memory"]:
                    own.run["memory"] = self.memory.synced(own.run["memory"])

            life = life_in_numbers(self.run, len(self.tokenizer))
            self.saver.begin(self.run.snapshot(carried), began, write_what_is_named, lambda: self._settle(life), amends)

    def _settle(self, life: dict[str, Any]) -> None:
        """What is done once a snapshot is on disk."""
        write_life(self.snapshots.folder, life)
        if self.past:
            with contextlib.suppress(OSError):  # some day
                self.past.tidy()
        if self.memory:
            with contextlib.suppress(OSError):
                self.memory.tidy(held.header for held in listed(self.snapshots.folder) if held.header)

    def _probe(self, ahead: Sequence[Batch]) -> list[int]:
        """The tokens whose loss stands in every certificate of a life: held out, or while nothing is, a row that comes next."""
        held_out = next((text for name in self.store.sources() for text in self.store.texts(name)), None)
        if held_out is not None:
            return encoded(self.tokenizer, held_out[: 16 * PROBE_TOKENS])[:PROBE_TOKENS]
        return next((batch.tokens[0, :PROBE_TOKENS].tolist() for batch in ahead if len(batch.tokens)), [])

    def compare(self, found: str) -> None:
        """Hold the hash of a batch against what the snapshot said would come. Told once, when all are compared or one differs."""
        if not self.expected:
            return
        same, self.expected = self.expected[0] == found, self.expected[1:]
        if not same:
            self.expected = []
            text = "the data goes on otherwise than it would have: some documents may come twice or not at all"
            self.report({"event": "certificate", "exact": False, "text": text})
        elif not self.expected:
            self.report({"event": "certificate", "exact": True, "text": "the first batches are exactly those that would have come"})

    def finish_save(self) -> None:
        """Wait until the snapshot is on disk. SnapshotError, on all ranks, when it can't be written: it says what is lost."""
        self.ranks.first_does(self._last_outcome)

    def _last_outcome(self) -> None:
        try:
            self._tell(self.saver.outcome(wait=True))
        except SnapshotError as error:
            lost = self.run.tokens - self.on_disk
            raise SnapshotError(f"{error}; the last {lost:,} tokens are in no snapshot" if lost else str(error)) from None

    def tell_saved(self, wait: bool = False) -> None:
        """Pass on what became of the snapshot under way, if it is known by now. One that failed is only told: training goes on."""
        try:
            self._tell(self.saver.outcome(wait))
        except SnapshotError as error:
            self.report({"event": "notice", "text": f"{error}; training goes on, the snapshots there are stay"})

    def _tell(self, saved: Saved | None) -> None:
        for kept in filter(None, (self.past, self.memory)):
            if kept.trouble:
                self.report({"event": "notice", "text": kept.trouble})
                kept.trouble = ""
        if saved:
            self.on_disk = saved.tokens
            self.report({"event": "snapshot", "path": str(self.snapshots.folder / NAMES["current"]), **saved._asdict()})

    def keep_held_out(self) -> None:
        """Put what all ranks have held out since the last time into the store."""
        new = self.ranks.gathered(self.stream.held_out.take_new())
        if self.ranks.is_first and self.run.preset.train.eval_tokens:
            try:
                self.store.extend([pair for pairs in new for pair in pairs], lambda text: len(encoded(self.tokenizer, text)) + 1)
            except OSError as error:
                self.report({"event": "notice", "text": f"held-out text can't be kept: {error.strerror}"})

    def find_held_out(self) -> bool:
        """Keep what was held out last; whether there is text to measure on. Asked by all ranks together."""
        self.keep_held_out()
        return self.ranks.from_first(bool(self.store.sources()))

    def evaluate(self, brief: bool, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Measures on held-out text: the first of each source's when `brief`, else all. None when stopped; empty where there is no memory for it."""
        self.keep_held_out()
        mix = {source.name for source in self.run.preset.data.sources}
        kept = {name: self.store.texts(name) for name in self.store.sources()}  # also of sources that are read no more
        texts = self.ranks.from_first({name: first_texts(texts, self.tokenizer, brief_tokens(len(kept))) if brief else texts for name, texts in kept.items()})
        self.report({"event": "phase", "text": "evaluating on held-out text"})
        ranks, lookup = self.ranks, self.memory.lookup() if self.memory else None
        measured = partial(
            evaluate,
            self.run.learner.model,
            self.tokenizer,
            texts,
            self.run.preset,
            Place(ranks.rank, ranks.size),
            ranks.summed,
            ranks.accelerator.autocast,
            stopped=lambda: bool(ranks.highest([float(should_stop())])[0]),
            mix=mix,
        )
        try:
            with self.run.as_used():
                measures = measured(find=lookup)
                if trouble := next(filter(None, ranks.gathered(lookup.trouble if lookup else "")), ""):
                    self.report({"event": "notice", "text": f"held-out text is measured with a damaged memory: {trouble}"})
                if measures and self.memory and self.memory.is_asked:
                    measures["without_memory"] = in_all(measured())
            if measures and self.run.average:
                measures["without_average"] = in_all(measured(find=lookup))
        except Stopped:
            self.report({"event": "notice", "text": "the evaluation was stopped"})
            return None
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if ranks.size > 1 or not is_out_of_memory(error):  # other ranks would wait for this one
                raise
            self.report({"event": "notice", "text": "the evaluation was left out: it needs more memory than there is"})
            return {}
        if measures:
            self.report({"event": "evaluation", **measures, "tokens": self.run.tokens, "brief": brief})
            lost = note_measures(self.run.life, measures["sources"], "brief" if brief else FULL)
            for line in [*lost, *[remedy(self.run.replay["share"] if self.run.replay else 0.0)] * bool(lost and not brief)]:
                self.report({"event": "notice", "text": line})
        return measures

    def write_sample(self) -> None:
        """A few words of the model's own, after the beginning of a held-out text. Rank 0 writes, from its own random state."""
        if not self.ranks.is_first:
            return
        held = [text for name in self.store.sources() for text in self.store.texts(name)[:1]]
        words = held[self.run.life["steps"] % len(held)].split()[:PROMPT_WORDS] if held else []
        settings = self.run.preset.generation.model_copy(update={"max_new_tokens": SAMPLE_TOKENS})
        prompt, begun = " ".join(words), partial(generate, self.run.learner.model, self.tokenizer, heads=self.run.learner.heads)
        if self.run.preset.model.bidirectional != "off":
            prompt, begun = with_a_gap(words), filler_of(self.run.learner.model, self.tokenizer, self.run.preset, self.run.life["taught"]).filling
        try:
            with self.run.as_used(), self.ranks.accelerator.autocast():
                text = "".join(begun(prompt, settings, seed=self.run.tokens))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.report({"event": "notice", "text": "nothing was written along the way: it needs more memory than there is"})
            return
        self.report({"event": "sample", "tokens": self.run.tokens, "prompt": prompt, "text": text})

    def archive(self) -> None:
        """Keep the end of a finished run among the newest few."""
        self.ranks.first_does(lambda: self.snapshots.archive("run", self.run.life["tokens"]))


def batch_hash(digests: Sequence[Sequence[tuple[int, bytes]]]) -> str:
    """SHA-256 over the digests of a step's rows of all ranks, in the order of the rows: the same for any number of ranks."""
    rows = sorted(pair for of_rank in digests for pair in of_rank)
    return hashlib.sha256(b"".join(digest for _, digest in rows)).hexdigest()
