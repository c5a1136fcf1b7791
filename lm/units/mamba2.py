"""Mamba-2 (Dao and Gu 2024, "Transformers are SSMs"): a state space whose steps, inputs and readings are read from the text; a head forgets as a whole.

    z, (x, B, C), dt = W u;   x, B, C = silu(short convolution of each channel);   dt = softplus(dt + bias)
    S_t = exp(-exp(A) dt_t) S_{t-1} + B_t (dt_t x_t)^T;   y_t = C_t S_t + D x_t       for each head
    output W_o norm(y * silu(z)), RMS-normalised by group

As linear attention C is the query, B the key and dt x the value: the paper's duality, by which text is read in chunks. The heads of a group
share B and C. The state holds the last inputs of the convolution, and the memory S of each head.

Sizes: B batch, T time, D hidden, H heads in G groups, P head size, N state size, K kernel, S = H P + 2 G N streams.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.fused import by_documents, fused_kernel
from lm.ops.linear_attention import scalar_decay_recurrence
from lm.ops.short_convolution import remembered, token_convolution
from lm.preset.switches import Preset
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

FASTEST_RATE = 16.0  # first rates exp(A) are drawn between 1 and this, as in the paper's own code
LARGEST = 1e15  # what is read is kept below, so that its square is finite in float32


class Mamba2State(NamedTuple):
    recent: Tensor  # (B, S, K - 1): inputs of the convolution, oldest first, in at least float32
    memory: Tensor  # (B, H, N, P), in at least float32: what slow heads gather is lost in less


def mamba2_step(query: Tensor, key: Tensor, x: Tensor, step: Tensor, rate: Tensor, skip: Tensor, memory: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, for one token: query, key (B, G, N), x (B, H, P), step (B, H), rate and skip (H,), memory (B, H, N, P), restart (B,) -> (B, H, P)."""
    query, key = (each.repeat_interleave(x.shape[1] // each.shape[1], 1) for each in (query, key))
    memory = memory.masked_fill(restart[:, None, None, None], 0)
    memory = (-rate * step).exp()[..., None, None] * memory + key[..., None] * (step[..., None] * x)[..., None, :]
    return (query[..., None, :] @ memory)[..., 0, :] + skip[:, None] * x, memory


def mamba2_chunk(
    query: Tensor,
    key: Tensor,
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    skip: Tensor,
    memory: Tensor,
    context: Context,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """All tokens at once: (B, T, H, P), and the memory after them. dtype: in which the projections were computed."""
    restart = context.restart if context.any_restart else None
    value, log_decay = x * step[..., None], -rate * step
    kernel = fused_kernel("fla.ops.simple_gla.chunk_simple_gla", key, dtype)
    if kernel is None:
        y, memory = scalar_decay_recurrence(query, key, value, log_decay, memory, restart)
    else:
        query, key = (each.to(dtype).repeat_interleave(x.shape[2] // each.shape[2], 2) for each in (query, key))
        y, memory = by_documents(kernel, {"q": query, "k": key, "v": value.to(dtype), "g": log_decay}, memory, restart, context.cu_seqlens)
    return torch.addcmul(y.to(x.dtype), skip[:, None], x), memory


class Mamba2(Unit):
    """The state space with its convolution, gate and norm."""

    steady = ("kernel",)

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.mamba2
        channels = config.expand * size
        self.heads, self.groups, self.states = channels // (config.head_size or preset.model.head_size), config.groups, config.state_size
        self._first_steps, self.eps = (math.log(config.dt_min), math.log(config.dt_max)), preset.model.norm_eps
        streams = channels + 2 * self.groups * self.states
        self.widths = (channels, streams, self.heads)
        self.input = Joined(size, channels, channels, *[self.groups * self.states] * 2, self.heads)
        self.kernel, self.kernel_bias = nn.Parameter(torch.zeros(streams, config.kernel_size)), nn.Parameter(torch.zeros(streams))
        self.log_rate, self.step_bias, self.skip = (nn.Parameter(torch.zeros(self.heads)) for _ in range(3))
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.output = nn.Linear(channels, size, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """The paper's: rates uniform, steps uniform in their logarithm, the convolution as torch begins one."""
        super().initialise()
        nn.init.uniform_(self.kernel, -(self.kernel.shape[1] ** -0.5), self.kernel.shape[1] ** -0.5)
        self.log_rate.uniform_(1, FASTEST_RATE).log_()
        self.step_bias.uniform_(*self._first_steps).exp_()
        self.step_bias.add_(torch.log(-torch.expm1(-self.step_bias)))  # softplus of it is the step
        nn.init.ones_(self.skip)

    def initial_state(self, batch_size: int) -> Mamba2State:
        streams, kernel_size = self.kernel.shape
        new = self.kernel.new_zeros
        exact = torch.promote_types(self.kernel.dtype, torch.float32)
        recent = new(batch_size, streams, kernel_size - 1, dtype=exact)
        return Mamba2State(recent, new(batch_size, self.heads, self.states, self.widths[0] // self.heads, dtype=exact))

    def forward(self, x: Tensor, state: Mamba2State, context: Context) -> Mixed:
        projected = self.input(x)
        gate, streams, step = projected.split(self.widths, -1)
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(x.dtype, torch.float32)
            gate, streams, step = gate.to(exact), streams.to(exact), step.to(exact)
            recent, memory = state.recent.to(exact), state.memory.to(exact)
            position = context.position if context.any_restart else None
            mixed = F.silu(token_convolution(streams, self.kernel.to(exact), self.kernel_bias.to(exact), recent, position))
            y, memory = self._read(mixed, step, memory, context, projected.dtype)
            y = self._normed(y * F.silu(gate))
        after = Mamba2State(remembered(streams.mT, recent, position), memory) if context.carry else state
        return Mixed(self.output(y.to(x.dtype)), after)

    def _read(self, mixed: Tensor, step: Tensor, memory: Tensor, context: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the state space reads (B, T, H P), and its memory."""
        shared = self.groups * self.states
        values, key, query = mixed.split((self.widths[0], shared, shared), -1)
        key, query = (each.unflatten(-1, (self.groups, -1)) for each in (key, query))
        rate, bias, skip = (each.to(mixed.dtype) for each in (self.log_rate.exp(), self.step_bias, self.skip))
        y, memory = mamba2_chunk(query, key, values.unflatten(-1, (self.heads, -1)), F.softplus(step + bias), rate, skip, memory, context, dtype)
        return y.flatten(2), memory

    def _normed(self, y: Tensor) -> Tensor:
        grouped = y.clamp(-LARGEST, LARGEST).unflatten(-1, (self.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(2) * self.norm_weight.to(y.dtype)
