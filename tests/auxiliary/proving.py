"""What heads are proved with: a short training on real text, and held-out losses against those of predictors that look at nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_sources import open_stream
from data_sources.tokenizer import build_tokenizer
from lm.auxiliary.head import Reading, Taught, divergence
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Teacher


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

    @torch.no_grad()
    def losses(self, name: str, changed: Callable[[Any, Reading], Reading] = lambda head, reading: reading) -> dict[str, float]:
        """Mean losses of the head `name` on readings that were `changed` for it."""
        head = self.learner.heads[name]
        taught = [head(changed(head, reading)) for reading in self.readings]
        return {loss: float(sum(each.sums[loss] for each in taught) / sum(each.counts[loss] for each in taught)) for loss in taught[0].sums}


def trained(preset: Preset, held_out: Preset, tokens: int, rows: int) -> Trained:
    """A model that has read `tokens` of the preset's sources, and the first `rows` rows of another's as it reads them."""
    tokenizer, length, seed = build_tokenizer(preset.data, seed=0), preset.model.seq_length, preset.train.seed
    torch.manual_seed(seed)
    learner = Learner(build_model(preset, len(tokenizer)), build_heads(preset, tokenizer.pad_token_id))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights)
    read = number = 0
    with open_stream(preset.data, tokenizer, length, preset.step_rows, seed=seed) as stream:
        while read < tokens:
            step = teacher.step(next(stream)[0], len(preset.data.sources), read, tokens, number)
            assert step.sound
            read, number = read + step.tokens, number + 1
    learner.eval()
    learner.heads["ear"] = ear = Ear()
    with torch.no_grad(), open_stream(held_out.data, tokenizer, length, 16) as stream:
        for _ in range(rows // 16):
            learner([next(stream)[0]])
    del learner.heads["ear"]
    return Trained(learner, ear.heard)


@torch.no_grad()
def trivial(trained: Trained) -> dict[str, float]:
    """Each loss of one that looks at nothing, or at the last latent alone, and otherwise knows the means over this very text."""
    found = [TRIVIAL[name](head, trained.readings) for name, head in trained.learner.heads.items()]
    return {loss: value for losses in found for loss, value in losses.items()}


def entropy(tokens: Tensor) -> float:
    """Nats a token for one who knows how often each occurs among these."""
    shares = torch.bincount(tokens) / len(tokens)
    return float(-(shares * shares.clamp(min=1e-30).log()).sum())


def in_hindsight(head: Any, readings: list[Reading]) -> float:
    """Of the value: the best single number for this very text, which nobody knows before."""
    wanted = torch.cat([wanted[known] for wanted, known in map(head.wanted, readings)])
    return min(float(F.smooth_l1_loss(guess.expand_as(wanted), wanted)) for guess in torch.linspace(float(wanted.min()), float(wanted.max()), 200))


def spread(teacher: Tensor) -> float:
    """Mean KL (nats) from distributions, given by their scores (N, V), to the mean of them all, than which no single one is nearer."""
    shares = teacher.softmax(-1)
    mean = shares.mean(0)
    return float((shares * (shares.clamp(min=1e-30).log() - mean.clamp(min=1e-30).log())).sum(-1).mean())


def nearer(one: Tensor, other: Tensor, true: Tensor) -> float:
    """The smaller of two guesses' smooth L1."""
    return min(float(F.smooth_l1_loss(guess.expand_as(true), true)) for guess in (one, other))


def of_the_last_latent(head: Any, readings: list[Reading]) -> dict[str, float]:
    """Of the dynamics: the latent before the chain, or the mean one, for every step of it; what is likely of the next token likewise."""
    last, true, teacher, student = [], [], [], []
    for reading in readings:
        latents = reading.hidden.flatten(0, 1)
        first, compares = head.chains(reading)
        for link in head.links(reading, first):
            last.append(latents[first[link.chain]])
            true.append(latents[link.place])
            both = compares[link.chain]
            teacher.append(reading.readout.logits(latents[link.place[both]]))
            student.append(reading.readout.logits(latents[first[link.chain[both]]]))
    told, wanted = torch.cat(last), torch.cat(true)
    alike = float(divergence(torch.cat(teacher), torch.cat(student)).mean())
    return {"dynamics": nearer(told, wanted.mean(0), wanted), "dynamics_kl": min(alike, spread(torch.cat(teacher)))}


def of_no_rollout(head: Any, readings: list[Reading]) -> float:
    """Of latent consistency: the latent before the rollouts, or the mean end."""
    first = [head.beginnings(reading) for reading in readings]
    wanted = torch.cat([head.teacher(reading, places) for reading, places in zip(readings, first, strict=True)])
    last = torch.cat([reading.hidden.flatten(0, 1)[places] for reading, places in zip(readings, first, strict=True)])
    return nearer(last, wanted.mean(0), wanted)


def of_chance(head: Any, readings: list[Reading]) -> float:
    """Of span contrastive: every span that is compared is as likely as any other."""
    lanes = torch.cat([reading.lane[head.spans(reading).row] for reading in readings])
    return float(torch.stack([((head.lane >= 0) & (head.lane != lane)).sum() + 1.0 for lane in lanes]).log().mean())


TRIVIAL: dict[str, Callable[[Any, list[Reading]], dict[str, float]]] = {
    "second_next": lambda head, readings: {"second_next": entropy(torch.cat([head.asked(reading)[1] for reading in readings]))},
    "reconstruction": lambda head, readings: {"reconstruction": entropy(torch.cat([head.asked(reading)[1] for reading in readings]))},
    "value": lambda head, readings: {"value": in_hindsight(head, readings)},
    "dynamics": of_the_last_latent,
    "policy": lambda head, readings: {"policy": spread(torch.cat([reading.readout.logits(head.asked(reading)) for reading in readings]))},
    "latent_consistency": lambda head, readings: {"latent_consistency": of_no_rollout(head, readings)},
    "span_contrastive": lambda head, readings: {"span_contrastive": of_chance(head, readings)},
}


# By head: a reading whose future is that of other rows, while what the head predicts from stays.
def other_text(head: Any, reading: Reading) -> Reading:
    tokens, targets, nll = (part.roll(1, 0) for part in (reading.tokens, reading.targets, reading.nll))
    return reading._replace(tokens=tokens, targets=torch.where((reading.targets >= 0) & (targets >= 0), targets, -100), nll=nll)


def other_latents(head: Any, reading: Reading) -> Reading:
    first, _ = head.chains(reading)
    hidden = reading.hidden.roll(1, 0).flatten(0, 1).index_copy(0, first, reading.hidden.flatten(0, 1)[first])
    return reading._replace(hidden=hidden.view_as(reading.hidden))


def other_rollouts(head: Any, reading: Reading) -> Reading:
    return reading._replace(again=lambda tokens: reading.again(tokens).roll(1, 0))


def other_spans(head: Any, reading: Reading) -> Reading:
    place = head.spans(reading).place.flatten()
    others = reading.tokens.roll(1, 0).flatten()[place]
    return reading._replace(tokens=reading.tokens.flatten().index_copy(0, place, others).view_as(reading.tokens))


FUTURES_OF_OTHERS: dict[str, Callable[[Any, Reading], Reading]] = {
    "second_next": other_text,
    "reconstruction": other_text,
    "value": other_text,
    "dynamics": other_latents,
    "latent_consistency": other_rollouts,
    "span_contrastive": other_spans,
}
