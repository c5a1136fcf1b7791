"""Routing by a learned threshold: which tokens a part of the model is for. Token by token and causal, unlike the best k of a sequence, as in
CoLT5 (Ainslie et al. 2023) and mixture of depths (Raposo et al. 2024), where whether a token is picked depends on those that follow.

    score_t = w . silu(W x'_t)  or  w . x'_t,    x' = x / rms(x)
    logit_t = (score_t - mean) / deviation - threshold
    token t is picked if logit_t > 0, and what it is picked for is weighed by sigmoid(logit_t)

Mean and deviation are those of the scores of the step before, over all ranks: what a text's vectors have in common changes fast at first,
and moves all scores faster than any threshold follows. They are buffers, and so is the threshold: a reading never changes them.

At the level of sequences the mean score of the document's tokens before t stands in for score_t (0 where there is none), so that what a
document was like so far decides for it as a whole, and the state is the sum of its scores; else the state is empty.

Scores learn by what the weight did to the model's loss. The threshold keeps to the budget: after each step, by all ranks' tokens,

    threshold += rate (picked - budget tokens) / step_tokens,    step_tokens: the moving average of a step's tokens

It goes down the slope of (budget - share) threshold, with a rate of its own and tokens alike, as in adaptive conformal inference (Gibbs &
Candes 2021, equation 2), and so keeps its word by arithmetic: what was picked beyond the budget in any number of steps of equal size is what
the threshold rose by, times the tokens of a step over the rate. An optimizer that scales gradients by their size, as Adam does, would
heed the many steps that pick too little as much as the few that pick far too much, where a step asks about few tokens.

Sizes: B batch, T time, D hidden, R width of the network.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.scan import decay_scan
from lm.preset.mechanisms import RoutedMechanism
from lm.preset.switches import Preset
from lm.units.unit import Context, State

DECAY = 0.95  # of the moving average over steps of the tokens that a step asks about
LEAST_DEVIATION = 0.1
SILU_OF_NORMAL = 0.596  # root mean square of silu(z), z normal


class Routed(NamedTuple):
    """What was decided."""

    picked: Tensor  # (B, T) bool
    weight: Tensor  # (B, T), at least float32: sigmoid of the logit
    state: State
    stats: Mapping[str, Tensor]  # share (2,): picked tokens and all; scores (2,): their sum and that of their squares


class Router(nn.Module):
    """A score for each token, and a threshold."""

    def __init__(self, preset: Preset, section: RoutedMechanism, budget: float) -> None:
        super().__init__()
        size = preset.model.hidden_size
        width = section.router_size or max(8, -(-size // 8))
        self.eps, self.by_sequence = preset.model.norm_eps, section.routing_strategy == "sequence_level"
        self._budget, self._rate = budget, section.threshold_rate
        self.inner = nn.Linear(size, width, bias=False) if section.router_type == "mlp" else None
        self.score = nn.Linear(size if self.inner is None else width, 1, bias=False)
        self.register_buffer("threshold", torch.tensor(0.0))  # in standard deviations of the scores
        self.register_buffer("step_tokens", torch.tensor(0.0))  # 0 before the first step
        self.register_buffer("mean", torch.tensor(0.0))  # of the scores of the step before, and their deviation
        self.register_buffer("deviation", torch.tensor(1.0))

    @torch.no_grad()
    def initialise(self) -> None:
        """Scores of deviation 1, and the threshold where they keep to the budget if they are normal."""
        if self.inner is not None:
            nn.init.normal_(self.inner.weight)
        nn.init.normal_(self.score.weight, std=1 if self.inner is None else 1 / SILU_OF_NORMAL)
        rest = torch.tensor(1 - self._budget).clamp(0.001, 0.999)
        self.threshold.copy_(torch.zeros(()) if self.by_sequence else torch.special.ndtri(rest))

    def initial_state(self, batch_size: int) -> State:
        return self.threshold.new_zeros(batch_size) if self.by_sequence else ()

    def scores(self, x: Tensor) -> Tensor:
        """(B, T) of `x` (B, T, D), in at least float32 also under autocast."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            x = F.rms_norm(x, x.shape[-1:], eps=self.eps)
            hidden = x if self.inner is None else F.silu(_scaled(x, self.inner))
            return _scaled(hidden, self.score)[..., 0]

    def forward(self, x: Tensor, state: State, context: Context) -> Routed:
        """Decide for each token of `x` (B, T, D)."""
        scores = self.scores(x)
        decisive, state = mean_before(scores, state, context) if self.by_sequence else (scores, state)
        standard = (decisive - self.mean) / self.deviation
        picked = standard > self.threshold
        with torch.no_grad():
            stats = {
                "share": torch.stack([context.total(picked.to(scores.dtype)), context.total(torch.ones_like(scores))]),
                "scores": torch.stack([context.total(decisive), context.total(decisive.square())]),
            }
        return Routed(picked, torch.sigmoid(standard - self.threshold), state, stats)

    @torch.no_grad()
    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """The threshold follows what this step picked, and the next one knows what its scores were."""
        (picked, tokens), (total, squares) = stats["share"].tolist(), stats["scores"].tolist()
        if tokens:
            mean = total / tokens
            average = DECAY * self.step_tokens + (1 - DECAY) * tokens
            self.step_tokens.copy_(torch.where(self.step_tokens > 0, average, tokens))  # nothing is asked of the device
            self.threshold.add_(self._rate * (picked - self._budget * tokens) / self.step_tokens)
            self.mean.fill_(mean)
            self.deviation.fill_(max(squares / tokens - mean**2, LEAST_DEVIATION**2) ** 0.5)


def _scaled(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's product over the root of its fan-in: weights are of deviation 1, so that a step of the optimizer, which is as large for each
    of them, moves a score by little."""
    return F.linear(x, layer.weight.to(x.dtype)) / layer.in_features**0.5


def mean_before(scores: Tensor, total: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """The mean of `scores` (B, T) over the document's tokens before each, 0 where there is none, and the sum after the last.
    `total` (B,): the sum over the document so far."""
    total = total.to(scores.dtype)
    sums = decay_scan(scores.new_zeros(1), scores[..., None], total[:, None], context.restart if context.any_restart else None)[..., 0]
    before = torch.cat([total[:, None], sums], 1)
    mean = torch.where(context.position > 0, before[:, :-1] / context.position.clamp(min=1), 0)
    return mean, before[:, -1].clone()
