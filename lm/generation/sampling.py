"""Which token comes next, given the scores: penalties and bans first, then the likeliest or a draw.

The rules are transformers' own logits processors: repetition penalty (Keskar et al. 2019), n-gram blocking (Paulus et al. 2017),
temperature, and nucleus sampling (Holtzman et al. 2019).
"""

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from lm.preset.switches import GenerationConfig


def processors(settings: GenerationConfig) -> LogitsProcessorList:
    """The rules that `settings` ask for, in the order in which they apply."""
    rules = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        rules.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.no_repeat_ngram:
        rules.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram))
    if settings.temperature not in (0, 1):
        rules.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.temperature and settings.top_p < 1:
        rules.append(TopPLogitsWarper(float(settings.top_p)))
    return rules


class Sampler:
    """Picks tokens by `settings`, with random numbers of its own, so that nobody else's draws change."""

    def __init__(self, settings: GenerationConfig, seed: int | None = None) -> None:
        self._greedy = settings.temperature == 0
        self._rules = processors(settings)
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def pick(self, scores: Tensor, history: list[int]) -> int | None:
        """A token by its `scores` (V,), after the tokens of `history`. None when every token is banned."""
        seen = torch.tensor([history], dtype=torch.int64)
        scores = self._rules(seen, scores.detach().to("cpu", torch.float32, copy=True)[None])[0] if history else scores.float().cpu()
        if not torch.isfinite(scores).any():
            return None
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))
