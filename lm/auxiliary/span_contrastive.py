"""Span contrastive: spans are masked before the trunk reads them, and from what stands before it must be known which span it was.

    q = norm(Q mean h'_s),  k = norm(K mean h_s),   loss: -log exp(q k / tau) / (exp(q k / tau) + sum_j exp(q k_j / tau))

h'_s are the trunk's latents over the span on the masked row, h_s those on the row as it is, which learn nothing (InfoNCE, van den Oord et
al. 2018; masking as in Baevski et al. 2020, "wav2vec 2.0"; norm: L2, where span_l2_normalize is on).

The negatives k_j are keys of other lanes, so of other documents, from the optimizer step before: the same for every row of a step,
however it is cut into micro-batches and ranks. Each row leaves the keys of its first spans in slots of its own.

The mask is the tokenizer's padding, which no text holds.

Sizes: B batch, T time, D hidden, L tokens of a span, N spans, P width in which they are compared, S slots.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_sources.order import LANES
from lm.auxiliary.choice import since
from lm.auxiliary.head import Head, Reading, Taught
from lm.ops.picking import index_of
from lm.preset import Preset

KEPT_OF_A_ROW = 4  # spans whose keys are negatives in the next step


class Spans(NamedTuple):
    """Spans of a reading that are masked."""

    place: Tensor  # (N, L) int64 in the flattened B * T
    row: Tensor  # (N,) int64: index in the batch
    number: Tensor  # (N,) int64: counted from the first place of a span in the row


class SpanContrastive(Head):
    """Tells masked spans from those of other documents."""

    def __init__(self, preset: Preset, pad: int) -> None:
        super().__init__("span_contrastive", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.length, self.temperature, self.normalises = config.span_length, config.span_contrastive_temperature, config.span_l2_normalize
        self.stride = max(round(config.span_length / config.span_mask_fraction), config.span_length + 1)
        self.mask = pad
        self.query, self.key = nn.Linear(size, config.span_size, bias=False), nn.Linear(size, config.span_size, bias=False)
        self.rows = LANES * -(-config.span_negatives // (KEPT_OF_A_ROW * LANES))  # rows that far apart share slots, and are of one lane
        self.register_buffer("keys", torch.zeros(self.rows * KEPT_OF_A_ROW, config.span_size))
        self.register_buffer("lane", torch.full((self.rows * KEPT_OF_A_ROW,), -1.0))  # of each key; -1: there is none

    def spans(self, reading: Reading) -> Spans:
        """Every stride-th place begins a span, where L scored tokens of one document follow one that is seen."""
        columns, length = since(self.stride, self.seed, "spans", reading.row, reading.start, reading.targets), self.length
        time = columns.shape[1]
        whole = ((reading.targets >= 0) & ~reading.restart).long().cumsum(1)
        inside = F.pad(whole, (1, 0))[:, length:] - F.pad(whole, (1, 0))[:, : max(time + 1 - length, 0)]  # (B, T + 1 - L)
        fits = F.pad(inside == length, (0, time - inside.shape[1]))
        first = index_of(fits & (columns >= 0) & (columns % self.stride == 0))
        return Spans(first[:, None] + torch.arange(length, device=first.device), first // max(time, 1), columns.flatten()[first] // self.stride)

    def masked(self, reading: Reading, spans: Spans) -> Tensor:
        """The rows (B, T) without what the spans hold."""
        return reading.tokens.flatten().index_fill(0, spans.place.flatten(), self.mask).view_as(reading.tokens)

    def compared(self, latents: Tensor, spans: Spans, to: nn.Linear) -> Tensor:
        """Each span's mean latent (N, P) as it is compared."""
        projected = to(latents.flatten(0, 1)[spans.place].mean(1)).float()
        return F.normalize(projected, dim=-1) if self.normalises else projected

    def taught(self, reading: Reading) -> Taught:
        spans = self.spans(reading)
        query = self.compared(reading.again(self.masked(reading, spans)), spans, self.query)
        key = self.compared(reading.hidden.detach(), spans, self.key)
        lane = reading.lane.to(query.device)[spans.row]
        total = self.losses(query, key, lane).sum()
        count = total.new_tensor(len(query) * self.stride)
        return Taught({"span_contrastive": total * self.stride}, {"span_contrastive": count}, self.left(key.detach(), lane, spans, reading))

    def losses(self, query: Tensor, key: Tensor, lane: Tensor) -> Tensor:
        """InfoNCE of each span (N,), told from the spans of other lanes that are kept."""
        others = (query @ self.keys.to(query).T / self.temperature).masked_fill((self.lane < 0) | (self.lane == lane[:, None]), -torch.inf)
        own = (query * key).sum(-1, keepdim=True) / self.temperature
        return torch.cat([own, others], 1).logsumexp(1) - own[:, 0]

    def left(self, key: Tensor, lane: Tensor, spans: Spans, reading: Reading) -> dict[str, Tensor]:
        """What this reading leaves for the next step: sums by slot."""
        kept = index_of((spans.number < KEPT_OF_A_ROW)[None])
        row = reading.row.to(key.device)[spans.row[kept]]
        slot = row % self.rows * KEPT_OF_A_ROW + spans.number[kept]
        keys = torch.zeros_like(self.keys, dtype=key.dtype).index_add(0, slot, key[kept])
        lanes, count = (key.new_zeros(len(keys)).index_add(0, slot, values.to(key.dtype)) for values in (lane[kept], torch.ones_like(slot)))
        return {"keys": keys, "lanes": lanes, "count": count}

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        count = stats["count"].to(self.keys)
        keys = stats["keys"].to(self.keys) / count.clamp(min=1)[:, None]
        self.keys.copy_(F.normalize(keys, dim=-1) if self.normalises else keys)
        self.lane.copy_(torch.where(count > 0, stats["lanes"].to(self.keys) / count.clamp(min=1), -1))
