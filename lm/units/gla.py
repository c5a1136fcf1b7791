"""Gated linear attention (Yang et al. 2024, "Gated linear attention transformers with hardware-efficient training"): a memory for each head
whose key channels forget at a speed that every token sets.

    q, k, v = W_q x, W_k x, W_v x;   a = sigmoid(B A x + b)^(1 / temperature);   g = silu(W_g x)
    S_t = diag(a_t) S_{t-1} + k_t v_t^T;   y_t = q_t S_t       for each head
    output W_o (g * norm(y)), RMS-normalised by head

The state holds the memory S of each head.

Sizes: B batch, T time, D hidden, H heads, K key, V value (D / H).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.fused import by_documents, fused_kernel
from lm.ops.linear_attention import decaying_recurrence
from lm.preset.switches import Preset
from lm.units.unit import Context, Mixed, Unit


class GlaState(NamedTuple):
    memory: Tensor  # (B, H, K, V), in at least float32: what slow channels gather is lost in less


def gla_step(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, for one token: all (B, H, K) but value (B, H, V), memory (B, H, K, V) and restart (B,) -> (B, H, V), memory."""
    memory = memory.masked_fill(restart[:, None, None, None], 0)
    memory = log_decay.exp()[..., None] * memory + key[..., None] * value[..., None, :]
    return (query[..., None, :] @ memory)[..., 0, :], memory


def gla_chunk(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, memory: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """All tokens at once: (B, T, H, V) in the dtype of log_decay, and the memory after them."""
    restart = context.restart if context.any_restart else None
    kernel = fused_kernel("fla.ops.gla.chunk_gla", key, key.dtype)
    if kernel is not None:
        y, memory = by_documents(kernel, {"q": query, "k": key, "v": value, "g": log_decay}, memory, restart, context.cu_seqlens)
        return y.to(log_decay.dtype), memory
    query, key, value = (each.to(log_decay.dtype) for each in (query, key, value))
    return decaying_recurrence(query, key, value, log_decay, memory, restart=restart)


class Gla(Unit):
    """Gated linear attention."""

    steady = ("decay_up.",)

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.gla
        self.heads, self.temperature, self.eps = preset.model.num_heads, config.decay_temperature, preset.model.norm_eps
        keys = self.heads * (config.key_size or -(-preset.model.head_size // 2))
        self.query, self.key = nn.Linear(size, keys, bias=False), nn.Linear(size, keys, bias=False)
        self.value, self.gate = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.decay_down, self.decay_up = nn.Linear(size, config.decay_rank, bias=False), nn.Linear(config.decay_rank, keys, bias=False)
        self.decay = nn.Parameter(torch.zeros(keys))
        self.norm_weight = nn.Parameter(torch.ones(size))
        self.output = nn.Linear(size, size, bias=False)

    def initial_state(self, batch_size: int) -> GlaState:
        exact = torch.promote_types(self.decay.dtype, torch.float32)
        shape = (batch_size, self.heads, len(self.decay) // self.heads, len(self.norm_weight) // self.heads)
        return GlaState(self.decay.new_zeros(shape, dtype=exact))

    def forward(self, x: Tensor, state: GlaState, context: Context) -> Mixed:
        query, key, value, speed = self.query(x), self.key(x), self.value(x), self.decay_up(self.decay_down(x))
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(x.dtype, torch.float32)
            log_decay = F.logsigmoid(speed.to(exact) + self.decay.to(exact)) / self.temperature
            query, key, value, log_decay = (each.unflatten(-1, (self.heads, -1)) for each in (query, key, value, log_decay))
            y, memory = gla_chunk(query, key, value, log_decay, state.memory.to(exact), context)
            y = F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(2) * self.norm_weight.to(exact)
        gated = y * F.silu(self.gate(x))
        return Mixed(self.output(gated.to(x.dtype)), GlaState(memory) if context.carry else state)
