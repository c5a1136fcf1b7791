"""Which token comes next, given the scores: penalties and bans first, then temperature and nucleus, and a draw.

    p = nucleus(softmax(ruled(scores) / temperature))        at temperature 0 the likeliest token has all of it

Repetition penalty (Keskar et al. 2019) and n-gram blocking (Paulus et al. 2017) are transformers' own logits processors. The nucleus
(Holtzman et al. 2019) is found by laying entries into heaps of about the same chance and sorting the one where it ends, since sorting a whole
vocabulary takes longer than all the rest of a draw.

Sizes: V vocabulary, N first entries of it.
"""

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from lm.preset.generation import GenerationConfig

STEPS, FURTHEST = 64, 2047  # of log-probability a nat, by which entries are laid into so many heaps and one for the rest


def processors(settings: GenerationConfig) -> list[LogitsProcessor]:
    """The penalties and bans that `settings` ask for, in the order in which they apply."""
    rules: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        rules.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.no_repeat_ngram:
        rules.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram))
    return rules


def nucleus(chances: Tensor, top_p: float) -> Tensor:
    """The fewest likeliest entries of `chances` (V,) that together hold `top_p`, and those as likely as the last of them; their sum is 1 again."""
    step = (chances.log() * -STEPS).clamp_(max=FURTHEST).long()
    held = step.bincount(chances, FURTHEST + 1).cumsum(0)
    ends = min(int((held < top_p).sum()), FURTHEST)
    inside = chances[step == ends].sort(descending=True).values
    if not len(inside):  # where the sum of all was rounded below top_p
        return chances
    before = held[ends - 1] if ends else 0.0
    last = inside[(inside.cumsum(0) - inside + before < top_p).sum() - 1]
    kept = torch.where(chances >= last, chances, 0)
    return kept / kept.sum()


class Sampler:
    """Picks tokens by `settings`, with random numbers of its own, so that nobody else's draws change."""

    def __init__(self, settings: GenerationConfig, seed: int | None = None) -> None:
        self._settings = settings
        self._rules = processors(settings)
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def ruled(self, scores: Tensor, history: list[int]) -> Tensor | None:
        """`scores` (N,) after the tokens of `history`, with penalties and bans, on the host. None when every token is banned."""
        scores = scores.detach().to("cpu", torch.float32)
        if history and self._rules:
            seen, scores = torch.tensor([history], dtype=torch.int64), scores[None]
            for rule in self._rules:  # one by one: transformers' own list looks up each signature again, which takes longer than the rule
                scores = rule(seen, scores)
            scores = scores[0]
        return scores if not self._settings.no_repeat_ngram or torch.isfinite(scores).any() else None

    def tempered(self, ruled: Tensor, warmth: float = 1.0) -> Tensor:
        """softmax(ruled / temperature) (N,). warmth: what the temperature is multiplied by."""
        temperature = self._settings.temperature * warmth
        if temperature == 0:
            return torch.zeros_like(ruled).index_fill_(0, ruled.argmax(), 1.0)
        return ((ruled - ruled.max()) / temperature).softmax(-1)  # from 0 down: nothing overflows, however cold it is

    def chances(self, ruled: Tensor, warmth: float = 1.0) -> Tensor:
        """The distribution (N,) that a token is drawn from."""
        chances = self.tempered(ruled, warmth)
        return nucleus(chances, self._settings.top_p) if self._settings.temperature and self._settings.top_p < 1 else chances

    def draw(self, chances: Tensor) -> int:
        """An entry of `chances` (N,), which need not add up to 1."""
        below = chances.cumsum(0, dtype=torch.float64)
        drawn = int(torch.searchsorted(below, self._uniform() * below[-1], right=True))
        return drawn if drawn < len(chances) else int(chances.nonzero()[-1])  # where the product was rounded up to the whole

    def checked(self, chances: Tensor, draft: int, drafted_from: Tensor) -> tuple[int, bool]:
        """A draw from `chances` (V,) by way of a `draft` that was drawn from others (N,), 0 beyond N <= V; and whether it is the draft.

        With p and q for the two, the draft stands with min(1, p / q), and else what p has more than q is drawn from: which comes to p
        (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"; Chen et al. 2023).
        """
        if self._uniform() * float(drafted_from[draft]) < float(chances[draft]):
            return draft, True
        more = chances.clone()
        more[: len(drafted_from)] -= drafted_from
        more.clamp_(min=0)
        return self.draw(more if more.any() else chances), False  # the two are one where the rest is nothing, but for rounding

    def _uniform(self) -> float:
        return float(torch.rand((), dtype=torch.float64, generator=self._random))
