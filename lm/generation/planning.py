"""Planning: what may come next is scored again by what it leads to, in latents that the dynamics module foretells (after MuZero, Schrittwieser
et al. 2020, whose search this replaces by a few greedy rollouts).

    score = log p + policy_weight * log pi - value_weight * v

p is the model's own distribution after penalties and bans, pi the policy head's, and v the mean nats a token that the value head expects, over
the candidate's latent and `depth` more, each after the likeliest token of the one before; what is behind the end of the document does not count.
Tokens are drawn from the candidates by softmax(score / temperature); at temperature 0 the best is taken.

A planner that commits pieces grows them token by token, keeps the best few (a beam), and adds up log p and log pi along each. The model itself
reads a piece once it is written: p of all but its first token is what a foretold latent says of it. A piece in which the document ends stays as it
is while others grow, and is compared with them.

Sizes: C candidates, V vocabulary, D hidden.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from lm.generation.foresight import Foresight
from lm.generation.sampling import Sampler
from lm.preset.generation import GenerationConfig


class Planner:
    """Looks ahead as `settings.planner` asks for."""

    def __init__(self, settings: GenerationConfig, sampler: Sampler, foresight: Foresight, ends: Collection[int] = ()) -> None:
        """ends: tokens that a document ends at."""
        self._config, self._sampler, self._foresight = settings.planner, sampler, foresight
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)

    @property
    def commits_pieces(self) -> bool:
        return self._config.commit == "piece"

    def routed(self, ruled: Tensor, latent: Tensor) -> Tensor:
        """Scores (V,) of the next token, -inf for all but candidates; `ruled` (V,): its scores after penalties, latent (D,): what they are from."""
        _, tokens, merit = self._grown(ruled[None], latent[None], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        if self._config.value_weight:
            merit = self._valued(merit, self._foretold(latent.expand(len(tokens), -1), tokens)[None], tokens[None])
        return torch.full_like(ruled, -torch.inf).index_copy_(0, tokens, merit)

    def piece(self, ruled: Tensor, latent: Tensor, history: list[int], warmth: float) -> list[int]:
        """The tokens of a piece behind `history`, up to the end of the document."""
        pieces, path = torch.zeros(0, 1, dtype=torch.int64), latent.new_zeros(0, 1, len(latent))
        latents, merit, over = latent[None], torch.zeros(1), torch.zeros(1, dtype=torch.bool)
        while len(pieces) < self._config.piece_length and not over.all():
            scores = self._ruled_each(latents, [[*history, *piece] for piece in pieces.T.tolist()]) if len(pieces) else ruled[None]
            parent, tokens, merit = self._grown(scores, latents, merit, over)
            pieces = torch.cat([pieces[:, parent], tokens[None]])
            over, parent = torch.isin(pieces, self._ends).any(0), parent.to(latent.device)
            latents = self._foretold(latents[parent], tokens)
            path = torch.cat([path[:, parent], latents[None]])
        if self._config.value_weight:
            merit = self._valued(merit, path, pieces)
        row = self._sampler.draw(self._sampler.tempered(merit, warmth))
        return pieces[self._of_the_document(pieces)[:, row], row].tolist()

    def _grown(self, scores: Tensor, latents: Tensor, merit: Tensor, over: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best C of what may follow rows of scores (R, V): row and token of each, and log p + policy_weight * log pi with what the rows had (R,).
        A row that is over (R,) is followed by an end at no cost, so that it stays as it is."""
        merits = scores.log_softmax(-1)
        if self._config.policy_weight:
            merits = merits + self._config.policy_weight * self._foresight.policy(latents).to(merits)
        merits[over] = -torch.inf
        merits[over, self._ends[:1]] = 0.0
        best = (merits + merit[:, None]).flatten().topk(min(self._config.candidates, merits.numel()))
        places = best.indices[kept := torch.isfinite(best.values)]
        return places // scores.shape[1], places % scores.shape[1], best.values[kept]

    def _valued(self, merit: Tensor, path: Tensor, pieces: Tensor) -> Tensor:
        """merit (C,) - value_weight * v, by the latents (P, C, D) after each of the tokens (P, C) of the candidates."""
        latents, tokens = [*path], [*pieces]
        for _ in range(self._config.depth):
            tokens.append(self._foresight.scores(latents[-1]).argmax(-1).to("cpu"))
            latents.append(self._foretold(latents[-1], tokens[-1]))
        counts = self._of_the_document(torch.stack(tokens)).to(merit)
        value = self._foresight.value(torch.stack(latents)).to(merit)
        return merit - self._config.value_weight * (value * counts).sum(0) / counts.sum(0)

    def _of_the_document(self, tokens: Tensor) -> Tensor:
        """Which of some rows' tokens (P, C) stand in front of the first end, or are it."""
        ends = torch.isin(tokens, self._ends).long()
        return ends.cumsum(0) == ends

    def _foretold(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Latents (C, D) after tokens (C,) on the host."""
        return self._foresight.next(latents, tokens.to(latents.device))

    def _ruled_each(self, latents: Tensor, histories: list[list[int]]) -> Tensor:
        """Scores (C, V) of what may follow each piece, with penalties; all alike where every token is banned."""
        scores = self._foresight.scores(latents).to("cpu", torch.float32)
        ruled = [self._sampler.ruled(row, history) for row, history in zip(scores, histories, strict=True)]
        return torch.stack([torch.zeros_like(scores[0]) if row is None else row for row in ruled])
