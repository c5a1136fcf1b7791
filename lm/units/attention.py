"""Attention over all earlier tokens of the document (Vaswani et al. 2017), with grouped queries (Ainslie et al. 2023), rotary
positions (Su et al. 2021) and normalised queries and keys (Henry et al. 2020).

    y_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

The state holds the keys and values of the document so far, right-aligned: row b has its newest length[b] slots filled.

Sizes: B batch, T time, D hidden, H heads, G key and value heads, K head size, S slots of the state.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.fused import installed
from lm.ops.rotary import Rotary, rotated
from lm.preset.switches import Preset
from lm.units.head_norm import head_norm
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

BLOCK, TILE, SHORT = 128, 32, 512  # attend_by_blocks: queries at a time, what texts are filled up to, and the longest
VALUE = "attention.value"  # in Context.shared: the values (B, G, T, K) of the first attention, where others mix them into theirs


class AttentionState(NamedTuple):
    key: Tensor  # (B, G, S, K)
    value: Tensor  # (B, G, S, K)
    length: Tensor  # (B,) int64

    @classmethod
    def empty(cls, like: Tensor, batch_size: int, kv_heads: int, head_size: int) -> "AttentionState":
        """Nothing read yet; of the dtype and on the device of `like`."""
        key = like.new_zeros(batch_size, kv_heads, 0, head_size)
        return cls(key, key.clone(), torch.zeros(batch_size, dtype=torch.int64, device=like.device))


def attention_step(query: Tensor, key: Tensor, value: Tensor, state: AttentionState, restart: Tensor) -> tuple[Tensor, AttentionState]:
    """The definition, for one token: query (B, H, 1, K), key and value (B, G, 1, K), restart (B,) -> (B, H, 1, K)."""
    length = torch.where(restart, 0, state.length) + 1
    keys, values = torch.cat([state.key, key], 2), torch.cat([state.value, value], 2)
    group = query.shape[1] // key.shape[1]
    scores = query @ keys.repeat_interleave(group, 1).mT / query.shape[-1] ** 0.5
    forgotten = torch.arange(keys.shape[2], 0, -1, device=key.device) > length[:, None, None, None]
    weights = scores.masked_fill(forgotten, -torch.inf).softmax(-1)
    return weights @ values.repeat_interleave(group, 1), AttentionState(keys, values, length)


def attention_parallel(query: Tensor, key: Tensor, value: Tensor, state: AttentionState, context: Context) -> tuple[Tensor, AttentionState]:
    """All tokens at once: query (B, H, T, K), key and value (B, G, T, K) -> (B, H, T, K)."""
    seen = seen_by(key, value, state, context)
    return attend_seen(query, seen, context), grown(seen, state, context)


class Seen(NamedTuple):
    """What the tokens of a piece may attend to."""

    key: Tensor  # (B, G, S + T, K)
    value: Tensor  # (B, G, S + T, K)
    mask: Tensor | None  # (B, 1, T, S + T) bool; None from a fresh start, where a faster form needs none


def seen_by(key: Tensor, value: Tensor, state: AttentionState, context: Context) -> Seen:
    """The state, then the new key and value (B, G, T, K)."""
    slots = state.key.shape[2]
    if not slots:
        fast = not context.any_restart or key.device.type == "cpu" or documents_kernel(value) is not None
        return Seen(key, value, None if fast else _mask(state, context))
    keys, values = torch.cat([state.key.to(key.dtype), key], 2), torch.cat([state.value.to(value.dtype), value], 2)
    return Seen(keys, values, _mask(state, context))


def attend_seen(query: Tensor, seen: Seen, context: Context) -> Tensor:
    """query (B, H, T, K) -> (B, H, T, K)."""
    if not query.shape[2]:
        return query
    if seen.mask is not None:
        return F.scaled_dot_product_attention(query, seen.key, seen.value, attn_mask=seen.mask, enable_gqa=query.shape[1] != seen.key.shape[1])
    if not context.any_restart:
        return attend(query, seen.key, seen.value)
    kernel = documents_kernel(seen.value)
    if kernel is not None:
        return attend_at_once(query, seen.key, seen.value, context.cu_seqlens, kernel)
    return attend_by_document(query, seen.key, seen.value, context.cu_seqlens, attend)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, from a fresh start."""
    if value.dtype == torch.bfloat16 and value.device.type == "cpu" and 0 < query.shape[2] <= SHORT:
        return attend_by_blocks(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])


def attend_by_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, BLOCK queries at a time and all that they may see, in whole products: processors with bfloat16 take them 1.5 to 2.4
    times as fast as torch's loop over small tiles, at 512 and at 64 tokens. The weights, half of (B, H, T, T), are kept for the gradient, so that it is
    for short texts. Scores are rounded to bfloat16 before the softmax, which torch's loop does not: where they are as large as 63, gradients to the
    queries are off by 3.5 % instead of 1.3 %. Texts are filled up to whole TILEs, which nothing before them sees: a product of a new shape is
    compiled first, and there are as many shapes as lengths."""
    (batch, heads, time, size), read = query.shape, []
    shared = (each[:, :, None].expand(-1, -1, heads // each.shape[1], -1, -1) for each in (query, key, value))
    flat_query, flat_key, flat_value = (F.pad(each.flatten(0, 2), (0, 0, 0, -time % TILE)) for each in shared)
    for start in range(0, flat_query.shape[1], BLOCK):
        rows = flat_query[:, start : start + BLOCK]
        end = start + rows.shape[1]
        mask = rows.new_full((end - start, end), -torch.inf).triu(1 + start)
        weights = torch.baddbmm(mask, rows, flat_key[:, :end].mT, alpha=size**-0.5).softmax(-1)
        read.append(weights.to(value.dtype) @ flat_value[:, :end])
    return torch.cat(read, 1)[:, :time].unflatten(0, (batch, heads))


def attend_by_document(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Each document by itself: the work is the sum of squared lengths, not the square of the row."""
    batch, _, time, _ = query.shape
    lengths = cu_seqlens.diff().tolist()
    pieces = zip(*(tensor.transpose(1, 2).flatten(0, 1).split(lengths) for tensor in (query, key, value)), strict=True)
    read = [attend(*(piece.transpose(0, 1)[None] for piece in document))[0].transpose(0, 1) for document in pieces]
    return torch.cat(read).unflatten(0, (batch, time)).transpose(1, 2)


def documents_kernel(value: Tensor) -> Callable[..., Tensor] | None:
    """torch's flash attention over documents that stand one behind the other, where it is for values like these (B, G, T, K)."""
    fits = value.dtype in (torch.bfloat16, torch.float16) and value.shape[-1] % 8 == 0 and value.shape[-1] <= 256
    return installed("torch.nn.attention.varlen.varlen_attn") if fits and value.device.type == "cuda" else None


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
    """Each document by itself, all of them in one call: the row's mask is never made."""
    batch, heads, time, _ = query.shape
    repeats = heads // key.shape[1]
    tokens = (tensor.to(value.dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # autocast knows nothing of the kernel
    flat_query, flat_key, flat_value = (each if each.shape[1] == heads else each.repeat_interleave(repeats, 1) for each in tokens)
    y = kernel(flat_query, flat_key, flat_value, cu_seqlens, cu_seqlens, time, time, window_size=(-1, 0))
    return y.unflatten(0, (batch, time)).transpose(1, 2)


def _mask(state: AttentionState, context: Context) -> Tensor:
    """A token sees the tokens of its own document up to itself, and the filled slots of the state while no document began."""
    slots, (batch, time) = state.key.shape[2], context.position.shape
    filled = (torch.arange(slots, 0, -1, device=state.length.device) <= state.length[:, None])[:, None].expand(-1, time, -1)
    causal = torch.ones(time, time, dtype=torch.bool, device=state.length.device).tril().expand(batch, -1, -1)
    if context.any_restart:
        part = context.restart.cumsum(1)
        filled, causal = filled & (part == 0)[:, :, None], causal & (part[:, :, None] == part[:, None])
    return torch.cat([filled, causal], -1)[:, None]


def grown(seen: Seen, state: AttentionState, context: Context) -> AttentionState:
    """The state after these tokens; slots that no row needs any more are left behind."""
    time = context.position.shape[1]
    if not context.carry or not time:
        return state
    length, needed = state.length + time, seen.key.shape[2]
    if context.any_restart:
        length = torch.minimum(context.position[:, -1] + 1, length)
        needed = int(length.max())
    if needed == seen.key.shape[2] > time:  # joined just now, so that nothing else holds them
        return AttentionState(seen.key, seen.value, length)
    return AttentionState(seen.key[:, :, -needed:].clone(), seen.value[:, :, -needed:].clone(), length)


class Attention(Unit):
    """Grouped-query attention over the whole document."""

    def __init__(self, preset: Preset, heads: int | None = None) -> None:
        """heads: so many, each with a key and value of its own; the preset's where it is not given."""
        super().__init__()
        model = preset.model
        self.heads, self.kv_heads, self.head_size = heads or model.num_heads, heads or model.kv_heads, model.head_size
        self.rotary = Rotary(self.head_size, model.rope_theta, model.position_interpolation) if model.position == "rope" else None
        self.query_key_value = Joined(model.hidden_size, *(heads * self.head_size for heads in (self.heads, self.kv_heads, self.kv_heads)))
        self.query_norm, self.key_norm = head_norm(preset), head_norm(preset)
        self.output = nn.Linear(self.heads * self.head_size, model.hidden_size, bias=False)
        self.tells_values, self.first_share = False, None  # what it has to do with the values of others (lm/units/options.py)

    def initial_state(self, batch_size: int) -> AttentionState:
        return AttentionState.empty(self.output.weight, batch_size, self.kv_heads, self.head_size)

    def projected(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, H, T, K), key and value (B, G, T, K) of `x`, turned to their places."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_size))
        query_BTHK, key_BTGK, value_BTGK = heads.split(sizes, 2)
        query_BTHK, key_BTGK = self.query_norm(query_BTHK), self.key_norm(key_BTGK)
        if self.rotary is not None:
            angles = self.rotary.angles(context.position, x.dtype)
            query_BTHK, key_BTGK = rotated(query_BTHK, angles), rotated(key_BTGK, angles)
        return query_BTHK.transpose(1, 2), key_BTGK.transpose(1, 2), value_BTGK.transpose(1, 2)

    def with_first(self, value: Tensor, context: Context) -> Tensor:
        """`value` (B, G, T, K) with its share of the first attention's."""
        return value if self.first_share is None else value + self.first_share.to(value.dtype) * (context.shared[VALUE] - value)

    def forward(self, x: Tensor, state: AttentionState, context: Context) -> Mixed:
        query, key, value = self.projected(x, context)
        y, state = attention_parallel(query, key, self.with_first(value, context), state, context)
        return Mixed(self.output(y.transpose(1, 2).flatten(2)), state, shared={VALUE: value} if self.tells_values else {})
