"""Planning: what may come next is scored again by what it leads to, in latents that the dynamics module foretells (after MuZero, Schrittwieser
et al. 2020, whose search this replaces by a few greedy rollouts).

    score = log p + policy_weight * log pi - value_weight * v

p is the model's own distribution after penalties and bans, pi the policy head's, and v the mean nats a token that the value head expects, over
the candidate's latent and `depth` more, each after the likeliest token of the one before. Tokens are drawn from the candidates by
softmax(score / temperature); at temperature 0 the best is taken.

A planner that commits pieces grows them token by token, keeps the best few (a beam), and adds up log p and log pi along each. The model itself
reads a piece once it is written: p of all but its first token is what a foretold latent says of it.

Sizes: C candidates, V vocabulary, N first entries of it, D hidden.
"""

import torch
from torch import Tensor

from lm.generation.foresight import Foresight
from lm.generation.sampling import Sampler
from lm.preset.generation import GenerationConfig


class Planner:
    """Looks ahead as `settings.planner` asks for."""

    def __init__(self, settings: GenerationConfig, sampler: Sampler, foresight: Foresight) -> None:
        self._config, self._vocabulary = settings.planner, settings.draft_vocabulary
        self._sampler, self._foresight = sampler, foresight

    @property
    def commits_pieces(self) -> bool:
        return self._config.commit == "piece"

    def routed(self, ruled: Tensor, latent: Tensor) -> Tensor:
        """Scores (V,) of the next token, -inf for all but candidates; `ruled` (V,): its scores after penalties, latent (D,): what they are from."""
        tokens, merit = self._grown(ruled[None], latent[None], torch.zeros(1))
        after = self._foresight.next(latent.expand(len(tokens), -1), tokens.to(latent.device))
        return torch.full_like(ruled, -torch.inf).index_copy_(0, tokens, self._score(merit, after[None]))

    def piece(self, ruled: Tensor, latent: Tensor, history: list[int], warmth: float) -> list[int]:
        """The tokens of a piece behind `history`."""
        pieces: list[list[int]] = [[]]
        scores, latents, merit, path = ruled[None], latent[None], torch.zeros(1), latent.new_zeros(0, 1, len(latent))
        while len(pieces[0]) < self._config.piece_length:
            places, merit = self._grown(scores, latents, merit)
            parent, tokens = places // scores.shape[1], places % scores.shape[1]
            pieces = [[*pieces[row], token] for row, token in zip(parent.tolist(), tokens.tolist(), strict=True)]
            parent, tokens = parent.to(latent.device), tokens.to(latent.device)
            latents = self._foresight.next(latents[parent], tokens)
            path = torch.cat([path[:, parent], latents[None]])
            scores = self._ruled_each(latents, [[*history, *piece] for piece in pieces])
        return pieces[self._sampler.draw(self._sampler.tempered(self._score(merit, path), warmth))]

    def _grown(self, scores: Tensor, latents: Tensor, merit: Tensor) -> tuple[Tensor, Tensor]:
        """The best C of what may follow rows of scores (R, N): places in the flattened R * N, and log p + policy_weight * log pi with what the rows
        had (R,)."""
        merits = scores.log_softmax(-1)
        if self._config.policy_weight:
            merits = merits + self._config.policy_weight * self._foresight.policy(latents)[:, : scores.shape[1]].to(merits)
        merits = (merits + merit[:, None]).flatten()
        best = merits.topk(min(self._config.candidates, len(merits)))
        kept = torch.isfinite(best.values)
        return best.indices[kept], best.values[kept]

    def _score(self, merit: Tensor, path: Tensor) -> Tensor:
        """The one formula: merit (C,), and the latents of each candidate so far (P, C, D) -> (C,)."""
        if not self._config.value_weight:
            return merit
        latents = [*path]
        for _ in range(self._config.depth):
            tokens = self._foresight.scores(latents[-1], self._vocabulary).argmax(-1)
            latents.append(self._foresight.next(latents[-1], tokens))
        return merit - self._config.value_weight * self._foresight.value(torch.stack(latents)).mean(0).to(merit)

    def _ruled_each(self, latents: Tensor, histories: list[list[int]]) -> Tensor:
        """Scores (C, N) of what may follow each piece, with penalties; all alike where every token is banned."""
        scores = self._foresight.scores(latents, self._vocabulary).to("cpu", torch.float32)
        size = scores.shape[1]
        ruled = [self._sampler.ruled(row, [token for token in history if token < size]) for row, history in zip(scores, histories, strict=True)]
        return torch.stack([torch.zeros(size) if row is None else row for row in ruled])
