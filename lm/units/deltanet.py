"""DeltaNet (Yang et al. 2024, "Parallelizing linear transformers with the delta rule over sequence length"), and with a gate Gated DeltaNet
(Yang, Kautz, Hatamizadeh 2024, "Gated delta networks"): a memory for each head in which a token corrects what its key recalls.

    q, k, v = silu(short convolution (W x));   q, k of length 1;   b_t = sigmoid(W_b x_t)
    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T;   y_t = S_t q_t / sqrt(K)
    a_t = exp(-exp(A) softplus(W_a x_t + c))   with the gate;   a_t = 1 without
    output W_o (norm(y) * silu(W_g x)), normalised by head

The state holds the last inputs of the short convolution, and the memory S of each head, transposed.

Sizes: B batch, T time, D hidden, H heads, K key size, V value size, S = H (2 K + V) streams, W kernel of the short convolution.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.delta_rule import delta_rule
from lm.ops.fused import by_documents, fused_kernel
from lm.ops.short_convolution import remembered, token_convolution
from lm.preset.switches import Preset
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

LENGTH_EPS = 1e-6  # under the root, when vectors are brought to length 1
SLOWEST, FASTEST = 1e-3, 1.6  # decay at first, by head: what the ranges of the paper's own code come to, in nats a token
FUSED_KEY = 256  # the widest key that the fused kernel reads
STRONGEST = 20.0  # exp(20) forgets all within a token; sums of it stay finite


class DeltanetState(NamedTuple):
    """Both in at least float32: what is gathered over many tokens is lost in less."""

    short: Tensor  # (B, S, W - 1), oldest first
    memory: Tensor  # (B, H, K, V)


def deltanet_step(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, for one token: query, key (B, H, K), value (B, H, V), beta, log_decay (B, H or 1), restart (B,) -> (B, H, V), memory."""
    if restart is not None:
        memory = memory.masked_fill(restart[:, None, None, None], 0)
    memory = log_decay.exp()[..., None, None] * memory
    correction = beta[..., None] * (value - (key[..., None, :] @ memory)[..., 0, :])
    memory = memory + key[..., None] * correction[..., None, :]
    return (query[..., None, :] @ memory)[..., 0, :], memory


def deltanet_chunk(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor, context: Context, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """All tokens at once: query, key (B, T, H, K), value (B, T, H, V), beta, log_decay (B, T, H or 1) -> (B, T, H, V), and the memory after them.

    dtype: in which the projections were computed.
    """
    restart = context.restart if context.any_restart else None
    kernel = fused_kernel("fla.ops.gated_delta_rule.chunk_gated_delta_rule", key, dtype) if key.shape[-1] <= FUSED_KEY else None
    if kernel is None:
        return delta_rule(query, key, value, beta, log_decay, memory, restart)
    streams = {"q": query.to(dtype), "k": key.to(dtype), "v": value.to(dtype), "g": log_decay.expand_as(beta), "beta": beta}
    y, memory = by_documents(kernel, streams, memory, restart, context.cu_seqlens)
    return y.to(memory.dtype), memory


class Deltanet(Unit):
    """Linear attention with the delta rule, by default gated."""

    steady = ("kernel",)

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model, config = preset.model, preset.deltanet
        self.heads, self.key_size, self.value_size = model.num_heads, config.key_size or model.head_size, config.value_size or model.head_size
        self.gated, self.norm_eps = config.gated, model.norm_eps
        key_width, value_width = self.heads * self.key_size, self.heads * self.value_size
        self.streams = Joined(model.hidden_size, key_width, key_width, value_width)
        self.kernel = nn.Parameter(torch.empty(self.streams.out_features, config.kernel_size))
        self.beta = nn.Linear(model.hidden_size, self.heads, bias=False)
        if self.gated:
            self.speed = nn.Linear(model.hidden_size, self.heads, bias=False)
            rates = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), self.heads)
            self.log_rate = nn.Parameter(torch.zeros(self.heads))
            self.speed_bias = nn.Parameter(rates.expm1().log())  # softplus gives the rates back
        self.gate = nn.Linear(model.hidden_size, value_width, bias=False) if config.output_gate else None
        self.norm_weight = nn.Parameter(torch.ones(self.value_size))
        self.output = nn.Linear(value_width, model.hidden_size, bias=False)
        self._reset_kernel()

    def initialise(self) -> None:
        super().initialise()
        self._reset_kernel()

    def _reset_kernel(self) -> None:
        """As torch's convolutions begin, and the paper's with them."""
        nn.init.uniform_(self.kernel, -(self.kernel.shape[1] ** -0.5), self.kernel.shape[1] ** -0.5)

    def initial_state(self, batch_size: int) -> DeltanetState:
        weight, (width, kernel_size) = self.output.weight, self.kernel.shape
        exact = torch.promote_types(weight.dtype, torch.float32)
        shapes = (width, kernel_size - 1), (self.heads, self.key_size, self.value_size)
        return DeltanetState(*(weight.new_zeros(batch_size, *shape, dtype=exact) for shape in shapes))

    def forward(self, x: Tensor, state: DeltanetState, context: Context) -> Mixed:
        streams, beta = self.streams(x), self.beta(x)
        speed = self.speed(x) if self.gated else None
        exact = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            query, key, value, short = self._convolved(streams.to(exact), state.short, context)
            beta, log_decay = beta.to(exact).sigmoid(), self._log_decay(speed, beta, exact)
            y, memory = self._read(query, key, value, beta, log_decay, state.memory.to(exact), context, streams.dtype)
            y = F.rms_norm(y, (self.value_size,), self.norm_weight.to(exact), self.norm_eps).flatten(2)
        y = y if self.gate is None else y * F.silu(self.gate(x))
        return Mixed(self.output(y.to(x.dtype)), DeltanetState(short, memory) if context.carry else state)

    def _convolved(self, streams: Tensor, history: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query and key (B, T, H, K), value (B, T, H, V), and the inputs (B, S, W - 1) to remember."""
        position = context.position if context.any_restart else None
        history = history.to(streams.dtype)
        convolved = F.silu(token_convolution(streams, self.kernel.to(streams.dtype), None, history, position))
        key_width = self.heads * self.key_size
        parts = convolved.split((key_width, key_width, self.heads * self.value_size), -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return _of_length(query, self.key_size**-0.5), _of_length(key, 1.0), value, remembered(streams.mT, history, position)

    def _log_decay(self, speed: Tensor | None, beta: Tensor, exact: torch.dtype) -> Tensor:
        """(B, T, H), or zeros (B, T, 1) without the gate."""
        if speed is None:
            return torch.zeros_like(beta[..., :1], dtype=exact)
        return -self.log_rate.to(exact).clamp(max=STRONGEST).exp() * F.softplus(speed.to(exact) + self.speed_bias.to(exact))

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor, context: Context, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """What the memory tells each token (B, T, H, V), and the memory after them; `dtype`: in which the projections were computed."""
        if key.shape[1] == 1:
            restart = context.restart[:, 0] if context.any_restart else None
            y, memory = deltanet_step(query[:, 0], key[:, 0], value[:, 0], beta[:, 0], log_decay[:, 0], memory, restart)
            return y[:, None], memory
        return deltanet_chunk(query, key, value, beta, log_decay, memory, context, dtype)


def _of_length(x: Tensor, length: float) -> Tensor:
    """Vectors (..., K) brought to a length; those near zero stay shorter."""
    return x * (length * (x.square().sum(-1, keepdim=True) + LENGTH_EPS).rsqrt())
