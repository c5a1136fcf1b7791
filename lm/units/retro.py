"""Chunked cross-attention to neighbours (Borgeaud et al. 2022, "Improving language models by retrieving from trillions of tokens", section
2.4), beside a layer's mixers.

    y_t = sum_{j, r} softmax_{j, r}(q_t . k_jr / sqrt(K)) v_jr,    k_jr, v_jr = W_k E_jr, W_v E_jr;    0 where the token has no neighbours

E (lm/units/neighbours.py) are the encoded neighbours j that came last in the row at token t or before it, and in t's document: tokens of a
chunk see what was found for the chunk before it. One softmax is over the tokens r of all of them; queries are grouped, and normalised with
the keys, as in attention.

Places: a neighbour is a chunk like the one that found it, and what followed there. So it is laid beside the text: its token r at place r, and
the token that comes d tokens after the arrival at place C + d, C being the length of a chunk. Rotary angles (a learned vector for each d,
where the model's places are learned) then tell a query which token of the neighbour stands where it stands, and which comes next. Past the
neighbour's end, for d >= C, the place stays 2C, its end: what goes on being seen for long is never at angles that training did not have.

The state holds the keys and values in force, so that each arrival is encoded and projected once, and a token alone costs its attention only;
how long each neighbour is, 0 for none; and how far the next token is from the arrival. Its shape is always the same.

Tokens that see the same neighbours are read together, in blocks laid out on the host by where neighbours came, so that work grows with
T * k * R. Whether a document began in between is a mask over tokens, for which no device is waited for.

Sizes: B batch, T time, D hidden, H heads, G key and value heads, K head size, N arrivals, k neighbours of each, R = 2C tokens of a neighbour,
S = k * R slots, E encoder's width; M blocks of L tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.rotary import Rotary, rotated
from lm.preset.switches import Preset
from lm.units.head_norm import head_norm
from lm.units.joined import Joined
from lm.units.neighbours import AT, ENCODED, LENGTH, Neighbours, encoder_size
from lm.units.unit import Context, Mixed, Unit

__all__ = ["Neighbours", "Retro", "RetroState"]


class RetroState(NamedTuple):
    key: Tensor  # (B, G, S, K), 0 in empty slots
    value: Tensor  # (B, G, S, K)
    length: Tensor  # (B, k) int64: tokens of each neighbour
    distance: Tensor  # (B,) int64: of the next token from where they came, up to C; 0 without any


class Arrived(NamedTuple):
    """Neighbours that came with a piece."""

    at: Tensor  # (N,) int64: flattened place in B * T, on the host if possible
    key: Tensor  # (N, G, S, K), 0 in empty slots
    value: Tensor  # (N, G, S, K)
    length: Tensor  # (N, k) int64


class Reach(NamedTuple):
    """What each token of a piece sees, alike in all layers. A source is a row of the state, or B + n for arrival n."""

    source: Tensor  # (B, T) int64
    seen: Tensor  # (B, T) bool: whether the token has neighbours at all
    distance: Tensor  # (B, T) int64: from where they came, up to C
    length: Tensor  # (B + N, k) int64: by source
    block: Tensor  # (M, L) int64: flattened places of tokens that are read together, some twice to fill up
    block_source: Tensor  # (M,) int64
    place: Tensor  # (B * T,) int64: where each token stands in the flattened M * L, if it does


REACH = tuple(f"retro.reach.{field}" for field in Reach._fields)  # in Context.shared


def retro_step(query: Callable[[Tensor], Tensor], came: Tensor, new: RetroState, state: RetroState, restart: Tensor) -> tuple[Tensor, RetroState]:
    """The definition, for one token: query(distance (B,)) gives (B, H, 1, K); new (B, ...) takes the state's place where `came` (B,), restart
    (B,) empties it before -> (B, H, 1, K)."""
    for what, other in ((restart, RetroState(*map(torch.zeros_like, state))), (came, new)):
        state = RetroState(*(torch.where(what.view(-1, *[1] * (now.ndim - 1)), then, now) for then, now in zip(other, state, strict=True)))
    asked = query(state.distance)
    keys, values = (part.repeat_interleave(asked.shape[1] // part.shape[1], 1) for part in state[:2])
    reach = keys.shape[2] // state.length.shape[1]
    filled = (torch.arange(reach, device=keys.device) < state.length[..., None]).flatten(1)[:, None, None]
    scores = (asked @ keys.mT / keys.shape[-1] ** 0.5).masked_fill(~filled, -torch.inf)
    any_seen = (state.length > 0).any(1)
    y = scores.masked_fill(~any_seen[:, None, None, None], 0.0).softmax(-1) @ values * any_seen[:, None, None, None]
    return y, state._replace(distance=torch.where(any_seen, state.distance + 1, 0).clamp(max=reach // 2))


def retro_parallel(query: Tensor, arrived: Arrived, state: RetroState, reach: Reach) -> Tensor:
    """All tokens at once: query (B, T, H, K), turned to its places -> (B, T, H, K). There are some blocks."""
    key, value = (joined(held, new)[reach.block_source] for held, new in zip(state[:2], arrived[1:3], strict=True))
    filled = (torch.arange(key.shape[2] // reach.length.shape[1], device=key.device) < reach.length[..., None]).flatten(1)
    filled[:, 0] |= ~filled.any(1)  # a softmax over nothing is not a number; what it reads there is not used
    blocks = query.flatten(0, 1)[reach.block].transpose(1, 2)
    mask = filled[reach.block_source][:, None, None]
    y = F.scaled_dot_product_attention(blocks, key, value, attn_mask=mask, enable_gqa=query.shape[2] != key.shape[1])
    y = y.transpose(1, 2).flatten(0, 1).index_select(0, reach.place).view_as(query)
    return torch.where(reach.seen[..., None, None], y, 0)


def moved(arrived: Arrived, state: RetroState, reach: Reach, context: Context, chunk: int) -> RetroState:
    """The state after a piece of T > 0 tokens."""
    seen = reach.seen[:, -1]
    distance = torch.where(seen, reach.distance[:, -1] + 1, 0).clamp(max=chunk)
    if not len(arrived.key) and not context.any_restart:
        return state._replace(distance=distance)
    source = reach.source[:, -1]
    key, value = (
        torch.where(seen[:, None, None, None], joined(before, new).index_select(0, source), 0) for before, new in zip(state[:2], arrived[1:3], strict=True)
    )
    return RetroState(key, value, torch.where(seen[:, None], reach.length[source], 0), distance)


def joined(before: Tensor, new: Tensor) -> Tensor:
    """What is held, then what came: by source."""
    return torch.cat([before.to(new.dtype), new]) if len(new) else before.to(new.dtype)


def reach_of(arrived: Arrived, state: RetroState, context: Context, chunk: int) -> Reach:
    """What each token sees: of what came, the newest in its row, if its document had begun by then; else what is held, if it had not yet."""
    (rows, time), device = context.position.shape, arrived.key.device
    steps, row = torch.arange(time, device=device), torch.arange(rows, device=device)[:, None]
    place, begun = row * time + steps, row * time
    goes_on = torch.full_like(place, context.carry, dtype=torch.bool)  # without a state that goes on all rows are fresh
    if context.any_restart:
        latest = torch.where(context.restart, steps, -1).cummax(1).values
        begun, goes_on = begun + latest.clamp(min=0), goes_on & (latest < 0)
    at = F.pad(arrived.at.to(device, non_blocking=True), (1, 0), value=-1)
    newest = torch.searchsorted(at[1:], place, right=True)
    came_at = at[newest]
    new = came_at >= begun
    source = torch.where(new, rows - 1 + newest, row)
    length = joined(state.length, arrived.length)
    distance = torch.where(new, place - came_at, state.distance[:, None] + steps).clamp(max=chunk)
    # On the host a look at the state costs nothing.
    holds = context.carry and (device.type != "cpu" or bool(state.length.any()))
    blocks = blocks_of(arrived.at.cpu(), rows, time, chunk, holds)
    return Reach(source, (new | goes_on) & (length > 0).any(1)[source], distance, length, *(part.to(device, non_blocking=True) for part in blocks))


def blocks_of(at: Tensor, rows: int, time: int, chunk: int, holds: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Reach's block, block_source and place, on the host: the tokens from one arrival to the next, cut to a length that leaves little to fill up.
    holds: whether tokens before a row's first arrival may see something, too."""
    source, start = torch.arange(rows, rows + len(at)), at
    if holds:
        start, order = torch.cat([torch.arange(rows) * time, at]).sort(stable=True)
        source = torch.arange(rows + len(at))[order]
    end = torch.minimum(F.pad(start[1:], (0, 1), value=rows * time)[: len(start)], (start // max(time, 1) + 1) * time)
    length = end - start
    if not length.any():
        return torch.zeros(0, 1, dtype=torch.int64), source[:0], torch.zeros(rows * time, dtype=torch.int64)
    size = min(int(length.max()), max(chunk, int(length.sum()) // int((length > 0).sum())))
    count = -(-length // size)
    span = torch.arange(len(start)).repeat_interleave(count)
    nth = torch.arange(len(span)) - (count.cumsum(0) - count)[span]
    token = (start[span] + size * nth)[:, None] + torch.arange(size)
    inside = token < end[span, None]
    place = torch.zeros(rows * time, dtype=torch.int64)
    place[token[inside]] = inside.flatten().nonzero().flatten()
    return token.where(inside, start[span, None]), source[span], place


class Retro(Unit):
    """Grouped-query attention to the neighbours in force."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model, section = preset.model, preset.retro
        self.heads, self.kv_heads, self.head_size = model.num_heads, model.kv_heads, model.head_size
        self.count, self.chunk, self.encoder_size = section.num_neighbors, section.chunk_size, encoder_size(preset)
        self.rotary = Rotary(self.head_size, model.rope_theta, 1.0) if model.position == "rope" else None
        self.places = nn.Embedding(self.chunk + 1, self.heads * self.head_size) if model.position == "learned" else None
        self.cross_query = nn.Linear(model.hidden_size, self.heads * self.head_size, bias=False)
        self.key_value = Joined(self.encoder_size, *[self.kv_heads * self.head_size] * 2)
        self.query_norm, self.key_norm = head_norm(preset), head_norm(preset)
        self.output = nn.Linear(self.heads * self.head_size, model.hidden_size, bias=False)

    def initial_state(self, batch_size: int) -> RetroState:
        empty = self.output.weight.new_zeros(batch_size, self.kv_heads, 2 * self.count * self.chunk, self.head_size)
        length = torch.zeros(batch_size, self.count, dtype=torch.int64, device=empty.device)
        return RetroState(empty, empty.clone(), length, length.new_zeros(batch_size))

    def query(self, x: Tensor, distance: Tensor) -> Tensor:
        """(B, T, H, K) of `x` (B, T, D), turned to the places beside the neighbours of tokens at `distance` (B, T) from where those came."""
        flat = self.cross_query(x)
        if self.places is not None:
            flat = flat + self.places(distance)
        heads = self.query_norm(flat.unflatten(-1, (self.heads, self.head_size)))
        return heads if self.rotary is None else rotated(heads, self.rotary.angles(self.chunk + distance, x.dtype))

    def arrived(self, x: Tensor, context: Context) -> Arrived:
        """Keys and values of what came with `x` (B, T, D), as the model shared it; nothing where it shared nothing. What is 0 stays 0."""
        nothing = x.new_zeros(0, self.count, 2 * self.chunk, self.encoder_size)
        encoded = context.shared.get(ENCODED, nothing)
        length = context.shared.get(LENGTH, torch.zeros(0, self.count, dtype=torch.int64, device=x.device))
        key, value = self.key_value(encoded.flatten(0, 1)).unflatten(-1, (2, self.kv_heads, self.head_size)).unbind(2)
        key = self.key_norm(key)
        if self.rotary is not None:
            key = rotated(key, self.rotary.angles(torch.arange(2 * self.chunk, device=x.device)[None], x.dtype))
        by_slot = (part.unflatten(0, (-1, self.count)).flatten(1, 2).transpose(1, 2) for part in (key, value))
        return Arrived(context.shared.get(AT, length[:, 0]), *by_slot, length)

    def forward(self, x: Tensor, state: RetroState, context: Context) -> Mixed:
        arrived = self.arrived(x, context)
        reach = Reach(*(context.shared[name] for name in REACH)) if REACH[0] in context.shared else reach_of(arrived, state, context, self.chunk)
        shared = dict(zip(REACH, reach, strict=True))
        if not len(reach.block):  # nobody sees anything: exactly 0, and gradients of zero to all that would have been computed with
            nothing = self.output(self.query(x[:, :0], reach.distance[:, :0]).flatten(2)).sum() + arrived.key.sum() + arrived.value.sum()
            return Mixed(torch.zeros_like(x) + nothing, state, shared=shared)
        y = retro_parallel(self.query(x, reach.distance), arrived, state, reach)
        after = moved(arrived, state, reach, context, self.chunk) if context.carry else state
        return Mixed(self.output(y.flatten(2)), after, shared=shared)
