"""The delta rule with a decaying memory, in chunks (Yang et al. 2024, "Parallelizing linear transformers with the delta rule over sequence length";
Yang, Kautz, Hatamizadeh 2024, "Gated delta networks").

    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,   y_t = S_t q_t,   a_t = exp(log_decay_t)

A token writes what its key does not yet recall: u_t = b_t (v_t - a_t S_{t-1} k_t). Within a chunk that begins with the memory S, where D_ij is
the decay of the tokens after j up to i and d_i that of all up to i,

    u_i = b_i (v_i - d_i S k_i - sum_{j < i} D_ij (k_i . k_j) u_j)

is a triangular system: with T the inverse of I + diag(b) (D * K K^T) below the diagonal, u = T diag(b) V - (T diag(b d) K) S. All decays are
exponentials of sums of what is at most 0, each added up from its own first token: nothing overflows, nothing cancels. The entries of T are
overlaps of keys through products of contractions, and stay below 1.

Sizes: B batch, T time, H heads, K key, V value, N chunks of C tokens, M = B * H.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32  # on the CPU the fastest of 16, 32, 64 and 128, forward and backward


def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """What every token reads (B, T, H, V), and the memory after the last one (B, H, K, V), S transposed.

    query, key (B, T, H, K), keys at most of length 1; value (B, T, H, V); beta (B, T, H), 0 to 1; log_decay (B, T, H), or (B, T, 1) for all
    heads alike, at most 0; restart (B, T): the memory is forgotten before this token. All of one dtype. Can be differentiated once.
    """
    batch, time, heads = beta.shape
    if not time:
        return value, memory
    chunk = min(chunk, 1 << (time - 1).bit_length())
    query, key, value, beta, log_decay = (_chunked(x, chunk) for x in (query, key, value, beta[..., None], log_decay[..., None]))
    decays = _decays(log_decay, None if restart is None else _chunked(restart[:, :, None, None], chunk)[..., 0])
    inverse = _Inverse.apply(key @ key.mT * (decays.pair * beta)) * beta.mT
    wanted, recalled = inverse @ value, (inverse * decays.begun.mT) @ key
    by_chunk = (decays.total.expand(-1, batch, heads, 1, 1), recalled, key * decays.ended, wanted)
    memories, written, memory = _Carried.apply(memory.flatten(0, 1), *(x.flatten(1, 2) for x in by_chunk))
    memories, written = (x.unflatten(1, (batch, heads)) for x in (memories, written))
    y = (query @ key.mT * decays.pair) @ written + (query * decays.begun) @ memories
    return y.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :time], memory.unflatten(0, (batch, heads))


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, ...) -> (N, B, H, C, ...), where T is filled up with tokens that write nothing and forget nothing."""
    short = -x.shape[1] % chunk
    if short:
        x = torch.cat([x, x.new_zeros(len(x), short, *x.shape[2:])], 1)
    return x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4).contiguous()


class _Decays(NamedTuple):
    """What remains of the memory and of what was written, in a chunk."""

    pair: Tensor  # (N, B, H, C, C): of what j wrote, when i reads, for j <= i; else 0
    begun: Tensor  # (N, B, H, C, 1): of the memory before the chunk, when i reads
    ended: Tensor  # (N, B, H, C, 1): of what i wrote, at the end
    total: Tensor  # (N, B, H, 1, 1): of the memory before the chunk, at the end


def _decays(log_decay: Tensor, restart: Tensor | None) -> _Decays:
    """From log_decay (N, B, H, C, 1) and restart (N, B, 1, C)."""
    chunk = log_decay.shape[-2]
    pair = log_decay.expand(*log_decay.shape[:-1], chunk).tril(-1).cumsum(-2).exp().tril()
    begun = log_decay.cumsum(-2).exp()
    if restart is not None:
        part = restart.cumsum(-1)
        pair = pair.masked_fill(part[..., None] != part[..., None, :], 0)
        begun = begun.masked_fill(part[..., None] > 0, 0)
    return _Decays(pair, begun, pair[..., -1:, :].mT, begun[..., -1:, :])


class _Inverse(torch.autograd.Function):
    """(I + lower)^-1 of the part below the diagonal of (..., C, C). A triangular solve for the inverse takes a fraction of one for all right sides."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return (-inverse.mT @ grad @ inverse.mT).tril_(-1)


class _Carried(torch.autograd.Function):
    """The memory before each chunk (N, M, K, V), what tokens write (N, M, C, V), and the memory after the last chunk.

    From the memory (M, K, V) before the first; of each chunk: its decay (N, M, 1, 1), keys through which tokens see the memory before it and
    keys under which they write (N, M, C, K), and what they would write if that memory were empty (N, M, C, V).
    """

    @staticmethod
    def forward(ctx: Any, memory: Tensor, decay: Tensor, recalled: Tensor, key: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        memories, written = memory.new_empty(len(decay) + 1, *memory.shape), torch.empty_like(wanted)
        memories[0] = memory
        for kept, seen, under, new, before, after, found in zip(decay, recalled, key.mT, wanted, memories[:-1], memories[1:], written, strict=True):
            torch.baddbmm(new, seen, before, alpha=-1, out=found)
            torch.baddbmm(kept * before, under, found, out=after)
        ctx.save_for_backward(decay, recalled, key, memories, written)
        return memories[:-1], written, memories[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_memories: Tensor, grad_written: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        decay, recalled, key, memories, written = ctx.saved_tensors
        grads, grad_wanted = torch.empty_like(memories), torch.empty_like(grad_written)
        grads[-1] = grad_last
        steps = zip(decay, recalled.mT, key, grad_memories, grad_written, grads[:-1], grads[1:], grad_wanted, strict=True)
        for kept, seen, under, grad_read, grad_found, before, after, new in reversed(list(steps)):
            torch.baddbmm(grad_found, under, after, out=new)
            torch.baddbmm(torch.addcmul(grad_read, kept, after), seen, new, alpha=-1, out=before)
        grad_decay = None
        if ctx.needs_input_grad[1]:
            flat = decay.shape[0] * decay.shape[1], -1
            grad_decay = (grads[1:].reshape(*flat)[:, None] @ memories[:-1].reshape(*flat)[..., None]).view_as(decay)
        return grads[0].clone(), grad_decay, -grad_wanted @ memories[:-1].mT, written @ grads[1:].mT, grad_wanted
