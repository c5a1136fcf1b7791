"""Routing by a learned threshold: which tokens a part of the model is for. Token by token and causal, unlike the best k of a sequence, as in
CoLT5 (Ainslie et al. 2023) and mixture of depths (Raposo et al. 2024), where whether a token is picked depends on those that follow.

    score_t = w . silu(W x'_t)  or  w . x'_t,    x' = x / rms(x)
    logit_t = score_t - threshold;    token t is picked if logit_t > 0, and what it is picked for is weighed by sigmoid(logit_t)

At the level of sequences the mean score of the document's tokens before t stands in for score_t (0 where there is none), so that what a
document was like so far decides for it as a whole, and the state is the sum of its scores; else the state is empty.

Beside what the weight did to the model's loss there is a loss of the budget, linear in tokens, however a step is cut:

    loss_t = (share - budget) sigmoid(score_t - threshold)

where `share` was picked in the step before, by all ranks. While it is too large scores fall and the threshold rises. Scores learn by both
losses and are quick, being made of many weights; the threshold learns by this one alone, so that it rests only where the share is the budget.
With scores that learned by the model's loss alone the share strayed from 0.5 to 0.03: they moved faster than the threshold could follow.

Sizes: B batch, T time, D hidden, R width of the network.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.scan import decay_scan
from lm.preset.switches import Preset, RoutedMechanism
from lm.units.unit import Context, State

SILU_OF_NORMAL = 0.596  # root mean square of silu(z), z normal


class Routed(NamedTuple):
    """What was decided."""

    picked: Tensor  # (B, T) bool
    weight: Tensor  # (B, T), at least float32: sigmoid of the logit
    state: State
    loss: Tensor  # of the budget, unweighted
    share: Tensor  # (2,) detached: picked tokens and all, among those that are scored


class Router(nn.Module):
    """A score for each token, and a threshold."""

    def __init__(self, preset: Preset, section: RoutedMechanism, budget: float) -> None:
        super().__init__()
        size = preset.model.hidden_size
        width = section.router_size or max(8, -(-size // 8))
        self.eps, self.budget, self.by_sequence = preset.model.norm_eps, budget, section.routing_strategy == "sequence_level"
        self.inner = nn.Linear(size, width, bias=False) if section.router_type == "mlp" else None
        self.score = nn.Linear(size if self.inner is None else width, 1, bias=False)
        self.threshold = nn.Parameter(torch.zeros(()))
        self.register_buffer("share", torch.tensor(budget))  # picked in the step before

    @torch.no_grad()
    def initialise(self) -> None:
        """Scores of deviation 1, and the threshold where they keep to the budget if they are normal."""
        fan_in = self.score.in_features
        if self.inner is not None:
            nn.init.normal_(self.inner.weight, std=self.inner.in_features**-0.5)
            fan_in *= SILU_OF_NORMAL**2
        nn.init.normal_(self.score.weight, std=fan_in**-0.5)
        rest = torch.tensor(1 - self.budget).clamp(0.001, 0.999)
        self.threshold.copy_(torch.zeros(()) if self.by_sequence else torch.special.ndtri(rest))
        self.share.fill_(self.budget)

    def initial_state(self, batch_size: int) -> State:
        return self.threshold.new_zeros(batch_size) if self.by_sequence else ()

    def scores(self, x: Tensor) -> Tensor:
        """(B, T) of `x` (B, T, D), in at least float32 also under autocast."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            x = F.rms_norm(x, x.shape[-1:], eps=self.eps)
            hidden = x if self.inner is None else F.silu(F.linear(x, self.inner.weight.to(x.dtype)))
            return F.linear(hidden, self.score.weight.to(x.dtype))[..., 0]

    def decisive(self, x: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        """What is held against the threshold (B, T), and the state after."""
        scores = self.scores(x)
        return mean_before(scores, state, context) if self.by_sequence else (scores, state)

    def forward(self, x: Tensor, state: State, context: Context) -> Routed:
        """Decide for each token of `x` (B, T, D)."""
        scores, after = self.decisive(x, state, context)
        weight = torch.sigmoid(scores - self.threshold.detach())
        picked = scores > self.threshold
        held, _ = self.decisive(x.detach(), state.detach() if self.by_sequence else (), context)
        loss = context.mean((self.share - self.budget) * torch.sigmoid(held - self.threshold))
        share = torch.stack([context.total(picked.to(scores.dtype)), context.total(torch.ones_like(scores))])
        return Routed(picked, weight, after, loss, share.detach())

    @torch.no_grad()
    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """The budget's loss of the next step is told what share was picked in this one."""
        picked, tokens = stats["share"].tolist()
        if tokens:
            self.share.fill_(picked / tokens)


def mean_before(scores: Tensor, total: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """The mean of `scores` (B, T) over the document's tokens before each, 0 where there is none, and the sum after the last.
    `total` (B,): the sum over the document so far."""
    total = total.to(scores.dtype)
    sums = decay_scan(scores.new_zeros(1), scores[..., None], total[:, None], context.restart if context.any_restart else None)[..., 0]
    before = torch.cat([total[:, None], sums], 1)
    mean = torch.where(context.position > 0, before[:, :-1] / context.position.clamp(min=1), 0)
    return mean, before[:, -1].clone()
