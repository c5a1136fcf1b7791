"""Linear attention whose memory decays channel by channel, in chunks (Yang et al. 2024, "Gated linear attention").

    S_t = diag(w_t) S_{t-1} + k_t v_t^T
    y_t = q_t (S_{t-1} + diag(u) k_t v_t^T)   with a bonus u (RWKV-6)
    y_t = q_t S_t                             without
    S_t = a_t S_{t-1} + k_t v_t^T;   y_t = q_t S_t   where all channels of a head forget alike (Dao, Gu 2024, "Transformers are SSMs")

Between chunks the memory is carried; inside a chunk tokens meet in pairs, j before i, with the decay of all tokens between them. A
product of q_i / decay and k_j * decay would overflow. So a chunk is halved again and again: tokens of a right half meet those of the
left half with exp(sum from the middle up to i) on one side and exp(sum from j to the middle) on the other. Both are at most 1, and the
sums of logarithms are only ever added up, never subtracted, so that no decay is too strong and nothing cancels.

Sizes: B batch, T time, H heads in G groups, K key, V value, N chunks of C tokens (a power of two).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32  # on the CPU the fastest of 16, 32, 64 and 128, forward and backward
SCALAR_CHUNK = 64  # likewise, where all channels of a head forget alike


def decaying_recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    memory: Tensor,
    bonus: Tensor | None = None,
    restart: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """What every token reads (B, T, H, V), and the memory after the last one (B, H, K, V).

    query, key, log_decay (B, T, H, K), at most 0; value (B, T, H, V); memory (B, H, K, V); bonus (H, K); restart (B, T): the memory is
    forgotten before this token. All of one dtype. Can be differentiated once.
    """
    batch, time = query.shape[:2]
    if not time:
        return value, memory
    chunk = min(chunk, 1 << (time - 1).bit_length())
    query, key, value, log_decay = (_chunked(x, chunk) for x in (query, key, value, log_decay))
    scores, begun, ended, total = _PairProducts.apply(query, key, log_decay, bonus is None)
    pairs = _Pairs(scores, begun, ended, total.exp())
    if restart is not None:
        pairs = _forgetful(pairs, _chunked(restart, chunk))
    memories, memory = _carried(memory, pairs.decay[..., None], pairs.key.mT @ value)
    y = pairs.scores @ value + pairs.query @ memories
    now = query * key if bonus is None else query * key * bonus[:, None]
    y = y + now.sum(-1, keepdim=True) * value
    return y.transpose(2, 3).flatten(1, 2)[:, :time], memory


def scalar_decay_recurrence(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, memory: Tensor, restart: Tensor | None = None, chunk: int = SCALAR_CHUNK
) -> tuple[Tensor, Tensor]:
    """The same without a bonus, where a head has one decay and the heads of a group share query and key.

    query, key (B, T, G, K); value (B, T, H, V); log_decay (B, T, H), at most 0; memory (B, H, K, V); restart (B, T). All of one dtype.
    """
    time, groups = query.shape[1:3]
    if not time:
        return value, memory
    chunk = min(chunk, 1 << (time - 1).bit_length())
    query, key, heads, log_decay = (_chunked(x, chunk) for x in (query, key, value, log_decay[..., None]))
    pairs = _Pairs(*_PairDecays.apply(log_decay))
    if restart is not None:
        pairs = _forgetful(pairs, _chunked(restart, chunk))
    scores = (query @ key.mT)[:, :, :, None] * pairs.scores.unflatten(2, (groups, -1))
    # The values of a group stand side by side: one large product with its key, or its query, for many small ones.
    decay = _side_by_side(pairs.decay[..., None].expand(-1, -1, -1, -1, value.shape[-1]), groups)
    written = key.mT @ _side_by_side(heads * pairs.key, groups)
    memories, memory = _carried(_side_by_side(memory, groups), decay, written)
    y = (scores.flatten(2, 3) @ heads).transpose(2, 3)
    y = torch.addcmul(y, _apart(query @ memories, heads.shape[2]), pairs.query.transpose(2, 3))
    return y.flatten(1, 2)[:, :time], _apart(memory, heads.shape[2]).transpose(1, 2).contiguous()


def _side_by_side(x: Tensor, groups: int) -> Tensor:
    """(..., H, L, V) -> (..., G, L, H / G * V)."""
    return x.unflatten(-3, (groups, -1)).transpose(-3, -2).flatten(-2)


def _apart(x: Tensor, heads: int) -> Tensor:
    """(..., G, L, H / G * V) -> (..., L, H, V)."""
    return x.transpose(-3, -2).flatten(-2).unflatten(-1, (heads, -1))


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, ...) -> (B, N, H, C, ...), where T is filled up with tokens that write nothing and forget nothing."""
    short = -x.shape[1] % chunk
    if short:
        x = torch.cat([x, x.new_zeros(len(x), short, *x.shape[2:])], 1)
    x = x.unflatten(1, (-1, chunk))
    return x.transpose(2, 3).contiguous() if x.ndim > 3 else x


def _carried(memory: Tensor, decay: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """The memory before each chunk (B, N, H, K, V) and after the last, from decay (B, N, H, K or 1, V or 1) and written (B, N, H, K, V)."""
    before = []
    for kept, new in zip(decay.unbind(1), written.unbind(1), strict=True):
        before.append(memory)
        memory = torch.addcmul(new, kept, memory)
    return torch.stack(before, 1), memory


class _Pairs(NamedTuple):
    """What a chunk needs to be read. Of scalar decays: the decays alone, with K of 1."""

    scores: Tensor  # (B, N, H, C, C): of j on i, for j < i
    query: Tensor  # (B, N, H, C, K): decayed since the chunk began
    key: Tensor  # (B, N, H, C, K): decayed until the chunk ends
    decay: Tensor  # (B, N, H, K): over the whole chunk


def _forgetful(pairs: _Pairs, restart: Tensor) -> _Pairs:
    """Nothing passes from one document to another: restart (B, N, C)."""
    part = restart.cumsum(-1)
    other = part[..., None] != part[..., None, :]
    begun, ended = part > 0, part != part[..., -1:]
    return _Pairs(
        pairs.scores.masked_fill(other[:, :, None], 0),
        pairs.query.masked_fill(begun[:, :, None, :, None], 0),
        pairs.key.masked_fill(ended[:, :, None, :, None], 0),
        pairs.decay.masked_fill(begun[:, :, None, -1:], 0),
    )


class _PairProducts(torch.autograd.Function):
    """The fields of _Pairs, the decay as its logarithm. Products of the levels are made anew in the backward pass: they are larger than all that came in."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, log_decay: Tensor, inclusive: bool) -> tuple[Tensor, ...]:
        ctx.save_for_backward(query, key, log_decay)
        ctx.inclusive = inclusive
        scores = query.new_zeros(*query.shape[:-1], query.shape[-2])
        sums = _Sums(log_decay, inclusive)
        for half in _halves(query.shape[-2]):
            right, left = sums.decays(half)
            _corner(scores, half).copy_((_parts(query, half)[..., 1, :, :] * right) @ (_parts(key, half)[..., 0, :, :] * left).mT)
            sums.double(half)
        return scores, query * sums.since.exp_(), key * sums.until.exp_(), sums.total[..., 0, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor, grad_begun: Tensor, grad_ended: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        query, key, log_decay = ctx.saved_tensors
        sums, decays = _Sums(log_decay, ctx.inclusive), []
        for half in _halves(query.shape[-2]):
            decays.append(sums.decays(half))
            sums.double(half)
        grad_query, grad_key = grad_begun * sums.since.exp_(), grad_ended * sums.until.exp_()
        # The gradient of an exponent is the product's own gradient times the product.
        grad_since, grad_until, grad_total = query * grad_query, key * grad_key, grad_total[..., None, :]
        for half in reversed(_halves(query.shape[-2])):
            right, left = decays.pop()
            sides = [_parts(x, half) for x in (query, grad_query, grad_since, key, grad_key, grad_until)]
            query_r, grad_query_r, grad_since_r = (side[..., 1, :, :] for side in sides[:3])
            key_l, grad_key_l, grad_until_l = (side[..., 0, :, :] for side in sides[3:])
            # First what the doubling added to the sums, then what the pairs of this level add to their gradients.
            grad_total = _halved(grad_total, grad_since_r, grad_until_l)
            corner = _corner(grad_scores, half)
            grad_right, grad_left = corner @ (key_l * left) * right, corner.mT @ (query_r * right) * left
            grad_query_r += grad_right
            grad_key_l += grad_left
            grad_since_r += query_r * grad_right
            grad_until_l += key_l * grad_left
        return grad_query, grad_key, grad_total + grad_since if ctx.inclusive else grad_total, None


class _PairDecays(torch.autograd.Function):
    """The fields of _Pairs of scalar decays (B, N, H, C, 1), where a token sees itself."""

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor) -> tuple[Tensor, ...]:
        chunk = log_decay.shape[-2]
        scores = torch.eye(chunk, dtype=log_decay.dtype, device=log_decay.device).expand(*log_decay.shape[:-1], chunk).clone()
        sums = _Sums(log_decay, inclusive=True)
        for half in _halves(chunk):
            right, left = sums.decays(half)
            _corner(scores, half).copy_(right * left.mT)
            sums.double(half)
        decays = scores, sums.since.exp_(), sums.until.exp_(), sums.total[..., 0, :].exp()
        ctx.save_for_backward(*decays)
        return decays

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # The gradient of an exponent is the decay's own gradient times the decay.
        grad_scores, grad_since, grad_until, grad_total = (gradient * decay for gradient, decay in zip(gradients, ctx.saved_tensors, strict=True))
        grad_total = grad_total[..., None, :]
        for half in reversed(_halves(grad_scores.shape[-1])):
            grad_since_r, grad_until_l, corner = _parts(grad_since, half)[..., 1, :, :], _parts(grad_until, half)[..., 0, :, :], _corner(grad_scores, half)
            grad_total = _halved(grad_total, grad_since_r, grad_until_l)
            grad_since_r += corner.sum(-1, keepdim=True)
            grad_until_l += corner.sum(-2)[..., None]
        return grad_total + grad_since


def _halved(grad_total: Tensor, grad_since_r: Tensor, grad_until_l: Tensor) -> Tensor:
    """The gradient of sums over blocks, given that over blocks of twice as many, and those of the sums that the doubling added it to."""
    return (grad_total[..., None, :] + torch.stack([grad_since_r.sum(-2), grad_until_l.sum(-2)], -2)).flatten(-3, -2)


class _Sums:
    """Sums of log decays within blocks that double: since a block began, until it ends, and over the whole of it."""

    def __init__(self, log_decay: Tensor, inclusive: bool) -> None:
        self.since = log_decay.clone() if inclusive else torch.zeros_like(log_decay)  # (..., C, K): up to this token, with it or not
        self.until = torch.zeros_like(log_decay)  # (..., C, K): after this token
        self.total = log_decay  # (..., blocks, K)

    def decays(self, half: int) -> tuple[Tensor, Tensor]:
        """From the middle to a token of the right half, and from a token of the left half to the middle: each (..., pairs, half, K)."""
        return _parts(self.since, half)[..., 1, :, :].exp(), _parts(self.until, half)[..., 0, :, :].exp()

    def double(self, half: int) -> None:
        """From blocks of `half` tokens to blocks of twice as many."""
        total = self.total.unflatten(-2, (-1, 2))
        _parts(self.since, half)[..., 1, :, :] += total[..., :1, :]
        _parts(self.until, half)[..., 0, :, :] += total[..., 1:, :]
        self.total = total.sum(-2)


def _halves(chunk: int) -> list[int]:
    return [1 << level for level in range(chunk.bit_length() - 1)]


def _parts(x: Tensor, half: int) -> Tensor:
    """A view (..., pairs, 2, half, K) of (..., C, K)."""
    return x.unflatten(-2, (-1, 2, half))


def _corner(scores: Tensor, half: int) -> Tensor:
    """A view (..., pairs, half, half) of (..., C, C): right halves by their left halves."""
    pairs = scores.shape[-1] // (2 * half)
    blocks = scores.unflatten(-1, (pairs, 2, half)).unflatten(-4, (pairs, 2, half))
    return blocks[..., 1, :, :, 0, :].diagonal(0, -4, -2).movedim(-1, -3)
