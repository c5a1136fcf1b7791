"""Drafts: the dynamics module writes a few tokens ahead, and the model reads them in one pass (speculative decoding).

    z_0 = h_t;   z_i = dynamics(z_{i-1}, embedding of x_{t+i});   x_{t+i+1} ~ q_i = p(. | z_i)

h_t is the latent after the last token that was read, and x_{t+1} the token written since. What is written has the model's own
distribution, whatever the drafts are (Sampler.checked): they change speed alone. A pass over a few tokens costs about as much as one over
one, since reading the weights is most of it.

Nothing is undone where a draft is not kept: the state before the pass still stands, and what was kept of the pass is read again in front of the
next drafts.

Sizes: K drafts, V vocabulary, N first entries of it, D hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lm.generation.foresight import Foresight
from lm.generation.sampling import Sampler
from lm.model import ModelState
from lm.preset.generation import GenerationConfig

PENDING = 16  # at most so many written tokens are read again in front of drafts; then one pass without drafts reads them all
SOUNDED = 16  # one pass in so many has no drafts and reads one token alone: against its time it is known what drafts are worth


class Draft(NamedTuple):
    """A token that may come, and the distribution (N,) that it was drawn from; entries beyond N had no chance."""

    token: int
    chances: Tensor


class Rows(NamedTuple):
    """What a pass says after each of some tokens."""

    scores: Tensor  # (K + 1, V): of the token that comes next
    latent: Tensor  # (K + 1, D)

    def after(self, other: "Rows | None") -> "Rows":
        """These behind others."""
        return self if other is None else Rows(*map(torch.cat, zip(other, self, strict=True)))


class Ahead(NamedTuple):
    """What is known of the tokens to come: after the last one written, and after each draft."""

    rows: Rows
    drafts: tuple[Draft, ...]  # K
    state: ModelState  # after all drafts

    def rest(self) -> "Ahead":
        """Once the first draft is written."""
        return self._replace(rows=Rows(*(part[1:] for part in self.rows)), drafts=self.drafts[1:])


class Pace(NamedTuple):
    """How fast some tokens were written."""

    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drafts: int = 0
    kept: int = 0
    burdened: int = 0  # passes for which drafts were tried, or that read what drafts had left

    def plus(self, other: "Pace") -> "Pace":
        return Pace(*(a + b for a, b in zip(self, other, strict=True)))


class Paces(NamedTuple):
    """Passes as they would be without drafts, and those that drafting had a part in."""

    plain: Pace = Pace()
    drafted: Pace = Pace()

    def plus(self, other: "Paces") -> "Paces":
        return Paces(*(a.plus(b) for a, b in zip(self, other, strict=True)))

    def noted(self, pace: Pace) -> "Paces":
        """With one more pass."""
        return self._replace(drafted=self.drafted.plus(pace)) if pace.burdened else self._replace(plain=self.plain.plus(pace))

    @property
    def speed_up(self) -> float | None:
        """How many times as fast a token is with drafts as without; None before both were seen."""
        plain, all_of_it = self.plain, self.plain.plus(self.drafted)
        if not (plain.tokens and self.drafted.tokens and all_of_it.seconds):
            return None
        return (plain.seconds / plain.tokens) / (all_of_it.seconds / all_of_it.tokens)


class Drafter:
    """Writes drafts as `settings` ask for, with the sampler's own rules."""

    def __init__(self, settings: GenerationConfig, sampler: Sampler, foresight: Foresight) -> None:
        self._settings, self._sampler, self._foresight = settings, sampler, foresight

    def drafts(self, latent: Tensor, history: list[int], limit: int) -> tuple[Draft, ...]:
        """Up to `limit` tokens behind `history`, whose last token was read by nobody; latent (D,): before that."""
        drafts: list[Draft] = []
        size, most = self._settings.draft_vocabulary, self._settings.draft_entropy
        token, seen = history[-1], [token for token in history if token < size]
        while len(drafts) < limit:
            latent = self._foresight.next(latent, torch.tensor(token, device=latent.device))
            scores = self._foresight.scores(latent, size).to("cpu", torch.float32)
            ruled = self._sampler.ruled(scores, seen)
            if ruled is None:
                break
            chances = self._sampler.tempered(ruled)  # a nucleus would cost more than the few drafts that it saves
            if most is not None and float(entropy(chances)) > most:
                break
            token = self._sampler.draw(chances)
            seen.append(token)
            drafts.append(Draft(token, chances))
        return tuple(drafts)


def entropy(chances: Tensor) -> Tensor:
    """Nats of distributions (..., N) -> (...)."""
    return torch.special.entr(chances).sum(-1)
