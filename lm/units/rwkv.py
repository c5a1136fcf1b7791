"""RWKV-6 time mix, "Finch" (Peng et al. 2024, "Eagle and Finch"): a memory for each head whose channels forget at a speed that every token sets.

    x^i_t = x_t + (x_{t-1} - x_t) * (mu_i + tanh((x_t + (x_{t-1} - x_t) * mu_x) A_i) B_i)     for i = r, w, k, v, g
    r, k, v = W_r x^r, W_k x^k, W_v x^v;   w = exp(-exp(w_0 + tanh(x^w A) B));   g = silu(W_g x^g)
    y_t = r_t (S_{t-1} + diag(u) k_t v_t^T);   S_t = diag(w_t) S_{t-1} + k_t v_t^T
    output W_o (g * norm(y)), normalised by head

The state holds the input before, and the memory S of each head.

Sizes: B batch, T time, D hidden, H heads, K head size, R rank.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.fused import by_documents, fused_kernel
from lm.ops.linear_attention import decaying_recurrence
from lm.ops.token_shift import token_shift
from lm.preset.switches import Preset
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

STREAMS = 5  # receptance, decay, key, value, gate
NORM_EPS = 64e-5  # of the paper's own code
FASTEST = 8.0  # exp(-exp(8)) is 0 in every dtype, also in its gradient; the logarithm stays finite


class RwkvState(NamedTuple):
    before: Tensor  # (B, D)
    memory: Tensor  # (B, H, K, K), key by value, in at least float32: what slow channels gather is lost in less


def rwkv_step(receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, memory: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, for one token: all (B, H, K) but bonus (H, K), memory (B, H, K, K) and restart (B,) -> (B, H, K), memory."""
    memory = memory.masked_fill(restart[:, None, None, None], 0)
    written = key[..., None] * value[..., None, :]
    y = receptance[..., None, :] @ (memory + bonus[..., None] * written)
    return y[..., 0, :], log_decay.exp()[..., None] * memory + written


def rwkv_chunk(receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, memory: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """All tokens at once: (B, T, H, K) in the dtype of log_decay, and the memory after them."""
    restart = context.restart if context.any_restart else None
    kernel = fused_kernel("fla.ops.rwkv6.chunk_rwkv6", key, key.dtype)
    if kernel is not None:
        streams = {"r": receptance, "k": key, "v": value, "w": log_decay}
        y, memory = by_documents(functools.partial(kernel, u=bonus), streams, memory, restart, context.cu_seqlens)
        return y.to(log_decay.dtype), memory
    receptance, key, value = (x.to(log_decay.dtype) for x in (receptance, key, value))
    return decaying_recurrence(receptance, key, value, log_decay, memory, bonus, restart)


class Rwkv(Unit):
    """RWKV-6 time mix."""

    steady = ("mix_up", "decay_up.")

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, self.heads = preset.model.hidden_size, preset.model.num_heads
        rank = preset.rwkv.mix_rank
        place = torch.arange(size) / max(size - 1, 1)
        # Vectors all, which no weight decay touches. Later channels look at the token before less, and forget faster.
        self.mix_all = nn.Parameter(1 - place)
        self.mix = nn.Parameter((1 - torch.stack([place**0.25, place**0.5, place**0.5, place**0.5, place**0.25])).flatten())
        self.mix_down = Joined(size, *[rank] * STREAMS)
        self.mix_up = nn.Parameter(torch.zeros(STREAMS, rank, size))
        self.decay = nn.Parameter(5 * place**1.35 - 6)
        self.decay_down = nn.Linear(size, preset.rwkv.decay_rank, bias=False)
        self.decay_up = nn.Linear(preset.rwkv.decay_rank, size, bias=False)
        self.bonus = nn.Parameter(0.5 * (1 - place) + 0.1 * (torch.arange(size) % 3 - 1))
        self.receptance, self.key, self.value, self.gate = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.output = nn.Linear(size, size, bias=False)

    def initialise(self) -> None:
        """As every unit; and what the text says of mixing and decay counts for nothing at first."""
        super().initialise()
        nn.init.zeros_(self.mix_up)
        nn.init.zeros_(self.decay_up.weight)

    def initial_state(self, batch_size: int) -> RwkvState:
        weight = self.output.weight
        head_size = len(weight) // self.heads
        exact = torch.promote_types(weight.dtype, torch.float32)
        return RwkvState(weight.new_zeros(batch_size, len(weight)), weight.new_zeros(batch_size, self.heads, head_size, head_size, dtype=exact))

    def forward(self, x: Tensor, state: RwkvState, context: Context) -> Mixed:
        shifted, last = token_shift(x, state.before, context.restart if context.any_restart else None)
        for_receptance, for_decay, for_key, for_value, for_gate = self._streams(x, shifted - x)
        heads = (self.heads, -1)
        receptance, key, value = (
            linear(stream).unflatten(-1, heads) for linear, stream in ((self.receptance, for_receptance), (self.key, for_key), (self.value, for_value))
        )
        speed = self.decay_up(torch.tanh(self.decay_down(for_decay)))
        with torch.autocast(x.device.type, enabled=False):
            y, memory = self._read(receptance, key, value, speed, state.memory, context)
        gated = y * F.silu(self.gate(for_gate))
        return Mixed(self.output(gated.to(x.dtype)), RwkvState(last, memory) if context.carry else state)

    def _streams(self, x: Tensor, change: Tensor) -> list[Tensor]:
        """The inputs of the five projections: between each token and the one before it, as far as the two say."""
        low = torch.tanh(self.mix_down(x + change * self.mix_all)).unflatten(-1, (STREAMS, -1))
        wanted = zip(low.unbind(-2), self.mix_up, self.mix.unflatten(0, (STREAMS, -1)), strict=True)
        return [torch.addcmul(x, change, (lowered @ up + mix).to(x.dtype)) for lowered, up, mix in wanted]

    def _read(self, receptance: Tensor, key: Tensor, value: Tensor, speed: Tensor, memory: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The memory's read-out, normalised by head (B, T, D), and the memory, in at least float32."""
        exact = torch.promote_types(speed.dtype, torch.float32)
        log_decay = -(self.decay.to(exact) + speed.to(exact)).clamp(max=FASTEST).exp()
        bonus = self.bonus.to(exact).unflatten(0, (self.heads, -1))
        y, memory = rwkv_chunk(receptance, key, value, log_decay.unflatten(-1, (self.heads, -1)), bonus, memory.to(exact), context)
        y = F.layer_norm(y, y.shape[-1:], eps=NORM_EPS).flatten(2)
        return y * self.norm_weight.to(exact) + self.norm_bias.to(exact), memory
