"""Mixture of experts (Shazeer et al. 2017, "Outrageously large neural networks"): many feed-forwards, of which each token uses a few.

    s = W_r x;   p = softmax(s);   chosen = the K experts of highest p + b;   w = p of the chosen, divided by their sum
    y = sum_{e chosen} w_e E_e(x) + S(x),   E_e(x) = W_down,e (silu(W_gate,e x) * W_up,e x),   S: experts that all tokens share

Each token by itself: it chooses its experts, and none has a limit (dropless, as in Gale et al. 2022, "MegaBlocks"), so that what
other tokens choose changes nothing, and the state is empty. S is as in Dai et al. 2024, "DeepSeekMoE".

Three things keep the experts evenly used, and each can be switched off:
- b, for choosing only, which no gradient moves: after each step it rises by a fixed amount for experts that had less than the mean
  and falls for those that had more (Wang et al. 2024, "Auxiliary-loss-free load balancing strategy for mixture-of-experts"). Its mean,
  which chooses nothing, is kept at zero.
- the loss G sum_e f_e p_e (Lepikhin et al. 2020, "GShard"; Fedus et al. 2021, "Switch transformers"), f_e being the share of the choices
  that e got: 1 when all are even. f is that of the step before, over all its tokens: so each token adds its own part and it makes no
  difference how rows are cut into micro-batches and ranks. That balance should be that of a whole step is from Qiu et al. 2025,
  "Demons in the detail".
- the loss (log sum_e exp s_e)^2, which keeps scores small (Zoph et al. 2022, "ST-MoE").
The losses of all layers are added up, as in Switch: each router is pulled as strongly in a deep model as in a shallow one.

Sizes: B batch, T time, N = B T, D hidden, G experts, K experts of a token, F width of an expert.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.grouped import Order, by_group, combined, dispatched, grouped_linear
from lm.preset.switches import Preset
from lm.units.joined import Joined, Matrices
from lm.units.unit import Context, Mixed, Unit


class Assignment(NamedTuple):
    """What the router says of tokens."""

    chosen: Tensor  # (B, T, K) int64
    weight: Tensor  # (B, T, K)
    probability: Tensor  # (B, T, G)
    log_sum: Tensor  # (B, T): of the exponentials of the scores


def moe_step(x: Tensor, assignment: Assignment, gate_up: Tensor, output: Tensor) -> Tensor:
    """The definition, for one token: x (D,), assignment (K,), gate_up (G, 2 F, D), output (G, D, F) -> (D,)."""
    y = torch.zeros_like(x)
    for expert, weight in zip(assignment.chosen.tolist(), assignment.weight, strict=True):
        gate, up = (gate_up[expert] @ x).chunk(2)
        y = y + weight * (output[expert] @ (F.silu(gate) * up))
    return y


def moe_parallel(x: Tensor, assignment: Assignment, gate_up: Tensor, output: Tensor) -> Tensor:
    """All tokens at once: x (B, T, D) -> (B, T, D). The work is that of the chosen experts."""
    order = by_group(assignment.chosen.flatten(0, 1), len(gate_up))
    gate, up = grouped_linear(dispatched(x.flatten(0, 1), order), gate_up, order).chunk(2, -1)
    weight = _at_places(assignment.weight.flatten(0, 1), order).to(gate.dtype)
    return combined(grouped_linear(F.silu(gate) * up * weight, output, order), order).view_as(x)


def _at_places(weight: Tensor, order: Order) -> Tensor:
    """(N, K) -> (N K, 1), sorted."""
    return dispatched(weight.flatten()[:, None], order._replace(choices=1))


def routed_by(scores: Tensor, bias: Tensor, count: int, normalise: bool) -> Assignment:
    """What `scores` (B, T, G) come to when each token takes `count` experts."""
    log_sum = scores.logsumexp(-1)
    probability = (scores - log_sum[..., None]).exp()
    chosen = (probability.detach() + bias.to(scores.dtype)).topk(count, -1).indices
    # The softmax over the chosen is the same as dividing by their sum, and also holds where that is too small for a number.
    weight = scores.gather(-1, chosen).softmax(-1) if normalise else probability.gather(-1, chosen)
    return Assignment(chosen, weight, probability, log_sum)


class Moe(Unit):
    """Token-choice experts in a layer's feed-forward."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.moe
        self.experts, self.experts_per_token = config.experts, config.experts_per_token
        self.normalise = config.experts_per_token > 1 if config.normalise is None else config.normalise
        self._bias_rate, self._has_balance, self._has_z = config.bias_rate, config.balance_weight > 0, config.z_weight > 0
        active = config.experts_per_token + config.shared_experts
        width = config.expert_size or -(-preset.model.swiglu_size // (8 * active)) * 8
        self.router = nn.Linear(size, config.experts, bias=False)
        self.gate_up, self.output = Matrices(config.experts, size, width, width), Matrices(config.experts, width, size)
        shared = config.shared_experts * width
        self.shared_gate_up = Joined(size, shared, shared) if shared else None
        self.shared_output = nn.Linear(shared, size, bias=False) if shared else None
        self.register_buffer("bias", torch.zeros(config.experts))  # b
        self.register_buffer("share", torch.full((config.experts,), 1 / config.experts))  # f

    def initialise(self) -> None:
        super().initialise()
        if self.shared_output is not None:
            nn.init.zeros_(self.shared_output.weight)

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def route(self, x: Tensor) -> Assignment:
        """What the router says of `x`, in at least float32: a rounded score would be another expert."""
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(x.dtype, torch.float32)
            scores = F.linear(x.to(exact), self.router.weight.to(exact))
            return routed_by(scores, self.bias, self.experts_per_token, self.normalise)

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        assignment = self.route(x)
        y = moe_parallel(x, assignment, self.gate_up.weight, self.output.weight)
        if self.shared_output is not None:
            gate, up = self.shared_gate_up(x).chunk(2, -1)
            y = y + self.shared_output(F.silu(gate) * up)
        if not self.training:
            return Mixed(y, state)
        return Mixed(y, state, losses=self.losses(assignment, context), stats={"load": self.load(assignment, context)})

    def losses(self, assignment: Assignment, context: Context) -> dict[str, Tensor]:
        """Those that are switched on."""
        losses = {}
        if self._has_balance:
            losses["moe_balance"] = context.mean(self.experts * (assignment.probability @ self.share.to(assignment.probability.dtype)))
        if self._has_z:
            losses["moe_z"] = context.mean(assignment.log_sum.square())
        return losses

    def load(self, assignment: Assignment, context: Context) -> Tensor:
        """(G,): tokens of the text by expert."""
        return context.total(torch.zeros_like(assignment.probability).scatter_(-1, assignment.chosen, 1))

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        load = stats["load"].to(self.share)
        self.share.copy_(load / load.sum().clamp(min=1))
        self.bias.add_(self._bias_rate * (load.mean() - load).sign())
        self.bias.sub_(self.bias.mean())
