"""Which token is written, of what a pass says and what the heads foretell.

    scores + policy_weight * log pi  ->  penalties and bans  ->  the planner, where it is on  ->  temperature, nucleus  ->  a draft is checked, or one drawn

Difficulty: temperature * 2 ^ (difficulty_temperature * tanh(bits / difficulty_bits - 1)), bits being what the value head expects of a token, the
mean of the span to come, and difficulty_bits, unless it is set, that head's own running mean. So hard text is written more boldly and easy text more
carefully, as in Zhu et al. 2024 ("Hot or cold? Adaptive temperature sampling"), or the other way round below 0.

Sizes: V vocabulary, D hidden.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lm.generation.drafting import Ahead, Draft, Drafter
from lm.generation.foresight import foresight
from lm.generation.planning import Planner
from lm.generation.sampling import Sampler
from lm.model import Model
from lm.preset.generation import GenerationConfig


class Chosen(NamedTuple):
    """What is written next."""

    token: int
    is_draft: bool = False
    planned: tuple[int, ...] = ()  # what is written behind it without another look

    @classmethod
    def of(cls, piece: list[int]) -> "Chosen":
        """A whole piece."""
        return cls(piece[0], planned=tuple(piece[1:]))


class Chooser:
    """Chooses by `settings`. ValueError, one line, where they ask for a head that is not among `heads`."""

    def __init__(self, settings: GenerationConfig, seed: int | None, model: Model, heads: Mapping[str, nn.Module], ends: Collection[int] = ()) -> None:
        """ends: tokens that a document ends at."""
        self._settings, self._sampler = settings, Sampler(settings, seed)
        self._foresight = foresight(model, heads, settings)
        self._planner = Planner(settings, self._sampler, self._foresight, ends) if settings.planner.enabled else None
        self._drafter = Drafter(settings, self._sampler, self._foresight) if settings.draft_length else None

    def drafts(self, latent: Tensor, history: list[int], limit: int) -> tuple[Draft, ...]:
        """Up to `limit` of them (lm/generation/drafting.py); none where they are off."""
        return self._drafter.drafts(latent, history, min(limit, self._settings.draft_length)) if self._drafter else ()

    def chosen(self, ahead: Ahead, history: list[int]) -> Chosen | None:
        """What comes behind `history`. None when every token is banned."""
        scores, latent = ahead.rows.scores[0], ahead.rows.latent[0]
        if self._planner and self._planner.commits_pieces:
            ruled = self._ruled(scores, latent, history)
            return None if ruled is None else Chosen.of(self._planner.piece(ruled, latent, history, self.warmth(latent)))
        chances = self.chances(scores, latent, history)
        if chances is None:
            return None
        return Chosen(*self._sampler.checked(chances, *ahead.drafts[0])) if ahead.drafts else Chosen(self._sampler.draw(chances))

    def chances(self, scores: Tensor, latent: Tensor, history: list[int]) -> Tensor | None:
        """The distribution (V,) of the next token, where tokens are chosen one by one, by the model's `scores` (V,) and the latent (D,) that they
        are from. None when every token is banned."""
        ruled = self._ruled(scores, latent, history)
        if ruled is None:
            return None
        return self._sampler.chances(self._planner.routed(ruled, latent) if self._planner else ruled, self.warmth(latent))

    def warmth(self, latent: Tensor) -> float:
        """What the temperature is multiplied by after `latent` (D,): between a half and 2."""
        if not self._settings.difficulty_temperature:
            return 1.0
        bits, fixed = float(self._foresight.value(latent)) / math.log(2), self._settings.difficulty_bits
        usual = float(self._foresight.heads["value"].mean) / math.log(2) if fixed is None else fixed
        if not usual:  # a head that was taught nothing yet
            return 1.0
        return 2 ** (self._settings.difficulty_temperature * math.tanh(bits / usual - 1))

    def _ruled(self, scores: Tensor, latent: Tensor, history: list[int]) -> Tensor | None:
        """Scores (V,) as the policy steers them, with penalties and bans. None when every token is banned."""
        weight = self._settings.policy_weight
        return self._sampler.ruled(scores + weight * self._foresight.policy(latent) if weight else scores, history)
