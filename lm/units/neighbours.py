"""Neighbours that are handed in with a text, and the encoder that reads them for all layers that attend to them (Borgeaud et al. 2022,
"Improving language models by retrieving from trillions of tokens", section 2.4).

    E_nj = encoder(embedding(tokens_nj)),    each neighbour by itself, its tokens seeing each other in both directions

The encoder is a small transformer over the model's own token embeddings, narrowed where it is narrower. It is run once, when neighbours
come; what layers make of its output goes on through their states. The paper's encoder also attends to the trunk's activations of the chunk
that the neighbours were found by. That is left out: a chunk's activations would have to be carried from piece to piece, and the encoder
would have to be run again for each layer that attends.

Sizes: B batch, T time, D hidden, N arrivals of neighbours, k neighbours of each, R tokens of a neighbour, E encoder's width, H heads of it,
K head size, M sequences.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.rotary import Angles, Rotary, rotated
from lm.preset.switches import Preset
from lm.units.head_norm import head_norm
from lm.units.joined import Joined

# In Context.shared: Neighbours.at, what was made of the tokens (N, k, R, E), 0 beyond the length, and Neighbours.length.
AT, ENCODED, LENGTH = "retro.at", "retro.encoded", "retro.length"


class Neighbours(NamedTuple):
    """What is handed in with B rows of T tokens (Context.memory). What came last in a row counts, until its document ends."""

    at: Tensor  # (N,) int64, ascending: flattened place in B * T from which on the row sees these. Best kept on the host: no device is asked then
    tokens: Tensor  # (N, k, R) int64, padded at the right with anything
    length: Tensor  # (N, k) int64: tokens of each; 0 where there is no such neighbour

    def to(self, device: torch.device) -> "Neighbours":
        """The same with what the model reads on `device`. Places stay on the host, by which the work is laid out."""
        return self._replace(tokens=self.tokens.to(device, non_blocking=True), length=self.length.to(device, non_blocking=True))

    def filled_up(self, count: int, size: int) -> "Neighbours":
        """The same as `count` neighbours of `size` tokens. ValueError where they are more."""
        missing = count - self.tokens.shape[1], size - self.tokens.shape[2]
        if min(missing) < 0:
            there = f"{self.tokens.shape[1]} neighbours of {self.tokens.shape[2]} tokens"
            raise ValueError(f"{there} are handed in; this model takes {count} (retro.num_neighbors) of {size} (twice retro.chunk_size)")
        return self._replace(tokens=F.pad(self.tokens, (0, missing[1], 0, missing[0])), length=F.pad(self.length, (0, missing[0])))


class EncoderBlock(nn.Module):
    """Attention in both directions, then SwiGLU, each x + f(norm(x))."""

    def __init__(self, preset: Preset, size: int) -> None:
        super().__init__()
        model, width = preset.model, -(-8 * size // (3 * 32)) * 32
        self.head_size = model.head_size
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(size, eps=model.norm_eps) for _ in range(2))
        self.query_key_value = Joined(size, size, size, size)
        self.query_norm, self.key_norm = head_norm(preset), head_norm(preset)
        self.attended = nn.Linear(size, size, bias=False)
        self.gate_up = Joined(size, width, width)
        self.down = nn.Linear(width, size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, angles: Angles | None) -> Tensor:
        """`x` (M, R, E), what is seen of it (M, 1, 1, R) -> (M, R, E)."""
        x = x + self.attended(self._seen(self.attention_norm(x), mask, angles))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def _seen(self, x: Tensor, mask: Tensor, angles: Angles | None) -> Tensor:
        query_MRHK, key_MRHK, value_MRHK = self.query_key_value(x).unflatten(-1, (3, -1, self.head_size)).unbind(2)
        query_MRHK, key_MRHK = self.query_norm(query_MRHK), self.key_norm(key_MRHK)
        if angles is not None:
            query_MRHK, key_MRHK = rotated(query_MRHK, angles), rotated(key_MRHK, angles)
        heads = (part.transpose(1, 2) for part in (query_MRHK, key_MRHK, value_MRHK))
        return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


class NeighbourEncoder(nn.Module):
    """Belongs to the model: one for all layers that attend to neighbours."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model, section = preset.model, preset.retro
        size = encoder_size(preset)
        self.count, self.length = section.num_neighbors, 2 * section.chunk_size
        self.rotary = Rotary(model.head_size, model.rope_theta, 1.0) if model.position == "rope" else None
        self.places = nn.Embedding(self.length, size) if model.position == "learned" else None
        self.narrow = nn.Linear(model.hidden_size, size, bias=False) if size != model.hidden_size else nn.Identity()
        self.blocks = nn.ModuleList(EncoderBlock(preset, size) for _ in range(section.encoder_layers))
        self.norm = nn.RMSNorm(size, eps=model.norm_eps)

    def initialise(self) -> None:
        """Matrices normal with deviation 0.02. That new layers are the identity is seen to where they write (Retro.output)."""
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)

    def read(self, memory: Neighbours | None, embedding: nn.Embedding) -> dict[str, Tensor]:
        """`memory` as the layers find it in Context.shared. ValueError for more neighbours, or longer ones, than there is room for."""
        table = embedding.weight
        if memory is None or not len(memory.at):
            nothing = torch.zeros(0, self.count, dtype=torch.int64, device=table.device)
            return {AT: nothing[:, 0].cpu(), ENCODED: self._unread(table), LENGTH: nothing}
        memory = memory.filled_up(self.count, self.length)
        length = memory.length.to(table.device)
        tokens = torch.where(self._inside(length), memory.tokens.to(table.device), 0)
        return {AT: memory.at, ENCODED: self(embedding(tokens), length), LENGTH: length}

    def forward(self, embedded: Tensor, length: Tensor) -> Tensor:
        """`embedded` (N, k, R, D), of which `length` (N, k) are tokens -> (N, k, R, E), N > 0; 0 beyond the length."""
        x = self.narrow(embedded.flatten(0, 1))
        places = torch.arange(self.length, device=x.device)
        if self.places is not None:
            x = x + self.places(places)
        angles = None if self.rotary is None else self.rotary.angles(places[None], x.dtype)
        # Where there is no neighbour its first place is seen instead: what comes of it is left out, but must be a number.
        mask = self._inside(length.clamp(min=1)).flatten(0, 1)[:, None, None]
        for block in self.blocks:
            x = block(x, mask, angles)
        return torch.where(self._inside(length)[..., None], self.norm(x).unflatten(0, length.shape), 0)

    def _inside(self, length: Tensor) -> Tensor:
        """Which places hold tokens (N, k, R)."""
        return torch.arange(self.length, device=length.device) < length[..., None]

    def _unread(self, like: Tensor) -> Tensor:
        """No neighbours (0, k, R, E), as if they had been read: each parameter gets a gradient, which is zero. Other processes, to which
        neighbours came, wait for it."""
        empty = like.new_zeros(0, self.count, self.length, self.norm.weight.shape[0])
        return empty + sum(parameter.sum() for parameter in self.parameters()) if torch.is_grad_enabled() else empty


def encoder_size(preset: Preset) -> int:
    """Width of the encoder, resolved: whole heads."""
    head = preset.model.head_size
    return preset.retro.encoder_size or -(-preset.model.hidden_size // (2 * head)) * head
