"""What a run is: everything that a snapshot must hold, and nothing else."""

import contextlib
import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from data_sources.config import DataConfig
from data_sources.lengths import RowLengths
from lm.preset import Preset
from lm.preset.learned import needs_tokens
from lm.training.adaptive import AdaptiveSources
from lm.training.averaging import Average
from lm.training.carried import Carried
from lm.training.change import tokenizer_of
from lm.training.corrupted import denoisers_of
from lm.training.forgetting import last_measured
from lm.training.growth import Fit, fit, fitted, fitted_moments
from lm.training.learner import Learner
from lm.training.optimizer import Optimizer, load_optimizer_tensors, optimizer_tensors
from lm.training.replay import Replay
from lm.training.snapshots import Snapshot


@dataclass
class Run:
    """A run under way: so many tokens read out of its budget, by a model with a life before it."""

    preset: Preset
    tokenizer: str  # JSON text; the model's own, for life
    learner: Learner
    optimizer: Optimizer
    life: dict[str, Any]  # born, tokens, steps, runs, sources, tokenizer; where there is such: taught, objective_tokens, measured, faults, past, went_back
    budget: int
    global_rows: int  # rows of an optimizer step over all ranks after the stages of the preset, kept when their number changes
    tokens: int = 0
    cursor: dict[str, Any] | None = None
    ended: bool = False  # whether every source was read to its end before the budget was
    closed: bool = False  # whether it was measured at its end, so that nothing is left to do
    certificate: dict[str, Any] = field(default_factory=dict)  # of the last snapshot
    adaptive: AdaptiveSources | None = None  # where the preset switches it on
    replay: Replay | None = None  # what is read again of earlier runs
    memory: list[list[int]] | None = None  # what a snapshot holds of the memory of what was read, by lm.training.remembering
    carried: Carried | None = None  # this rank's, where the preset has states carried from row to row
    average: Average | None = None  # of the weights, where the preset has one
    lengths_from: tuple[int, int] = (0, 0)  # row, and tokens of the life, from which on the curricula of rows are counted
    data: DataConfig = field(init=False)  # the preset's, and what is read again

    def __post_init__(self) -> None:
        self.data = self.preset.data

    def counted(self, tokens: int, by_source: dict[str, int]) -> None:
        """Note that an optimizer step has read `tokens`."""
        self.tokens += tokens
        self.life["tokens"] += tokens
        self.life["steps"] += tokens > 0
        self.life["runs"][-1]["tokens"] = self.tokens
        for name, count in by_source.items():
            self.life["sources"][name] = self.life["sources"].get(name, 0) + count

    def as_used(self) -> contextlib.AbstractContextManager[None]:
        """In here the model computes with what evaluation, samples and chat use: the average of the weights, where there is one."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def teaches(self, by_denoiser: dict[str, int], scored: int) -> None:
        """Note what a step has taught: tokens scored by denoiser, or under masks."""
        masked = {"mask": scored} if self.preset.model.bidirectional != "off" else {}
        for kind, count in (by_denoiser | masked).items():
            self.life["taught"][kind] = self.life["taught"].get(kind, 0) + count

    @property
    def lengths(self) -> RowLengths:
        """How long rows are, and how many an optimizer step reads."""
        train = self.preset.train
        lengths = [(stage.until_tokens, stage.seq_length) for stage in train.seq_length_curriculum]
        rows = [(stage.until_tokens, stage.rows) for stage in train.batch_curriculum]
        return RowLengths.of(lengths, rows, (self.preset.model.seq_length, self.global_rows), *self.lengths_from)

    def snapshot(self, carried: dict[str, torch.Tensor]) -> Snapshot:
        """The run as it stands, with the carried states of all ranks. The tensors are its own, not copies; the history is a copy, since
        each step adds to it."""
        return Snapshot(
            preset=self.preset,
            tokenizer=self.tokenizer,
            weights=self.learner.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, self.learner),
            random=random_states(),
            carried=carried,
            average=self.average.tensors() if self.average else {},
            cursor=self.cursor,
            run={
                "tokens": self.tokens,
                "budget": self.budget,
                "global_rows": self.global_rows,
                "ended": self.ended,
                "closed": self.closed,
                "adaptive": self.adaptive.state() if self.adaptive else None,
                "replay": self.replay,
                "lengths_from": self.lengths_from,
                "memory": self.memory,
                "averaged": self.average.tokens if self.average else None,
            },
            life=copy.deepcopy(self.life),
            certificate=self.certificate,
        )


def new_life(preset: Preset) -> dict[str, Any]:
    """The history of a model that is born now."""
    life = {"born": now(), "tokenizer": tokenizer_of(preset), "tokens": 0, "steps": 0, "runs": [], "sources": {}, "taught": {}}
    return life | ({"objective_tokens": True} if needs_tokens(preset) else {})


def taught(snapshot: Snapshot) -> dict[str, int]:
    """Tokens that the model of a snapshot learned by each denoiser ("R", "S", "X") and under masks ("mask"). In a life from before they were
    counted they are unknown: as if it had learned a token in each way that its preset asks for."""
    asked = denoisers_of(snapshot.preset) + ["mask"] * (snapshot.preset.model.bidirectional != "off")
    return snapshot.life.get("taught", dict.fromkeys(asked, 1))


def begin_run(life: dict[str, Any], preset: Preset, budget: int) -> None:
    """Add a run to the history, with what was measured last before it: bits per byte by source, on all held-out text, in the way in which its
    own model is measured. One that was begun and read nothing was none."""
    life["runs"] = [run for run in life["runs"] if run["tokens"]]
    about = {"preset": preset.name, "began": now(), "budget": budget, "tokens": 0}
    life["runs"].append({**about, "before": last_measured(life, preset.model.bidirectional != "off"), "after": {}})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_under_way(snapshot: Snapshot, preset: Preset, budget: int) -> bool:
    """Whether the snapshot's run goes on with `preset`: it is not finished, and the preset is called the same and reads the same."""
    same = _text_of(snapshot.preset) == _text_of(preset) and snapshot.preset.name == preset.name and snapshot.run["budget"] == budget
    all_read = snapshot.run["ended"] or snapshot.run["tokens"] >= budget
    return same and not (all_read and snapshot.run.get("closed", True))


def _text_of(preset: Preset) -> DataConfig:
    """What decides which text is read: all of `data` but where it is kept."""
    return preset.data.model_copy(update={"cache": None})


def random_states() -> dict[str, torch.Tensor]:
    """Torch's random states on the host and on the device in use."""
    on_gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def restore(run: Run, snapshot: Snapshot) -> Fit:
    """Take over all of `snapshot` that fits the run's model."""
    ours = run.learner.state_dict()
    how = fit(run.learner.model, ours, snapshot.preset, snapshot.weights)
    run.learner.load_state_dict(fitted(ours, snapshot.weights, how), strict=False)
    load_optimizer_tensors(run.optimizer, run.learner, fitted_moments(snapshot.optimizer, how))
    torch.set_rng_state(snapshot.random["cpu"])
    if torch.cuda.is_available() and "cuda" in snapshot.random:
        torch.cuda.set_rng_state(snapshot.random["cuda"])
    return how
