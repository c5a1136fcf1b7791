"""Longformer (Beltagy, Peters and Cohan 2020), the causal form: attention within a sliding window, and to the first tokens of the document.

    y_t = sum_{s in S_t} softmax_{s in S_t}(q_t . k_s / sqrt(K)) v_s,    S_t = {s <= t : t - s < W or s < N}, places within the document

Work and memory are linear in T. The state holds the keys and values of the W - 1 tokens before, right-aligned, and of the first N, and how
many tokens of the document were read, which says how many of either are filled. Its shape is always the same.

Sizes: B batch, T time, D hidden, H heads, G key and value heads, K head size, W window, N global tokens; in the blocked form C tokens in a
block, R slots before it that it reaches, M blocks.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lm.preset.switches import Preset
from lm.units.attention import VALUE, Attention, attend, attend_by_document
from lm.units.unit import Context, Mixed

BLOCK = 128  # queries that are read together


class LongformerState(NamedTuple):
    key: Tensor  # (B, G, W - 1, K)
    value: Tensor  # (B, G, W - 1, K)
    global_key: Tensor  # (B, G, N, K)
    global_value: Tensor  # (B, G, N, K)
    length: Tensor  # (B,) int64: tokens of the document so far


def longformer_step(query: Tensor, key: Tensor, value: Tensor, state: LongformerState, restart: Tensor) -> tuple[Tensor, LongformerState]:
    """The definition, for one token: query (B, H, 1, K), key and value (B, G, 1, K), restart (B,) -> (B, H, 1, K)."""
    slots, firsts = state.key.shape[2], state.global_key.shape[2]
    place = torch.where(restart, 0, state.length)[:, None]
    first, back = torch.arange(firsts, device=key.device), torch.arange(slots, -1, -1, device=key.device)
    seen = torch.cat([first < place - slots, back <= place], 1)[:, None, None]  # a first token that is in the window counts there
    keys, values = torch.cat([state.key, key], 2), torch.cat([state.value, value], 2)
    group = query.shape[1] // key.shape[1]
    scores = query @ torch.cat([state.global_key, keys], 2).repeat_interleave(group, 1).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    y = weights @ torch.cat([state.global_value, values], 2).repeat_interleave(group, 1)
    here = (first == place)[:, None, :, None]
    global_key, global_value = torch.where(here, key, state.global_key), torch.where(here, value, state.global_value)
    return y, LongformerState(keys[:, :, 1:], values[:, :, 1:], global_key, global_value, place[:, 0] + 1)


def longformer_parallel(query: Tensor, key: Tensor, value: Tensor, state: LongformerState, context: Context) -> tuple[Tensor, LongformerState]:
    """All tokens at once: query (B, H, T, K), key and value (B, G, T, K) -> (B, H, T, K)."""
    if not key.numel():
        return query, state
    time = key.shape[2]
    restart = context.restart if context.any_restart else None
    place = _places(state.length, restart, time)
    if query.is_cuda and time >= BLOCK and query.shape[-1] >= 16 and query.dtype != torch.float64:  # what the compiled kernel takes
        y = _attend_sparse(query, key, value, state, place, _compiled())
    elif query.device.type != "cpu" or any(state.length.tolist()):
        y = _attend_blocks(query, key, value, state, place, restart is not None)
    elif restart is None:
        y = _attend_fresh(query, key, value, state)
    else:
        empty = LongformerState(*(leaf[:1] for leaf in state))
        y = attend_by_document(query, key, value, context.cu_seqlens, functools.partial(_attend_fresh, empty=empty))
    return y, _moved(key, value, state, place) if context.carry else state


def _places(length: Tensor, restart: Tensor | None, time: int) -> Tensor:
    """Place of each token in its document (B, T), when the documents had `length` (B,) tokens before."""
    steps = torch.arange(time, device=length.device)
    carried = length[:, None] + steps
    if restart is None:
        return carried
    latest = torch.where(restart, steps, -1).cummax(1).values
    return torch.where(latest >= 0, steps - latest, carried)


def _first_tokens(recent: Tensor, carried: Tensor, start: Tensor) -> Tensor:
    """The first N tokens of documents: `recent` (B, G, T, K) after `carried` (B, G, N, K), documents that begin at `start` (B, M),
    negative for one that was carried here, -> (B, M, G, N, K). What has not been read yet is arbitrary."""
    firsts, documents = carried.shape[2], start.shape[1]
    at = start[:, :, None] + torch.arange(firsts, device=start.device)
    index = torch.where(at < 0, torch.arange(firsts, device=start.device), at + firsts)
    source = torch.cat([carried.to(recent.dtype), recent], 2)
    index = index.clamp(max=source.shape[2] - 1).flatten(1)[:, None, :, None]
    return source.take_along_dim(index, 2).unflatten(2, (documents, firsts)).transpose(1, 2)


def _attend_fresh(query: Tensor, key: Tensor, value: Tensor, empty: LongformerState) -> Tensor:
    """From the beginning of documents: causal as far as the window reaches, and then in blocks."""
    window, time = empty.key.shape[2] + 1, key.shape[2]
    head = attend(query[:, :, :window], key[:, :, :window], value[:, :, :window])
    if time <= window:
        return head
    place = _places(empty.length, None, time)
    state = _moved(key[:, :, :window], value[:, :, :window], empty, place[:, :window])
    return torch.cat([head, _attend_blocks(query[:, :, window:], key[:, :, window:], value[:, :, window:], state, place[:, window:], False)], 2)


def _attend_blocks(query: Tensor, key: Tensor, value: Tensor, state: LongformerState, place: Tensor, restarts: bool) -> Tensor:
    """Blocks of queries, each with the keys that it reaches: masks are of a block's size, and one serves all blocks that lie deep in a document."""
    time, slots, firsts = key.shape[2], state.key.shape[2], state.global_key.shape[2]
    least = 0
    if query.device.type == "cpu":  # what the state holds is known without waiting
        lengths = state.length.tolist()
        least, most = min(lengths), max(lengths)
        slots = min(slots, most + time - 1)
    # Within a block no longer than the window, only the document that is there at its beginning can have tokens beyond their window.
    size = min(BLOCK, time, slots + 1) if restarts and firsts else min(BLOCK, time)
    blocks = -(-time // size)
    over = (0, 0, 0, blocks * size - time)
    keys, values = (
        F.pad(torch.cat([before[:, :, before.shape[2] - slots :].to(recent.dtype), recent], 2), over)
        for recent, before in ((key, state.key), (value, state.value))
    )
    start = torch.arange(0, time, size, device=key.device) - place[:, ::size] if restarts else -place[:, :1]
    recent = slice(None) if restarts else slice(firsts)
    first_keys, first_values = _first_tokens(key[:, :, recent], state.global_key, start), _first_tokens(value[:, :, recent], state.global_value, start)
    queries, places = F.pad(query, over), F.pad(place, over[2:]).unflatten(1, (blocks, size))
    shallow = blocks if restarts else min(blocks, -(-max(slots + firsts - least, 0) // size))  # blocks that have queries which see less than all
    spans = [(0, shallow, _shallow_mask(places[:, :shallow], slots, firsts))] if shallow else []
    spans += [(shallow, blocks, _deep_mask(size, slots, firsts, key.device))] if shallow < blocks else []
    read = []
    for begin, end, mask in spans:
        tokens, reached = slice(begin * size, end * size), slice(begin * size, end * size + slots)
        block_keys, block_values = _reached(keys[:, :, reached], first_keys, size, slots), _reached(values[:, :, reached], first_values, size, slots)
        read.append(_attend_span(queries[:, :, tokens], block_keys, block_values, mask))
    return torch.cat(read, 2)[:, :, :time]


def _reached(keys: Tensor, first_keys: Tensor, size: int, slots: int) -> Tensor:
    """What each block of queries reaches: of `keys` (B, G, R + M * C, K), after `first_keys` (B, M or 1, G, N, K) -> (B, M, G, N + C + R, K)."""
    blocks = keys.unfold(2, size + slots, size).permute(0, 2, 1, 4, 3)
    if not first_keys.shape[3]:
        return blocks
    return torch.cat([first_keys.expand(-1, blocks.shape[1], -1, -1, -1), blocks], 3)


def _attend_span(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Queries (B, H, M * C, K) to each block's keys (B, M, G, N + C + R, K), under a mask (B or 1, M or 1, C, N + C + R)."""
    blocks, kv_heads, size = keys.shape[1], keys.shape[2], mask.shape[2]
    group = query.shape[1] // kv_heads  # heads that share a key stand one after the other, as if they were more queries
    folded = query.unflatten(1, (kv_heads, group)).unflatten(3, (blocks, size)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1)
    mask = mask.flatten(0, 1)[:, None].repeat(1, 1, group, 1)
    y = F.scaled_dot_product_attention(folded, keys.flatten(0, 1), values.flatten(0, 1), attn_mask=mask)
    return y.unflatten(2, (group, size)).unflatten(0, (-1, blocks)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)


def _back(size: int, slots: int, device: torch.device) -> Tensor:
    """How far before each query of a block each of its keys stands (C, C + R)."""
    return torch.arange(size, device=device)[:, None] + slots - torch.arange(size + slots, device=device)


def _shallow_mask(place: Tensor, slots: int, firsts: int) -> Tensor:
    """What queries at `place` (B, M, C) see, if less than all: as far back as their document and window reach (B, M, C, N + C + R)."""
    back = _back(place.shape[2], slots, place.device)
    window = (back >= 0) & (back <= place.clamp(max=slots)[..., None])
    beyond = torch.arange(firsts, device=place.device) < place[..., None] - slots
    return torch.cat([beyond, window], -1)


def _deep_mask(size: int, slots: int, firsts: int, device: torch.device) -> Tensor:
    """What queries see that stand deep in their document: their window, and all the first tokens (1, 1, C, N + C + R)."""
    back = _back(size, slots, device)
    return F.pad((back >= 0) & (back <= slots), (firsts, 0), value=True)[None, None]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _attend_sparse(query: Tensor, key: Tensor, value: Tensor, state: LongformerState, place: Tensor, flex: Callable[..., Tensor]) -> Tensor:
    """Flex attention (Dong et al. 2024) over the first tokens, the window and the new tokens; blocks that no query reaches are left out."""
    firsts, slots, time = state.global_key.shape[2], state.key.shape[2], key.shape[2]
    keys, values = torch.cat([state.global_key, state.key, key], 2), torch.cat([state.global_value, state.value, value], 2)
    near = _near(place, firsts, slots, keys.shape[2])
    order = near.int().argsort(dim=-1, descending=True, stable=True).int()
    mask = BlockMask.from_kv_blocks(
        near.sum(-1).int()[:, None], order[:, None], BLOCK_SIZE=BLOCK, mask_mod=_seen(place, state.length, firsts, slots), seq_lengths=(time, keys.shape[2])
    )
    heads = (tensor.to(value.dtype).contiguous() for tensor in (query, keys, values))
    return flex(*heads, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


def _seen(place: Tensor, length: Tensor, firsts: int, slots: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a column, of N carried first tokens, W - 1 of the window and T new ones."""
    new = firsts + slots

    def seen(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        at, back = place[row, query], query + new - column
        beyond = (back > slots) & (back <= at)  # further than the window, in the same document
        window = (column >= firsts) & (back >= 0) & (back <= slots) & (back <= at)
        new_first = (column >= new) & beyond & (at - back < firsts)
        carried_first = (column < firsts) & (column < length[row]) & (at == length[row] + query) & (column < at - slots)
        return window | new_first | carried_first

    return seen


def _near(place: Tensor, firsts: int, slots: int, columns: int, size: int = BLOCK) -> Tensor:
    """Which blocks of columns hold one that a block of queries may see (B, blocks of queries, blocks of columns)."""
    time, new = place.shape[1], firsts + slots
    low, column = torch.arange(0, time, size, device=place.device), torch.arange(0, columns, size, device=place.device)
    window = (column + size > low[:, None] + firsts) & (column < low[:, None] + size + new)
    start = (low + new - place[:, ::size])[..., None]  # where the document that is there first begins, if it is not a carried one
    first = (column < firsts) | ((column + size > start) & (column < start + firsts))
    deepest = F.pad(place, (0, -time % size)).unflatten(1, (-1, size)).amax(-1, keepdim=True)
    return window | (first & (deepest > slots))


def _moved(key: Tensor, value: Tensor, state: LongformerState, place: Tensor) -> LongformerState:
    """The state after these tokens."""
    time, slots = key.shape[2], state.key.shape[2]
    start = time - 1 - place[:, -1:]

    def newest(recent: Tensor, before: Tensor) -> Tensor:
        return torch.cat([before[:, :, min(time, slots) :], recent[:, :, max(time - slots, 0) :].to(before.dtype)], 2)

    def firsts(recent: Tensor, before: Tensor) -> Tensor:
        return _first_tokens(recent.to(before.dtype), before, start)[:, 0]

    return LongformerState(
        newest(key, state.key), newest(value, state.value), firsts(key, state.global_key), firsts(value, state.global_value), place[:, -1] + 1
    )


class Longformer(Attention):
    """Grouped-query attention within a window, and to the first tokens of the document."""

    def __init__(self, preset: Preset, window: int | None = None, heads: int | None = None) -> None:
        """window: a window of this length and nothing else; the longformer section's where it is not given."""
        super().__init__(preset, heads)
        section = preset.longformer
        self.window, self.global_tokens = (window, 0) if window else (section.window, section.global_tokens)

    def initial_state(self, batch_size: int) -> LongformerState:
        slots = self.output.weight.new_zeros(batch_size, self.kv_heads, self.window - 1, self.head_size)
        firsts = self.output.weight.new_zeros(batch_size, self.kv_heads, self.global_tokens, self.head_size)
        return LongformerState(slots, slots.clone(), firsts, firsts.clone(), torch.zeros(batch_size, dtype=torch.int64, device=slots.device))

    def forward(self, x: Tensor, state: LongformerState, context: Context) -> Mixed:
        query, key, value = self.projected(x, context)
        y, state = longformer_parallel(query, key, self.with_first(value, context), state, context)
        return Mixed(self.output(y.transpose(1, 2).flatten(2)), state, shared={VALUE: value} if self.tells_values else {})
