"""The linear recurrence with a constant decay for each channel, in parallel over time and at any length.

    h_t = a h_{t-1} + b_t,    and h_t = b_t where a restart stands

Time is cut into chunks of CHUNK tokens. A loop of CHUNK steps runs through all chunks at once, each from zero; the ends of the chunks
obey the same recurrence with decay a^CHUNK, so they are scanned in the same way; then each chunk gets what was carried to it, times
a^1 ... a^CHUNK. The work is linear in T. Powers are exp(k log a): nothing is multiplied up, and nothing divided by what has decayed.
Measured on a CPU, T 65,536 and 32 complex channels: 20 ms so, 33 to 53 with the triangle of powers as a matrix product, 200 by doubling.

The gradient is the same recurrence from the end, and needs only h:
    s_t = b'_t + conj(a) s_{t+1},    b gets s_t,    a gets sum_t s_t conj(h_{t-1})

Sizes: B batch, T time, N channels, C chunks, L tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16


def decay_scan(log_decay: Tensor, inputs: Tensor, start: Tensor, restart: Tensor | None = None) -> Tensor:
    """All h_t: log a (N,), b (B, T, N), h before the first (B, N), restart (B, T) bool -> (B, T, N). Real or complex.

    `log_decay` may be of a higher precision than the rest: powers are taken in it. Can be differentiated once.
    """
    return _DecayScan.apply(log_decay, inputs, start, restart)


class _DecayScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_decay: Tensor, inputs: Tensor, start: Tensor, restart: Tensor | None) -> Tensor:
        hidden = _scan(log_decay, inputs, start, restart)
        ctx.save_for_backward(log_decay, hidden, start, restart)
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:
        log_decay, hidden, start, restart = ctx.saved_tensors
        if not hidden.shape[1]:
            return torch.zeros_like(log_decay), grad_hidden, torch.zeros_like(start), None
        cut = None if restart is None else restart.roll(-1, 1).flip(1)  # what a restart forgets gets nothing from what follows
        grad_inputs = _scan(log_decay.conj(), grad_hidden.flip(1), torch.zeros_like(start), cut).flip(1)
        # Of a h_{t-1}: for the first token it came from the start.
        first, later = grad_inputs[:, 0], grad_inputs[:, 1:]
        if restart is not None:
            first, later = first.masked_fill(restart[:, :1], 0), later.masked_fill(restart[:, 1:, None], 0)
        grad_decay = (first * start.conj()).sum(0) + (later * hidden[:, :-1].conj()).sum((0, 1))
        decay = log_decay.exp().conj()
        return grad_decay * decay, grad_inputs, first * decay.to(first.dtype), None


def _scan(log_decay: Tensor, inputs: Tensor, start: Tensor, restart: Tensor | None) -> Tensor:
    """`decay_scan` without its gradient; where a chunk is enough, it is the loop itself."""
    batch, time, channels = inputs.shape
    if time <= CHUNK:
        return _loop(log_decay, inputs[:, None], start[:, None], None if restart is None else restart[:, None])[:, 0]
    chunks = -(-time // CHUNK)
    missing = chunks * CHUNK - time
    parts = F.pad(inputs, (0, 0, 0, missing)).view(batch, chunks, CHUNK, channels) if missing else inputs.view(batch, chunks, CHUNK, channels)
    fresh = None if restart is None else F.pad(restart, (0, missing)).view(batch, chunks, CHUNK)
    hidden = _loop(log_decay, parts, torch.zeros_like(parts[:, :, 0]), fresh)
    ends = _scan(log_decay * CHUNK, hidden[:, :, -1], start, None if fresh is None else fresh.any(2))
    carried = torch.cat([start[:, None], ends[:, :-1]], 1)[:, :, None]
    if fresh is not None:
        carried = carried.masked_fill(fresh.cummax(2).values[..., None], 0)
    steps = torch.arange(1, CHUNK + 1, device=inputs.device)
    powers = (steps[:, None] * log_decay).exp().to(inputs.dtype)
    return hidden.addcmul_(powers, carried).view(batch, -1, channels)[:, :time]


def _loop(log_decay: Tensor, parts: Tensor, start: Tensor, fresh: Tensor | None) -> Tensor:
    """Step by step through `parts` (B, C, L, N), all chunks at once, each from its `start` (B, C, N)."""
    decay, now, hidden = log_decay.exp().to(parts.dtype), start, torch.empty_like(parts)
    for step in range(parts.shape[2]):
        before = now if fresh is None else now.masked_fill(fresh[:, :, step, None], 0)
        now = torch.addcmul(parts[:, :, step], decay, before)
        hidden[:, :, step] = now
    return hidden
