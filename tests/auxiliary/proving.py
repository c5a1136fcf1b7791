"""What heads are proved with: a short training on real text, and held-out losses against those of predictors that look at nothing."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_sources import Batch, open_stream
from data_sources.tokenizer import tokenizer_from_json
from lm.auxiliary.head import Reading, Taught
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset
from lm.training.learner import Learner
from lm.training.snapshots import Snapshots


class Ear(nn.Module):
    """Stands among the heads and keeps what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Reading] = []

    def forward(self, reading: Reading) -> Taught:
        self.heard.append(reading)
        return Taught({}, {})


class Trained(NamedTuple):
    """A model with its heads, and held-out text as its trunk reads it."""

    learner: Learner
    readings: list[Reading]

    def losses(self, name: str, changed: Callable[[Reading], Reading] = lambda reading: reading) -> dict[str, float]:
        """Mean losses of the head `name` on readings that were `changed`."""
        head = self.learner.heads[name]
        taught = [head(changed(reading)) for reading in self.readings]
        return {loss: float(sum(each.sums[loss] for each in taught) / sum(each.counts[loss] for each in taught)) for loss in taught[0].sums}


def of_snapshot(folder: Path, batches: Callable[[Any], Iterable[Batch]]) -> Trained:
    """The newest snapshot of a folder, and the batches that are made with its tokenizer as its trunk reads them, without gradients."""
    snapshot = Snapshots(folder).newest()
    assert snapshot is not None
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    learner = Learner(build_model(snapshot.preset, len(tokenizer)), build_heads(snapshot.preset, len(tokenizer)))
    learner.load_state_dict(snapshot.weights)
    torch.set_grad_enabled(False)
    learner.eval()
    learner.heads["ear"] = ear = Ear()
    for batch in batches(tokenizer):
        learner([batch])
    del learner.heads["ear"]
    return Trained(learner, ear.heard)


def held_out(preset: Preset, rows: int, count: int, part: str = "train") -> Callable[[Any], Iterator[Batch]]:
    """The first `count` batches of `rows` rows of the preset's sources."""

    def batches(tokenizer: Any) -> Iterator[Batch]:
        with open_stream(preset.data, tokenizer, preset.model.seq_length, rows, part=part) as stream:
            for _ in range(count):
                yield next(stream)[0]

    return batches


def trivial(trained: Trained) -> dict[str, float]:
    """Each loss of one that sees nothing but the last latent, and otherwise knows the means over this very text."""
    heads, readings = trained.learner.heads, trained.readings
    out = {}
    for name in ("second_next", "reconstruction"):
        if name in heads:
            out[name] = entropy(torch.cat([heads[name].asked(reading)[1] for reading in readings]))
    if "value" in heads:
        out["value"] = of_a_constant(torch.cat([wanted[known] for wanted, known in map(heads["value"].wanted, readings)]))
    if "policy" in heads:
        out["policy"] = spread(torch.cat([everywhere(reading)[::16] for reading in readings]))
    if "dynamics" in heads:
        out |= of_the_last_latent(heads["dynamics"], readings)
    if "latent_consistency" in heads:
        out["latent_consistency"] = of_no_rollout(heads["latent_consistency"], readings)
    if "span_contrastive" in heads:
        kept = heads["span_contrastive"].lane
        lanes = torch.cat([reading.lane[heads["span_contrastive"].spans(reading).row] for reading in readings])
        out["span_contrastive"] = float(torch.stack([((kept >= 0) & (kept != lane)).sum() + 1.0 for lane in lanes]).log().mean())
    return out


def entropy(tokens: Tensor) -> float:
    """Nats a token for one who knows how often each occurs among these."""
    shares = torch.bincount(tokens) / len(tokens)
    return float(-(shares * shares.clamp(min=1e-30).log()).sum())


def of_a_constant(wanted: Tensor) -> float:
    """Smooth L1 of the best single number."""
    guesses = torch.linspace(float(wanted.min()), float(wanted.max()), 200)
    return min(float(F.smooth_l1_loss(guess.expand_as(wanted), wanted)) for guess in guesses)


def everywhere(reading: Reading) -> Tensor:
    """Latents (N, D) at all scored places."""
    return reading.hidden[reading.targets >= 0]


def spread(latents: Tensor, weight: Tensor | None = None) -> float:
    raise NotImplementedError


def of_the_last_latent(head: Any, readings: list[Reading]) -> dict[str, float]:
    raise NotImplementedError


def of_no_rollout(head: Any, readings: list[Reading]) -> float:
    raise NotImplementedError
