"""Attention of many layers to keys and values that are made once (Sun et al. 2024, "You Only Cache Once").

    k_t, v_t = W_k x_t, W_v x_t                           in the first of its layers, the owner, from what comes into it
    q^l_t = W_q^l x^l_t                                   in each of its layers l, the owner too
    y^l_t = sum_{s <= t} softmax_s(q^l_t . k_s / sqrt(K)) v_s,    s in the document of t

Queries are grouped, turned to their places, and normalised with the keys, as in attention. The owner's state holds the keys and values of the
document so far, as attention's does; the other layers hold none and find what they attend to in Context.shared. So the state of all of
these layers together is as large as that of one layer of attention.

Sizes: B batch, T time, D hidden, H heads, G key and value heads, K head size, S slots of the state.
"""

from torch import Tensor, nn

from lm.ops.rotary import Rotary, rotated
from lm.preset.switches import Preset
from lm.units.attention import AttentionState, Seen, attend_seen, attention_step, grown, seen_by
from lm.units.head_norm import head_norm
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

KEY, VALUE, MASK = (f"shared_attention.{field}" for field in Seen._fields)  # in Context.shared


def shared_attention_step(queries: list[Tensor], key: Tensor, value: Tensor, state: AttentionState, restart: Tensor) -> tuple[list[Tensor], AttentionState]:
    """The definition, for one token: a query (B, H, 1, K) of each layer, one key and value (B, G, 1, K), restart (B,) -> (B, H, 1, K) of each layer."""
    read = [attention_step(query, key, value, state, restart) for query in queries]
    return [y for y, _ in read], read[0][1]


class KeyValue(nn.Module):
    """What the owner has beyond the others."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model = preset.model
        self.heads, self.head_size = model.kv_heads, model.head_size
        self.key_value = Joined(model.hidden_size, *[self.heads * self.head_size] * 2)
        self.key_norm = head_norm(preset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value (B, T, G, K) of `x` (B, T, D)."""
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, self.head_size)).unbind(2)
        return self.key_norm(key), value


class SharedAttention(Unit):
    """Queries of its own; keys and values too in the owner, else the owner's."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model = preset.model
        self.heads, self.kv_heads, self.head_size = model.num_heads, model.kv_heads, model.head_size
        self.rotary = Rotary(self.head_size, model.rope_theta, model.position_interpolation) if model.position == "rope" else None
        self.shared_query = nn.Linear(model.hidden_size, self.heads * self.head_size, bias=False)
        self.query_norm = head_norm(preset)
        self.shared_keys = KeyValue(preset) if preset.shared_attention.owns else None
        self.output = nn.Linear(self.heads * self.head_size, model.hidden_size, bias=False)

    def initial_state(self, batch_size: int) -> AttentionState | tuple[()]:
        if self.shared_keys is None:
            return ()
        return AttentionState.empty(self.output.weight, batch_size, self.kv_heads, self.head_size)

    def turned(self, heads: Tensor, context: Context) -> Tensor:
        """Queries or keys (B, T, H, K), turned to their places, as (B, H, T, K)."""
        if self.rotary is not None:
            heads = rotated(heads, self.rotary.angles(context.position, heads.dtype))
        return heads.transpose(1, 2)

    def forward(self, x: Tensor, state: AttentionState | tuple[()], context: Context) -> Mixed:
        shared: dict[str, Tensor] = {}
        if self.shared_keys is None:
            seen = Seen(context.shared[KEY], context.shared[VALUE], context.shared.get(MASK))
        else:
            key, value = self.shared_keys(x)
            seen = seen_by(self.turned(key, context), value.transpose(1, 2), state, context)
            state = grown(seen, state, context)
            shared = {KEY: seen.key, VALUE: seen.value} | ({} if seen.mask is None else {MASK: seen.mask})
        query = self.query_norm(self.shared_query(x).unflatten(-1, (self.heads, self.head_size)))
        y = attend_seen(self.turned(query, context), seen, context)
        return Mixed(self.output(y.transpose(1, 2).flatten(2)), state, shared=shared)
